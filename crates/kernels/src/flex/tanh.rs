//! A vectorized hyperbolic tangent, for soft caps.

use super::exp::exp;

/// `tanh(x)` without branches, so that a loop over it compiles to vector instructions.
///
/// Cephes' polynomial near zero, `1 − 2 / (exp(2x) + 1)` elsewhere: within 3 units in the last
/// place of the exact value.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    const NEAR: f32 = 0.625;
    let z = x * x;
    let mut p = -5.704_988_7e-3_f32;
    p = p.mul_add(z, 2.063_909e-2);
    p = p.mul_add(z, -5.373_971_6e-2);
    p = p.mul_add(z, 0.133_314_42);
    p = p.mul_add(z, -0.333_332_8);
    let near = (p * z).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < NEAR { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_exact_value() {
        let mut worst = 0.0f64;
        for i in -200_000..200_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).tanh();
            let scale = if exact == 0.0 { 1.0 } else { exact.abs() };
            worst = worst.max((f64::from(tanh(x)) - exact).abs() / scale);
        }
        assert!(worst < 3.0 * f64::from(f32::EPSILON), "worst relative error {worst:e}");
        assert_eq!([tanh(f32::INFINITY), tanh(f32::NEG_INFINITY), tanh(0.0)], [1.0, -1.0, 0.0]);
        assert!(tanh(f32::NAN).is_nan());
    }
}
