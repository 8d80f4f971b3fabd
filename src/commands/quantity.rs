//! Quantities as people write them on a command line: `80GB`, `312e12`, `25GB/s`, `0.4`.

use std::fmt;

/// The error of a text that is not such a quantity: what is expected in its place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct Expected {
    what: &'static str,
    /// What to write instead, if the intention is clear.
    help: Option<String>,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} is expected", self.what)?;
        self.help.iter().try_for_each(|help| write!(f, "\nhelp: {help}"))
    }
}

impl Expected {
    fn plain(what: &'static str) -> Self {
        Self { what, help: None }
    }
}

/// A number and its unit, if it has one.
struct Quantity<'t> {
    number: f64,
    /// As written.
    unit: &'t str,
    /// The number times its unit's factor: finite and above 0.
    value: f64,
}

impl Quantity<'_> {
    /// The same in bytes if the unit is one of bits: the rates of networks are given in `Gb`, an
    /// eighth of `GB`.
    fn bits_in_bytes(&self) -> Option<String> {
        let prefix = self.unit.strip_suffix('b')?;
        let is_capital = prefix.starts_with(|c: char| c.is_ascii_uppercase());
        is_capital.then(|| format!("{}{prefix}B", self.number / 8.0))
    }
}

/// Reads a number followed by one of `units` (name, factor), or by none.
fn quantity<'t>(text: &'t str, units: &[(&str, f64)]) -> Option<Quantity<'t>> {
    let text = text.trim();
    // Letters outside ASCII may change their length with their case.
    let lower = text.to_ascii_lowercase();
    let is_unit = |unit: &str| lower.len() > unit.len() && lower.ends_with(unit);
    // The longest first: `gb` ends with `b`.
    let unit = units.iter().filter(|(unit, _)| is_unit(unit)).max_by_key(|(unit, _)| unit.len());
    let (unit, factor) = unit.copied().unwrap_or(("", 1.0));
    let (number, unit) = text.split_at(text.len() - unit.len());
    let number = number.trim();
    let starts_well = number.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let number = number.parse::<f64>().ok().filter(|_| starts_well)?;
    let value = number * factor;
    (value.is_finite() && value > 0.0).then_some(Quantity { number, unit, value })
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

/// A smaller size or rate must have lost its unit or its exponent.
const SMALLEST: f64 = 1e6;

/// `per` follows a unit of bits in the help.
fn in_bytes(text: &str, what: &'static str, per: &str) -> Result<f64, Expected> {
    let Some(found) = quantity(text, &BYTES) else { return Err(Expected::plain(what)) };
    let help = match found.bits_in_bytes() {
        Some(bytes) => format!("{} {}{per} are {bytes}", found.number, found.unit),
        None if found.unit.is_empty() && found.value < SMALLEST => {
            format!("give the unit: {}GB", found.number)
        }
        None => return Ok(found.value),
    };
    Err(Expected { what, help: Some(help) })
}

/// Bytes: `80GB` is 80·10⁹, `80GiB` is 80·2³⁰.
pub fn bytes(text: &str) -> Result<f64, Expected> {
    in_bytes(text, "a size such as 80GB, 80GiB or 80e9", "")
}

/// Bytes a second: `25GB` or `25GB/s`.
pub fn bytes_a_second(text: &str) -> Result<f64, Expected> {
    let text = text.trim();
    let size = text.strip_suffix("/s").unwrap_or(text);
    in_bytes(size, "bytes a second such as 25GB or 25e9", "/s")
}

/// Operations a second: `312e12`, `312T`, `312TFLOPS`.
pub fn operations(text: &str) -> Result<f64, Expected> {
    let units =
        [("g", 1e9), ("t", 1e12), ("p", 1e15), ("gflops", 1e9), ("tflops", 1e12), ("pflops", 1e15)];
    let rate = quantity(text, &units).map(|found| found.value).filter(|rate| *rate >= SMALLEST);
    rate.ok_or(Expected::plain("operations a second such as 312e12 or 312T"))
}

/// A share above 0, at most 1.
pub fn share(text: &str) -> Result<f64, Expected> {
    let share = quantity(text, &[]).map(|found| found.value).filter(|share| *share <= 1.0);
    share.ok_or(Expected::plain("a share above 0 and at most 1, such as 0.4"))
}

/// A whole number of at least 1; `_` and `,` may separate digits.
pub fn count(text: &str) -> Result<usize, Expected> {
    let what = "a whole number of at least 1 and at most a million million";
    whole(text, 1_000_000_000_000).ok_or(Expected::plain(what))
}

/// A number of ranks: [`count`] with a lower limit.
pub fn ranks(text: &str) -> Result<usize, Expected> {
    whole(text, 1_000_000)
        .ok_or(Expected::plain("a whole number of at least 1 and at most a million"))
}

fn whole(text: &str, most: usize) -> Option<usize> {
    let digits: String = text.chars().filter(|c| !matches!(c, '_' | ',')).collect();
    digits.parse().ok().filter(|count| (1..=most).contains(count))
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
    fn other_texts_are_refused() {
        for wrong in ["", "GB", "80GBs", "-80GB", "eighty", "0", "nan", "inf", "8o GB", "é", "1é"]
        {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(share("40").is_err() && share("0").is_err());
        assert!(count("0").is_err() && count("1.5").is_err() && count("-1").is_err());
        assert!(operations("fast").is_err() && operations("1e-300").is_err());
        // The Kelvin sign is `k` in lower case, and two bytes shorter.
        assert!(bytes("1\u{212a}B").is_err() && bytes("1e300GB").is_err());
    }

    #[test]
    fn a_forgotten_unit_and_bits_have_help() {
        let help = |read: Result<f64, Expected>| read.unwrap_err().help.unwrap();
        assert_eq!(help(bytes("80")), "give the unit: 80GB");
        assert_eq!(help(bytes_a_second("25")), "give the unit: 25GB");
        assert_eq!(help(bytes_a_second("200Gb/s")), "200 Gb/s are 25GB");
        assert_eq!(help(bytes("100 Gb")), "100 Gb are 12.5GB");
        assert_eq!(bytes("80gb"), Ok(80e9));
        assert_eq!(bytes("1000000"), Ok(1e6));
        assert_eq!(bytes("512kB"), Ok(512e3));
    }
}
