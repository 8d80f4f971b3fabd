//! Devices by name, with clear errors for those that are missing.

use burn::tensor::Device;

use crate::recipe::DeviceChoice;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error("device `{0}` is not known; `cpu`, `tch`, `cuda`, `cuda:N` and `cube-cpu` are")]
    Unknown(String),
    #[error(
        "device `{device}` is not in this build; \
         build with `cargo build --release --features {feature}`"
    )]
    NotBuilt { device: String, feature: &'static str },
    #[error("device `{device}`: {reason}")]
    NotThere { device: String, reason: String },
}

/// The device called `name`, without autodiff: `cpu` (Flex), `tch` (LibTorch on the CPU), `cuda`,
/// `cuda:N`, `cube-cpu` (the GPU's kernels on the CPU).
pub fn find(name: &str) -> Result<Device, DeviceError> {
    match DeviceChoice::from_name(name) {
        Some(DeviceChoice::Cpu) => Ok(Device::flex()),
        Some(DeviceChoice::Tch) => libtorch(),
        Some(DeviceChoice::Cuda(index)) => cuda(name, index),
        Some(DeviceChoice::CubeCpu) => cube_cpu(),
        None => Err(DeviceError::Unknown(name.into())),
    }
}

#[cfg(feature = "tch")]
#[expect(
    deprecated,
    reason = "Burn 0.22 still has LibTorch, and says that a later release will not"
)]
fn libtorch() -> Result<Device, DeviceError> {
    Ok(Device::libtorch())
}

#[cfg(not(feature = "tch"))]
fn libtorch() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: "tch".into(), feature: "tch" })
}

/// Enumeration finds no device if the driver is missing; opening a device would panic then.
#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device, DeviceError> {
    let devices = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
    let found = devices.len();
    devices.into_iter().nth(index).ok_or_else(|| DeviceError::NotThere {
        device: name.into(),
        reason: match found {
            0 => "no NVIDIA driver or no GPU was found; `--device=cpu` runs without one".into(),
            _ => format!("this machine has {found} GPU(s), numbered from 0"),
        },
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: name.into(), feature: "cuda" })
}

#[cfg(feature = "cube-cpu")]
fn cube_cpu() -> Result<Device, DeviceError> {
    Ok(Device::cpu())
}

#[cfg(not(feature = "cube-cpu"))]
fn cube_cpu() -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: "cube-cpu".into(), feature: "cube-cpu" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(find("cpu"), Ok(Device::flex()));
    }

    #[test]
    fn names_that_mean_nothing_are_refused() {
        assert_eq!(find("tpu"), Err(DeviceError::Unknown("tpu".into())));
        assert_eq!(find("cuda:x"), Err(DeviceError::Unknown("cuda:x".into())));
    }

    #[test]
    #[cfg(not(any(feature = "cuda", feature = "tch")))]
    fn devices_outside_the_build_name_their_feature() {
        let error = find("cuda").unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
        assert!(find("tch").unwrap_err().to_string().contains("--features tch"));
    }
}
