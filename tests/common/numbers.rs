//! Reproducible numbers, and how far two lists of numbers differ.
#![allow(dead_code)] // each test file uses its own part

use burn::tensor::{Device, Tensor, TensorData};

/// The finalizer of splitmix64: the source of all pseudo-random numbers in the tests.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number in [-0.5, 0.5) from a seed and an index.
pub fn uniform(seed: u64, index: u64) -> f32 {
    (splitmix64((seed << 32) + index) >> 40) as f32 / 16_777_216.0 - 0.5
}

/// `len` numbers in [-0.5, 0.5).
pub fn uniforms(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|index| uniform(seed, index)).collect()
}

/// A matrix of numbers in [-0.5, 0.5) on the CPU.
pub fn matrix(seed: u64, rows: usize, columns: usize) -> Tensor<2> {
    let data = TensorData::new(uniforms(seed, rows * columns), [rows, columns]);
    Tensor::from_data(data, &Device::flex())
}

/// Largest |a − b| over the largest |b|.
pub fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The elements of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to float32")
}
