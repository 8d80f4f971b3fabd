//! Quantities as people write them on a command line: `80GB`, `312e12`, `25GB/s`, `0.4`.

/// Reads a number with one of `units` behind it, or none; each unit has its factor.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let is_unit = |unit: &str| text.len() > unit.len() && text.to_lowercase().ends_with(unit);
    // The longest first: `gb` ends with `b`.
    let unit = units.iter().filter(|(unit, _)| is_unit(unit)).max_by_key(|(unit, _)| unit.len());
    let (unit, factor) = unit.copied().unwrap_or(("", 1.0));
    let number = text[..text.len() - unit.len()].trim();
    let starts_well = number.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let value = number.parse::<f64>().ok().filter(|value| starts_well && value.is_finite())?;
    Some(value * factor).filter(|value| *value > 0.0)
}

const BYTES: [(&str, f64); 9] = [
    ("b", 1.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
];

/// Bytes: `80GB` is 80·10⁹, `80GiB` is 80·2³⁰. The error is what belongs there.
pub fn bytes(text: &str) -> Result<f64, String> {
    quantity(text, &BYTES).ok_or_else(|| "a size such as 80GB, 80GiB or 80e9".to_string())
}

/// Bytes a second: `25GB` or `25GB/s`.
pub fn bytes_a_second(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let size = text.strip_suffix("/s").unwrap_or(text);
    quantity(size, &BYTES).ok_or_else(|| "bytes a second such as 25GB or 25e9".to_string())
}

/// Operations a second: `312e12`, `312T`, `312TFLOPS`.
pub fn operations(text: &str) -> Result<f64, String> {
    let units =
        [("g", 1e9), ("t", 1e12), ("p", 1e15), ("gflops", 1e9), ("tflops", 1e12), ("pflops", 1e15)];
    quantity(text, &units).ok_or_else(|| "operations a second such as 312e12 or 312T".to_string())
}

/// A share above 0, at most 1.
pub fn share(text: &str) -> Result<f64, String> {
    let share = quantity(text, &[]).filter(|share| *share <= 1.0);
    share.ok_or_else(|| "a share above 0 and at most 1, such as 0.4".to_string())
}

/// A whole number of at least 1; `_` and `,` may stand between digits.
pub fn count(text: &str) -> Result<usize, String> {
    let digits: String = text.chars().filter(|c| !matches!(c, '_' | ',')).collect();
    let count = digits.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "a whole number of at least 1".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_and_without_units() {
        assert_eq!(bytes("80GB"), Ok(80e9));
        assert_eq!(bytes("80 GiB"), Ok(80.0 * 1_073_741_824.0));
        assert_eq!(bytes("80e9"), Ok(80e9));
        assert_eq!(bytes("1.5tb"), Ok(1.5e12));
        assert_eq!(bytes_a_second("25GB/s"), Ok(25e9));
        assert_eq!(operations("312e12"), Ok(312e12));
        assert_eq!(operations("312TFLOPS"), Ok(312e12));
        assert_eq!(share("0.4"), Ok(0.4));
        assert_eq!(count("61,966"), Ok(61_966));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for wrong in ["", "GB", "80GBs", "-80GB", "eighty", "0", "nan", "inf", "8o GB", "é", "1é"]
        {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(share("40").is_err() && share("0").is_err());
        assert!(count("0").is_err() && count("1.5").is_err() && count("-1").is_err());
        assert!(operations("fast").is_err());
    }
}
