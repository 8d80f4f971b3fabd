//! Sums in a fixed number of lanes. The loops compile to vector instructions, and the result does
//! not depend on which instructions the processor has.
//!
//! All functions are meant to be inlined into a function of `vectorized!`.

/// Lanes of a sum, and elements of a step.
const LANES: usize = 16;

/// `Σ f(x)` over a slice, each term in float32.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    fold(lanes)
}

/// `Σ f(x, y)` over two slices of equal length, each term in float32.
#[inline(always)]
pub fn sum_of_pairs(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rests = xs.remainder().iter().zip(ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(*x, *y);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rests) {
        *lane += f(*x, *y);
    }
    fold(lanes)
}

/// `Σ f(x)` in double precision.
#[inline(always)]
pub fn sum_f64(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(*x));
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(*x));
    }
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    total
}

/// `Σ x · y` in double precision.
#[inline(always)]
pub fn dot_f64(x: &[f32], y: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rests = xs.remainder().iter().zip(ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(*x) * f64::from(*y);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rests) {
        *lane += f64::from(*x) * f64::from(*y);
    }
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    total
}

/// The largest element.
#[inline(always)]
pub fn highest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Adds the upper half to the lower half until one lane is left, as vector instructions do.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_any_length() {
        for len in [0, 1, 15, 16, 17, 250] {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 7.0).collect();
            let exact: f32 = x.iter().sum();
            assert_eq!(sum(&x, |x| x), exact);
            assert_eq!(sum_of_pairs(&x, &x, |a, b| a + b), 2.0 * exact);
            let squares: f64 = x.iter().map(|x| f64::from(x * x)).sum();
            assert_eq!(dot_f64(&x, &x), squares);
            assert_eq!(sum_f64(&x, |x| x * x), squares);
            let expected = x.last().copied().unwrap_or(f32::NEG_INFINITY);
            assert_eq!(highest(&x), expected);
        }
    }
}
