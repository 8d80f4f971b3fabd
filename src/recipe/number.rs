//! Numbers as people and PyYAML write them, and the ranges that keys accept.

/// The range of numbers that a key accepts.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    low: f64,
    low_open: bool,
    high: f64,
    high_open: bool,
    /// The range in words; in messages it follows "must be".
    pub words: &'static str,
    /// The words for a number above the range.
    too_large: &'static str,
}

impl Bounds {
    const fn new(
        low: f64,
        low_open: bool,
        high: f64,
        high_open: bool,
        words: &'static str,
    ) -> Self {
        Bounds { low, low_open, high, high_open, words, too_large: words }
    }

    /// The same range with an upper end, `high`, that only messages about larger numbers name.
    const fn up_to(self, high: f64, too_large: &'static str) -> Self {
        Bounds { high, high_open: false, too_large, ..self }
    }

    /// The range in words, for a message about `x`, which is outside.
    pub fn words_for(self, x: f64) -> &'static str {
        if x > self.high { self.too_large } else { self.words }
    }

    /// Whether `x` is in the range.
    pub fn contain(self, x: f64) -> bool {
        let low = if self.low_open { x > self.low } else { x >= self.low };
        let high = if self.high_open { x < self.high } else { x <= self.high };
        low && high
    }
}

/// x > 0.
pub(super) const POSITIVE: Bounds = Bounds::new(0.0, true, f64::INFINITY, true, "above 0");
/// 0 < x ≤ 10⁶: a larger number of epochs is a mistake.
pub(super) const EPOCHS: Bounds =
    Bounds::new(0.0, true, 1e6, false, "above 0 and at most a million");
/// x ≥ 0.
pub(super) const NOT_NEGATIVE: Bounds = Bounds::new(0.0, false, f64::INFINITY, true, "0 or above");
/// x ≥ 1.
const ANY_COUNT: Bounds = Bounds::new(1.0, false, f64::INFINITY, true, "at least 1");
/// 1 ≤ x ≤ 10⁹: a larger count is a mistake, and products of counts must fit 64 bits.
pub(super) const AT_LEAST_1: Bounds = ANY_COUNT.up_to(1e9, "at most a billion");
/// 1 ≤ x ≤ 10⁶: rows of a batch, micro-batches of a step.
pub(super) const OF_A_STEP: Bounds = ANY_COUNT.up_to(1e6, "at most a million");
/// 0 ≤ x ≤ 1.
pub(super) const SHARE: Bounds = Bounds::new(0.0, false, 1.0, false, "from 0 to 1");
/// 0 ≤ x < 1: the decay of a running mean.
pub(super) const BELOW_1: Bounds = Bounds::new(0.0, false, 1.0, true, "at least 0 and below 1");
/// 0 ≤ x < 0.5: the share of flipped labels.
pub(super) const BELOW_HALF: Bounds =
    Bounds::new(0.0, false, 0.5, true, "at least 0 and below 0.5");
/// 0 < x ≤ 1.
pub(super) const PART: Bounds = Bounds::new(0.0, true, 1.0, false, "above 0 and at most 1");

/// Reads a finite number. `_` may separate digits, and `5e-7` is a number, although PyYAML reads it
/// as text.
pub(super) fn number(text: &str) -> Option<f64> {
    let digits = without_underscores(text)?;
    let starts_well =
        digits.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    digits.parse().ok().filter(|x: &f64| starts_well && x.is_finite())
}

/// Reads a whole number without leading zeros (YAML 1.1 reads those as octal).
pub(super) fn whole_number(text: &str) -> Option<i64> {
    let digits = without_underscores(text)?;
    let bare = digits.trim_start_matches(['+', '-']);
    let octal = bare.len() > 1 && bare.starts_with('0');
    digits.parse().ok().filter(|_| !octal)
}

fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let between_digits = |i: usize| {
        i > 0 && bytes[i - 1].is_ascii_digit() && bytes.get(i + 1).is_some_and(u8::is_ascii_digit)
    };
    let well = text.match_indices('_').all(|(i, _)| between_digits(i));
    well.then(|| text.replace('_', ""))
}

/// Writes a number as people do: 0.1, 10, 5e-7.
pub(super) fn plain(x: f64) -> String {
    match x != 0.0 && x.abs() < 1e-3 {
        true => format!("{x:e}"),
        false => x.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_and_pyyaml_write_them() {
        let read = ["5.0e-7", "5e-7", "5E-07", "1_000", "-1", ".5", "2.", "+3"].map(number);
        let expected = [5e-7, 5e-7, 5e-7, 1000.0, -1.0, 0.5, 2.0, 3.0].map(Some);
        assert_eq!(read, expected);
        for text in [
            "", "nan", "inf", ".inf", "-.inf", ".nan", "1e999", "_1", "1__0", "0x10", "1,5", "fast",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_strict() {
        assert_eq!(["16", "1_000", "-1", "0"].map(whole_number), [16, 1000, -1, 0].map(Some));
        for text in ["16.0", "1e3", "010", "", "many"] {
            assert_eq!(whole_number(text), None, "{text}");
        }
    }

    #[test]
    fn defaults_print_as_people_write_them() {
        assert_eq!(
            [0.1, 10.0, 5e-7, 1e-8, 0.999].map(plain),
            ["0.1", "10", "5e-7", "1e-8", "0.999"]
        );
    }
}
