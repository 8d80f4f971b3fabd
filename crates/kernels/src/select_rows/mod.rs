//! Rows of a matrix by their indices, and the gradient of this selection.
//!
//! Legend: `t` rows of the matrix, `d` width, `n` chosen rows.

mod composed;
#[cfg(feature = "cube")]
pub(crate) mod cube;

#[cfg(feature = "cube")]
use std::sync::Arc;

#[cfg(feature = "cube")]
use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

#[cfg(feature = "cube")]
use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::select_rows_composed;
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;

/// The rows `rows` of a matrix, in that order: `[t, d]` → `[n, d]`. A row may be chosen more than
/// once; its gradients are then added in the order of `rows`.
pub fn select_rows(x_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    match form(&x_td.device(), x_td.dtype()) {
        #[cfg(feature = "cube")]
        Form::Cube => Tensor::from_dispatch(Dispatch::choose_rows(
            x_td.into_dispatch(),
            Arc::new(rows.iter().map(|row| *row as u32).collect()),
        )),
        _ => select_rows_composed(x_td, rows),
    }
}

/// The form that runs for inputs of this type on this device. The CPU has no form of its own.
pub fn form(device: &Device, dtype: DType) -> Form {
    match Form::fused(device, dtype) {
        Form::Flex => Form::Composed,
        form => form,
    }
}

/// Back ends with their own form of [`select_rows()`].
#[cfg(feature = "cube")]
#[backend_extension(Autodiff, Cube)]
pub trait SelectRows: Backend {
    /// See [`select_rows()`].
    fn choose_rows(x: FloatTensor<Self>, rows: Arc<Vec<u32>>) -> FloatTensor<Self>;
}

/// The backward half of [`SelectRows`].
#[cfg(feature = "cube")]
pub trait SelectRowsGrad: SelectRows {
    /// The gradient of a matrix with the shape of `x` for the output gradient `d` (`[n, d]`).
    fn choose_rows_grad(
        x: FloatTensor<Self>,
        rows: &[u32],
        d: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "cube")]
#[derive(Debug, Clone)]
struct SelectRowsOperation {
    rows: Arc<Vec<u32>>,
}

#[cfg(feature = "cube")]
impl<B: SelectRowsGrad> Differentiable<B, 1> for SelectRowsOperation {
    fn forward(&self, [x]: [FloatTensor<B>; 1]) -> FloatTensor<B> {
        B::choose_rows(x, self.rows.clone())
    }

    fn backward(
        &self,
        [x]: [FloatTensor<B>; 1],
        d: FloatTensor<B>,
        [wanted]: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [wanted.then(|| B::choose_rows_grad(x, &self.rows, d))]
    }
}

#[cfg(feature = "cube")]
impl<B: SelectRowsGrad, C: CheckpointStrategy> SelectRows for Autodiff<B, C> {
    fn choose_rows(x: FloatTensor<Self>, rows: Arc<Vec<u32>>) -> FloatTensor<Self> {
        register::<B, C, _, 1>(SelectRowsOperation { rows }, [x])
    }
}
