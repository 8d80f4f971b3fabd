//! Root-mean-square normalization (arXiv 1910.07467): `y = x / sqrt(mean(x²) + eps) · weight`, row
//! by row.
//!
//! Legend: `t` tokens, `d` width.

mod composed;
#[cfg(feature = "cube")]
mod cube;
mod flex;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::rms_norm_composed;
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;

/// Normalizes each row of `x_td` (`[t, d]`) and scales it by `weight_d` (`[d]`). The result has the
/// type of the weight.
pub fn rms_norm(x_td: Tensor<2>, weight_d: Tensor<1>, eps: f64) -> Tensor<2> {
    match form(&x_td.device(), [x_td.dtype(), weight_d.dtype()]) {
        Form::Composed => rms_norm_composed(x_td, weight_d, eps),
        Form::Flex | Form::Cube => Tensor::from_dispatch(Dispatch::rms_norm(
            x_td.into_dispatch(),
            weight_d.into_dispatch(),
            eps as f32,
        )),
    }
}

/// The form that runs for rows and a weight of these types on this device.
pub fn form(device: &Device, [rows, weight]: [DType; 2]) -> Form {
    let form = Form::fused(device, rows);
    if form == Form::fused(device, weight) { form } else { Form::Composed }
}

/// Back ends with their own form of [`rms_norm()`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"))]
pub trait RmsNorm: Backend {
    /// See [`rms_norm()`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
}

/// The backward half of [`RmsNorm`].
pub trait RmsNormGrad: RmsNorm {
    /// Gradients of `x` and `weight` for the output gradient `d`, each if `wanted`.
    fn rms_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2];
}

#[derive(Debug, Clone)]
struct RmsNormOperation {
    eps: f32,
}

impl<B: RmsNormGrad> Differentiable<B, 2> for RmsNormOperation {
    fn forward(&self, [x, weight]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::rms_norm(x, weight, self.eps)
    }

    fn backward(
        &self,
        [x, weight]: [FloatTensor<B>; 2],
        d: FloatTensor<B>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        B::rms_norm_grad(x, weight, d, self.eps, wanted)
    }
}

impl<B: RmsNormGrad, C: CheckpointStrategy> RmsNorm for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        register::<B, C, _, 2>(RmsNormOperation { eps }, [x, weight])
    }
}
