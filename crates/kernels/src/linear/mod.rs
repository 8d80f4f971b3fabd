//! `x · weightᵀ` with the weight in Hugging Face's `[out, in]` layout.
//!
//! Burn's own matmul returns the weight's gradient as a transposed view, which must be copied
//! before it can be used; here the gradient has the layout of the weight.
//!
//! Legend: `t` tokens, `i` input width, `o` output width.

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
use super::timed;
pub use composed::linear_composed;

/// `x_ti` (`[t, i]`) times the transpose of `weight_oi` (`[o, i]`): `[t, o]`.
pub fn linear(x_ti: Tensor<2>, weight_oi: Tensor<2>) -> Tensor<2> {
    match form(&x_ti.device(), x_ti.dtype()) {
        Form::Composed => linear_composed(x_ti, weight_oi),
        Form::Flex | Form::Cube => Tensor::from_dispatch(Dispatch::linear_no_bias(
            x_ti.into_dispatch(),
            weight_oi.into_dispatch(),
        )),
    }
}

/// The form that runs for inputs of this type on this device: the CPU form takes every type.
pub fn form(device: &Device, dtype: DType) -> Form {
    match Form::fused(device, dtype) {
        Form::Cube => Form::Cube,
        _ => Form::flex_if(true, device),
    }
}

/// Back ends with their own form of [`linear()`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"))]
pub trait LinearNoBias: Backend {
    /// See [`linear()`].
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`LinearNoBias`].
pub trait LinearGrad: LinearNoBias {
    /// Gradient of the input, `d[t, out] · weight[out, in]`.
    fn linear_input_grad(d: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Gradient of the weight, `d[t, out]ᵀ · x[t, in]`.
    fn linear_weight_grad(d: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[derive(Debug, Clone)]
struct LinearOperation;

impl<B: LinearGrad> Differentiable<B, 2> for LinearOperation {
    fn forward(&self, [x, weight]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::linear_no_bias(x, weight)
    }

    /// `dx = d · weight`, `dweight = dᵀ · x`.
    fn backward(
        &self,
        [x, weight]: [FloatTensor<B>; 2],
        d: FloatTensor<B>,
        [x_wanted, weight_wanted]: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        timed!("linear.backward");
        let dx = x_wanted.then(|| B::linear_input_grad(d.clone(), weight));
        [dx, weight_wanted.then(|| B::linear_weight_grad(d, x))]
    }
}

impl<B: LinearGrad, C: CheckpointStrategy> LinearNoBias for Autodiff<B, C> {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        register::<B, C, _, 2>(LinearOperation, [x, weight])
    }
}
