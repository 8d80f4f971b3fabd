//! Devices by name, with clear errors for those that are missing.

use burn::tensor::Device;

use crate::recipe::DeviceChoice;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    #[error(
        "device `{0}` is not known; `cpu`, `tch`, `tch:cuda:N`, `cuda`, `cuda:N` and `cube-cpu` are"
    )]
    Unknown(String),
    #[error(
        "device `{device}` is not in this build; \
         build with `cargo build --release --features {feature}`"
    )]
    NotBuilt { device: String, feature: &'static str },
    #[error("device `{device}`: {reason}")]
    NotThere { device: String, reason: String },
}

/// The device called `name`, without autodiff: `cpu` (Flex), `tch` (LibTorch on the CPU),
/// `tch:cuda:N` (LibTorch on a GPU), `cuda`, `cuda:N`, `cube-cpu` (the GPU's kernels on the CPU).
pub fn find(name: &str) -> Result<Device, DeviceError> {
    match DeviceChoice::from_name(name) {
        Some(DeviceChoice::Cpu) => Ok(Device::flex()),
        Some(DeviceChoice::Tch) => libtorch(),
        Some(DeviceChoice::TchCuda(index)) => libtorch_cuda(name, index),
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

/// A GPU of LibTorch. A LibTorch without CUDA has none.
#[cfg(feature = "tch")]
fn libtorch_cuda(name: &str, index: usize) -> Result<Device, DeviceError> {
    gpu_of(burn::tensor::DeviceType::LibTorch, name, index)
}

#[cfg(not(feature = "tch"))]
fn libtorch_cuda(name: &str, _index: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device: name.into(), feature: "tch" })
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, index: usize) -> Result<Device, DeviceError> {
    gpu_of(burn::tensor::DeviceType::Cuda, name, index)
}

/// Enumeration finds no device if the driver is missing; opening a device would panic then.
#[cfg(any(feature = "cuda", feature = "tch"))]
fn gpu_of(
    back_end: burn::tensor::DeviceType,
    name: &str,
    index: usize,
) -> Result<Device, DeviceError> {
    let devices = Device::enumerate(back_end).into_vec();
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
        for name in ["tpu", "cuda:x", "tch:1", "tch:cuda1", "tch:cuda:x"] {
            assert_eq!(find(name), Err(DeviceError::Unknown(name.into())));
        }
    }

    #[test]
    #[cfg(not(any(feature = "cuda", feature = "tch")))]
    fn devices_outside_the_build_name_their_feature() {
        let error = find("cuda").unwrap_err().to_string();
        assert!(error.contains("--features cuda"), "{error}");
        for device in ["tch", "tch:cuda", "tch:cuda:1"] {
            assert!(find(device).unwrap_err().to_string().contains("--features tch"), "{device}");
        }
    }

    #[test]
    #[cfg(feature = "tch")]
    fn a_gpu_that_libtorch_does_not_have_is_refused() {
        let error = find("tch:cuda:99").unwrap_err();
        assert!(matches!(error, DeviceError::NotThere { .. }), "{error}");
    }
}
