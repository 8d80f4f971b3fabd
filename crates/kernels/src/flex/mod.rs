//! Building blocks of the CPU forms: matrix products, sums in SIMD lanes, `exp`, output buffers,
//! and the slices behind Burn's tensors.

pub(crate) mod exp;
pub mod fresh;
pub(crate) mod gated;
pub(crate) mod lanes;
pub(crate) mod product;

use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;

/// A tensor with the same elements in row-major order; it is copied only if its own order differs.
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
