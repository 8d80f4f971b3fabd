//! GELU in the tanh form (arXiv 1606.08415), without a gate; its formula is in
//! [`geglu`](super::geglu).
//!
//! Legend: `t` tokens, `f` feed-forward width.

mod composed;
mod flex;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::gelu_composed;

/// `gelu(x)`, `[t, f]`.
pub fn gelu(x_tf: Tensor<2>) -> Tensor<2> {
    match form(&x_tf.device(), x_tf.dtype()) {
        Form::Composed | Form::Cube => gelu_composed(x_tf),
        Form::Flex => Tensor::from_dispatch(Dispatch::gelu_tanh(x_tf.into_dispatch())),
    }
}

/// The form that runs for inputs of this type on this device: the CPU form takes float32.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::flex_if(dtype == DType::F32, device)
}

/// Back ends with their own form of [`gelu()`].
#[backend_extension(Autodiff, Flex)]
pub trait Gelu: Backend {
    /// See [`gelu()`].
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`Gelu`].
pub trait GeluGrad: Gelu {
    /// Gradient of `x` for the output gradient `d`.
    fn gelu_grad(x: FloatTensor<Self>, d: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[derive(Debug, Clone)]
struct GeluOperation;

impl<B: GeluGrad> Differentiable<B, 1> for GeluOperation {
    fn forward(&self, [x]: [FloatTensor<B>; 1]) -> FloatTensor<B> {
        B::gelu_tanh(x)
    }

    fn backward(
        &self,
        [x]: [FloatTensor<B>; 1],
        d: FloatTensor<B>,
        _wanted: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::gelu_grad(x, d))]
    }
}

impl<B: GeluGrad, C: CheckpointStrategy> Gelu for Autodiff<B, C> {
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        register::<B, C, _, 1>(GeluOperation, [x])
    }
}
