//! Layer normalization (arXiv 1607.06450): `y = (x − mean(x)) / sqrt(var(x) + eps) · weight +
//! bias`, row by row, with the biased variance.
//!
//! Legend: `t` tokens, `d` width.

mod composed;
mod flex;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::layer_norm_composed;

/// Normalizes each row of `x_td` (`[t, d]`), scales it by `weight_d` and adds `bias_d` (both
/// `[d]`). The result has the type of the weight.
pub fn layer_norm(x_td: Tensor<2>, weight_d: Tensor<1>, bias_d: Tensor<1>, eps: f64) -> Tensor<2> {
    match form(&x_td.device(), [x_td.dtype(), weight_d.dtype()]) {
        Form::Composed | Form::Cube => layer_norm_composed(x_td, weight_d, bias_d, eps),
        Form::Flex => Tensor::from_dispatch(Dispatch::layer_norm_rows(
            x_td.into_dispatch(),
            weight_d.into_dispatch(),
            bias_d.into_dispatch(),
            eps as f32,
        )),
    }
}

/// The form that runs for rows and a weight of these types on this device: the CPU form takes
/// float32.
pub fn form(device: &Device, types: [DType; 2]) -> Form {
    Form::flex_if(types == [DType::F32; 2], device)
}

/// Back ends with their own form of [`layer_norm()`].
#[backend_extension(Autodiff, Flex)]
pub trait LayerNorm: Backend {
    /// See [`layer_norm()`].
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

/// The backward half of [`LayerNorm`].
pub trait LayerNormGrad: LayerNorm {
    /// Gradients of `x`, `weight` and `bias` for the output gradient `d`, each if `wanted`. The
    /// bias itself is not needed.
    fn layer_norm_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        d: FloatTensor<Self>,
        eps: f32,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];
}

#[derive(Debug, Clone)]
struct LayerNormOperation {
    eps: f32,
}

impl<B: LayerNormGrad> Differentiable<B, 3> for LayerNormOperation {
    fn forward(&self, [x, weight, bias]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
        B::layer_norm_rows(x, weight, bias, self.eps)
    }

    fn backward(
        &self,
        [x, weight, _]: [FloatTensor<B>; 3],
        d: FloatTensor<B>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        B::layer_norm_grad(x, weight, d, self.eps, wanted)
    }
}

impl<B: LayerNormGrad, C: CheckpointStrategy> LayerNorm for Autodiff<B, C> {
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        register::<B, C, _, 3>(LayerNormOperation { eps }, [x, weight, bias])
    }
}
