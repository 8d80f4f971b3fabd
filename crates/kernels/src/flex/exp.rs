//! A vectorized exponential, in which softmax, SiLU and the log-probs spend most of their time.

/// Compiles a loop three times (for any processor, for AVX2 with FMA, for AVX-512) and calls the
/// best one that the processor supports. All three give the same bits: sums use a fixed number of
/// lanes, and multiply-adds are fused only if the loop says so.
macro_rules! vectorized {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $plain:ident
    ) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    $plain($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    $plain($($arg),*)
                }
                use std::arch::is_x86_feature_detected as has;
                let fma = has!("avx2") && has!("fma");
                let wide = has!("avx512f")
                    && has!("avx512vl")
                    && has!("avx512dq")
                    && has!("avx512bw");
                if fma && wide {
                    // SAFETY: the processor has these features, as checked above.
                    return unsafe { avx512($($arg),*) };
                }
                if fma {
                    // SAFETY: the processor has both features, as checked above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $plain($($arg),*)
        }
    };
}

pub(crate) use vectorized;

/// Replaces each `x` by `exp(x)`. The result of an element does not depend on its place in the
/// slice.
#[cfg(test)]
pub fn exp_in_place(values: &mut [f32]) {
    vectorized!(fn all(values: &mut [f32]) = plain);
    #[inline(always)]
    fn plain(values: &mut [f32]) {
        for value in values {
            *value = exp(*value);
        }
    }
    all(values);
}

const LOWEST: f32 = -87.336_54;
const HIGHEST: f32 = 88.722_83;
/// ln 2 as a sum of two numbers; the first has few significant bits, so its products are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding and then subtracting 1.5 · 2^23 rounds to the nearest whole number.
const ROUND: f32 = 12_582_912.0;

/// `exp(x)` without branches, so that a loop over it compiles to vector instructions.
///
/// Cephes' range reduction with a degree-6 polynomial: within 2 units in the last place of the
/// exact value over the whole range; below -87.3 the result is 0, above 88.7 it is infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(LOWEST, HIGHEST);
    let n = clamped.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_HIGH, clamped);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 0.166_666_66);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n in two steps, since n may be 128: the exponent field alone holds up to 127.
    let half = (n * 0.5 + ROUND) - ROUND;
    let y = y * power_of_two(half) * power_of_two(n - half);
    let y = if x < LOWEST { 0.0 } else { y };
    let y = if x > HIGHEST { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// 2^n for a whole `n` in the range of the exponent field.
///
/// The last bits of `n + ROUND` are `n` itself. A cast with `as` would give the same number, but it
/// saturates, which no vector instruction does: the whole loop would become scalar.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    let whole = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
    f32::from_bits(whole.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_exact_value_over_the_whole_range() {
        let mut worst = 0.0f64;
        let mut values: Vec<f32> = (-87_000..88_000).map(|i| i as f32 * 1e-3).collect();
        let exact: Vec<f64> = values.iter().map(|x| f64::from(*x).exp()).collect();
        exp_in_place(&mut values);
        for (got, want) in values.iter().zip(exact) {
            worst = worst.max((f64::from(*got) / want - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "worst relative error {worst:e}");
    }

    #[test]
    fn powers_of_two_are_exact() {
        for n in -126..=127 {
            assert_eq!(power_of_two(n as f32), 2.0f32.powi(n), "2^{n}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_those_of_the_standard_function() {
        let mut values = [f32::NEG_INFINITY, -1e30, 0.0, 1e30, f32::INFINITY, f32::NAN];
        exp_in_place(&mut values);
        assert_eq!(values[..5], [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(values[5].is_nan());
    }
}
