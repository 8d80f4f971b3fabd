//! Round ticks of an axis, and their labels.

/// If an axis ends below this value, its labels are powers of ten.
const SMALL: f64 = 1e-4;
/// The same holds from this value on, if ticks are millions apart.
const HUGE: f64 = 1e9;

/// The values and labels of an axis's ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticks {
    /// Ascending, all within the range.
    pub values: Vec<f64>,
    pub labels: Vec<String>,
}

impl Ticks {
    /// About `wanted` ticks within `low..=high`, spaced by one, two or five times a power of ten.
    /// Never many more, even if the range is infinite. `whole`: no fractions.
    pub fn within(low: f64, high: f64, wanted: usize, whole: bool) -> Ticks {
        let step = step(high - low, wanted, whole);
        let first = (low / step - 1e-9).ceil();
        let last = (high / step + 1e-9).floor();
        // The cast turns NaN into 0.
        let count = ((last - first + 1.0) as usize).min(wanted.max(1) + 2);
        let values: Vec<f64> = (0..count).map(|index| (first + index as f64) * step).collect();
        let largest = values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let labels = values.iter().map(|value| label(*value, step, largest)).collect();
        Ticks { values, labels }
    }
}

/// The round spacing that gives `wanted` ticks or a few less.
fn step(range: f64, wanted: usize, whole: bool) -> f64 {
    let rough = range / wanted.max(1) as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.999);
    let step = factor.unwrap_or(10.0) * power;
    if whole { step.max(1.0) } else { step }
}

/// The label of a tick, with as many decimals as `step` needs. Uses powers of ten if the largest
/// tick is very small or huge, and `k` for thousands.
fn label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let (sign, size) = (if value < 0.0 { "−" } else { "" }, value.abs());
    // The number of digits that distinguish this tick from the next.
    let exponent = (step * 1.000_001).log10().floor() as i32;
    let is_small = exponent < -4 && largest * 1.000_001 < SMALL;
    if is_small || (exponent >= 6 && largest >= HUGE) {
        let own = (size * 1.000_001).log10().floor() as i32;
        let decimals = usize::try_from(own - exponent).unwrap_or(0);
        let own_sign = if own < 0 { "−" } else { "" };
        return format!("{sign}{:.decimals$}e{own_sign}{}", size / 10f64.powi(own), own.abs());
    }
    if size >= 1e6 && exponent >= 4 {
        let decimals = usize::try_from(6 - exponent).unwrap_or(0);
        return format!("{sign}{:.decimals$}M", size / 1e6);
    }
    if size >= 1e4 && exponent >= 2 {
        let decimals = usize::try_from(3 - exponent).unwrap_or(0);
        return format!("{sign}{:.decimals$}k", size / 1e3);
    }
    let decimals = usize::try_from(-exponent).unwrap_or(0);
    format!("{sign}{size:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, wanted: usize) -> String {
        Ticks::within(low, high, wanted, false).labels.join(" ")
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(0.0, 1.0, 5), "0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(-4.6, 0.1, 5), "−4 −3 −2 −1 0");
        assert_eq!(labels(0.0, 5811.0, 6), "0 1000 2000 3000 4000 5000");
        assert_eq!(labels(0.0, 5e-7, 5), "0 1e−7 2e−7 3e−7 4e−7 5e−7");
        assert_eq!(labels(0.0, 1.2e-6, 6), "0 2e−7 4e−7 6e−7 8e−7 1.0e−6 1.2e−6");
        assert_eq!(labels(0.0, 42_000.0, 4), "0 20k 40k");
        assert_eq!(labels(9_000.0, 12_000.0, 6), "9000 9500 10.0k 10.5k 11.0k 11.5k 12.0k");
        assert_eq!(labels(0.0, 2.5e6, 5), "0 500k 1.0M 1.5M 2.0M 2.5M");
        assert_eq!(labels(0.66, 0.7, 4), "0.66 0.67 0.68 0.69 0.70");
    }

    #[test]
    fn ticks_that_are_close_together_are_told_apart() {
        assert_eq!(labels(-2.8001, -2.8, 4), "−2.80010 −2.80005 −2.80000");
        assert_eq!(labels(0.025, 0.0252, 4), "0.02500 0.02505 0.02510 0.02515 0.02520");
        assert_eq!(labels(12.0, 12.00002, 2), "12.00000 12.00001 12.00002");
        assert_eq!(labels(0.0, 2e-4, 4), "0 0.00005 0.00010 0.00015 0.00020");
        assert_eq!(labels(-2e-5, 2e-5, 4), "−2e−5 −1e−5 0 1e−5 2e−5");
    }

    #[test]
    fn huge_ticks_are_in_powers_of_ten() {
        assert_eq!(labels(0.0, 2e12, 4), "0 5e11 1.0e12 1.5e12 2.0e12");
        assert_eq!(labels(-3e20, 0.0, 3), "−3e20 −2e20 −1e20 0");
    }

    #[test]
    fn whole_axes_have_whole_ticks() {
        assert_eq!(Ticks::within(0.0, 3.0, 6, true).values, [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_flat_range_has_its_own_value() {
        assert_eq!(Ticks::within(2.0, 2.0, 5, false).values, [2.0]);
        assert!(Ticks::within(f64::NAN, f64::NAN, 5, false).values.len() <= 1);
    }

    #[test]
    fn no_range_has_many_ticks() {
        for (low, high) in [
            (f64::MIN, f64::MAX),
            (f64::NEG_INFINITY, f64::INFINITY),
            (0.0, f64::INFINITY),
            (1e300, -1e300),
            (1e20, 1e20),
        ] {
            assert!(Ticks::within(low, high, 6, false).values.len() <= 8, "{low} {high}");
        }
        assert_eq!(labels(-1e307, 1e307, 4), "−1.0e307 −5e306 0 5e306 1.0e307");
    }
}
