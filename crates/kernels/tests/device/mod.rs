//! Devices with the GPU form, by name, for tests and measurements.
#![allow(dead_code)] // each program uses some of the functions

use burn::tensor::Device;

/// The device of the tests: the one that `FAVONIUS_TEST_DEVICE` names, by default `cube-cpu`.
///
/// # Panics
/// If the build has no such device.
pub fn tested() -> Device {
    let name = std::env::var("FAVONIUS_TEST_DEVICE").unwrap_or_else(|_| "cube-cpu".into());
    named(&name).unwrap_or_else(|error| panic!("FAVONIUS_TEST_DEVICE: {error}"))
}

/// The device called `name`: `cuda`, `cuda:N` or `cube-cpu`.
///
/// # Errors
/// The name is another one, or the feature of this device is not in the build.
pub fn named(name: &str) -> Result<Device, String> {
    let index = match name.strip_prefix("cuda") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|index| index.parse().ok()),
        None if name == "cube-cpu" => return cube_cpu(),
        None => None,
    };
    match index {
        Some(index) => cuda(index),
        None => Err(format!("device `{name}` is not known; `cuda`, `cuda:N`, `cube-cpu` are")),
    }
}

#[cfg(feature = "cube-cpu")]
fn cube_cpu() -> Result<Device, String> {
    favonius_kernels::set_cpu_units(2);
    Ok(Device::cpu())
}

#[cfg(not(feature = "cube-cpu"))]
fn cube_cpu() -> Result<Device, String> {
    Err("this build has no `cube-cpu`; build with `--features cube-cpu`".into())
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, String> {
    let devices = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
    let found = devices.len();
    let message = || format!("no device `cuda:{index}`: {found} GPU(s) were found");
    devices.into_iter().nth(index).ok_or_else(message)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device, String> {
    Err("this build has no `cuda`; build with `--features cuda`".into())
}
