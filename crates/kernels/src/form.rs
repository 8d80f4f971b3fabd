//! The forms in which an operation exists.
//!
//! Each operation has a function `form(device, dtype)` that says which one runs. A form for another
//! kind of device is a variant here and a file in the operation's folder. Callers of the operations
//! do not change; each `match form(…)` and `work_bytes`, `score_bytes` do.

use burn::tensor::{DType, Device};

/// A form of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Multi-threaded passes over slices, on Burn's pure-Rust CPU back end (Flex).
    Flex,
    /// CubeCL kernels, on NVIDIA GPUs and on CubeCL's CPU runtime.
    Cube,
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

    /// The form of an operation that has both fused forms: the CPU form, which takes float32, and
    /// the GPU form, which also takes bfloat16 and float16.
    pub fn fused(device: &Device, dtype: DType) -> Self {
        match takes(dtype) && is_cube(device) {
            true => Self::Cube,
            false => Self::flex_if(dtype == DType::F32, device),
        }
    }
}

/// Whether tensors of this device belong to Burn's back end `Cube`.
#[cfg(feature = "cube")]
pub(crate) fn is_cube(device: &Device) -> bool {
    use burn::backend::DispatchDevice;
    matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_))
}

/// Without CubeCL no device has the back end `Cube`.
#[cfg(not(feature = "cube"))]
pub(crate) fn is_cube(_: &Device) -> bool {
    false
}

#[cfg(feature = "cube")]
use crate::cube::takes;

#[cfg(not(feature = "cube"))]
fn takes(_: DType) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autodiff_does_not_change_the_form() {
        for device in [Device::flex(), Device::flex().autodiff()] {
            assert_eq!(Form::flex_if(true, &device), Form::Flex);
            assert_eq!(Form::flex_if(false, &device), Form::Composed);
            assert_eq!(Form::fused(&device, DType::F32), Form::Flex);
            assert_eq!(Form::fused(&device, DType::BF16), Form::Composed);
        }
    }
}
