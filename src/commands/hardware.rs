//! The hardware options of `plan` and `sweep`.

use super::{quantity, take_value, usage};
use crate::plan::forecast::Hardware;

/// Takes its options out of what stands behind the recipe's name.
pub fn take(overrides: &mut Vec<String>, ranks: usize) -> anyhow::Result<Hardware> {
    Ok(Hardware {
        ranks,
        device_memory: option(overrides, "--device-memory", quantity::bytes)?,
        flops: option(overrides, "--flops", quantity::operations)?,
        bandwidth: option(overrides, "--bandwidth", quantity::bytes_a_second)?,
        mfu: option(overrides, "--mfu", quantity::share)?,
        rows: option(overrides, "--rows", quantity::count)?,
    })
}

/// The value of `--key=value` or `--key value`, which is taken out.
pub fn option<T>(
    overrides: &mut Vec<String>,
    key: &str,
    read: impl Fn(&str) -> Result<T, quantity::Expected>,
) -> anyhow::Result<Option<T>> {
    let Some(value) = take_value(overrides, key) else { return Ok(None) };
    match read(&value) {
        Ok(value) => Ok(Some(value)),
        Err(expected) => {
            let help = expected.help.map(|help| format!("\nhelp: {help}")).unwrap_or_default();
            usage(format!("`{key}` needs {}, not `{value}`{help}", expected.what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_out_and_wrong_ones_named() {
        let mut given: Vec<String> =
            ["--beta=0.1", "--device-memory=80GB", "--flops", "312e12"].map(String::from).into();
        let hardware = take(&mut given, 16).unwrap();
        assert_eq!(given, ["--beta=0.1"]);
        assert_eq!((hardware.ranks, hardware.device_memory), (16, Some(80e9)));
        assert_eq!((hardware.flops, hardware.mfu), (Some(312e12), None));
        for (wrong, word) in [
            ("--rows=0", "whole number"),
            ("--device-memory=lots", "80GB"),
            ("--mfu=40", "share"),
            ("--flops", "312e12"),
        ] {
            let error = take(&mut vec![wrong.to_string()], 1).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
