//! The forms in which an operation exists.
//!
//! Each operation has a function `form(device, dtype)` that says which one runs. A form for another
//! kind of device is a variant here and a file in the operation's folder. Callers of the operations
//! do not change; each `match form(…)` and `work_bytes`, `score_bytes` do.

use burn::tensor::Device;

/// A form of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Multi-threaded passes over slices, on Burn's pure-Rust CPU back end (Flex).
    Flex,
    /// Composed of Burn's own operations, on every device and in every precision.
    Composed,
}

impl Form {
    /// [`Self::Flex`] on the Flex device if the CPU form supports the input (`is_supported`), else
    /// [`Self::Composed`].
    pub fn flex_if(is_supported: bool, device: &Device) -> Self {
        match is_supported && device.clone().without_autodiff() == Device::flex() {
            true => Self::Flex,
            false => Self::Composed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autodiff_does_not_change_the_form() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            assert_eq!(Form::flex_if(true, &device), Form::Flex);
            assert_eq!(Form::flex_if(false, &device), Form::Composed);
        }
    }
}
