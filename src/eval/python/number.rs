//! Python's `float(text)` and `str(float)`, and NumPy's sums.

use super::text::trimmed;

/// `float(text)`; `None` if Python raises ValueError.
pub fn float(text: &str) -> Option<f64> {
    let text = trimmed(text);
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    match bare.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => return Some(sign * f64::INFINITY),
        "nan" => return Some(f64::NAN),
        _ => {}
    }
    let is_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && bare.chars().all(|c| c.is_ascii_digit() || "._eE+-".contains(c));
    if !is_number {
        return None;
    }
    // An underscore may stand between two digits only.
    let bytes = bare.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let misplaced =
        |at: usize| bytes[at] == b'_' && !(digit(at.checked_sub(1)) && digit(Some(at + 1)));
    if (0..bytes.len()).any(misplaced) {
        return None;
    }
    bare.replace('_', "").parse::<f64>().ok().map(|value| sign * value)
}

/// `str(value)`: the shortest digits that give the same number, with an exponent below 1e-4 and
/// from 1e16 on.
pub fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `numpy.sum`: pairwise, with eight sums in a block of up to 128 numbers.
pub fn sum(values: &[f64]) -> f64 {
    match values.len() {
        0..8 => values.iter().fold(0.0, |sum, value| sum + value),
        8..=128 => {
            let blocks = values.chunks_exact(8);
            let rest = blocks.remainder();
            let mut sums = [0.0; 8];
            for block in blocks {
                for (sum, value) in sums.iter_mut().zip(block) {
                    *sum += value;
                }
            }
            let [a, b, c, d, e, f, g, h] = sums;
            rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value)
        }
        length => {
            let (first, second) = values.split_at(length / 2 / 8 * 8);
            sum(first) + sum(second)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_numbers_as_in_python() {
        for (text, expected) in [
            (" 12 ", 12.0),
            ("1_000", 1000.0),
            ("-1.5e3", -1500.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("+Infinity", f64::INFINITY),
        ] {
            assert_eq!(float(text), Some(expected), "{text}");
        }
        for text in ["", "1,000", "1__0", "_1", "1_", "e5", "--1", "0x10", "1 2", ".", "1e"] {
            assert_eq!(float(text), None, "{text}");
        }
        assert!(float("NaN").is_some_and(f64::is_nan));
    }

    #[test]
    fn numbers_are_texts_as_in_python() {
        for (value, expected) in [
            (1577.0, "1577.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9999999999999998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (0.0, "0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_text(value), expected);
        }
    }

    /// The sums are those of NumPy 2 for `numpy.sum(1 / (numpy.arange(n) + 1.0) ** 2)`.
    #[test]
    fn sums_are_numpys() {
        let value = |at: usize| 1.0 / ((at as f64 + 1.0) * (at as f64 + 1.0));
        let sum_of = |count: usize| sum(&(0..count).map(value).collect::<Vec<_>>());
        assert_eq!(sum_of(7), 1.511797052154195);
        assert_eq!(sum_of(29), 1.6110390064904867);
        assert_eq!(sum_of(300), 1.641606282897623);
    }
}
