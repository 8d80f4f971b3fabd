//! The decoder's own operations, each with a hand-written backward pass.
//!
//! On the CPU (Flex, float32) each runs as one multi-threaded pass over slices; on every other
//! back end, and in other precisions, the same function is composed of Burn's tensor operations.
//! Both forms are public, and property tests hold them against each other.
//!
//! Results do not depend on the number of threads: a unit of work is a fixed set of rows, and
//! sums over units are taken in the order of the rows.

pub mod attention;
pub mod flex;
pub mod linear;
pub mod linear_logp;
pub mod rms_norm;
pub mod swiglu;
pub mod update;

/// `timed!("name");` measures the rest of the block as this operation if something subscribes to
/// the target `profile` (see `commands/profile.rs`).
macro_rules! timed {
    ($name:literal) => {
        let _span = tracing::trace_span!(target: "profile", $name).entered();
    };
}

pub use crate::kernels::flex::exp::exp;
pub(crate) use crate::kernels::flex::exp::vectorized;
pub(crate) use timed;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Whether `x` lies where the fused form of an operation runs: Flex, float32.
pub fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_flex(&x.device())
}

/// Whether a device is Burn's pure-Rust CPU back end.
pub fn is_flex(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// Indices as a tensor, `[len]`.
pub fn index_tensor(
    indices: impl ExactSizeIterator<Item = u32>,
    device: &Device,
) -> Tensor<1, Int> {
    let len = indices.len();
    let values: Vec<i32> = indices.map(|index| index as i32).collect();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// The rows `rows` of a matrix, in that order: `[t, d]` → `[rows, d]`.
pub fn select_rows(x_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows = index_tensor(rows.iter().map(|row| *row as u32), &x_td.device());
    x_td.select(0, rows)
}

/// The elements of a Flex tensor in row-major order, copied only where they are not so already.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The slice behind a tensor that [`contiguous`] returned.
pub(crate) fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("the caller made the tensor contiguous float32")
}

/// A Flex tensor over `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}
