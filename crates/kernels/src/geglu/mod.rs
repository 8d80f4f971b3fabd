//! GeGLU (arXiv 2002.05202): `gelu(gate) · up`, with the tanh form of GELU (arXiv 1606.08415):
//! `gelu(x) = x · sigmoid(z(x))`, `z(x) = 2 √(2/π) (x + 0.044715 x³)`. As `sigmoid(2y)` is
//! `(1 + tanh y) / 2`, this is `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
//!
//! Legend: `t` tokens, `f` feed-forward width.

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
pub use composed::geglu_composed;
pub(crate) use flex::{gelu_slope, share};

/// `2 √(2/π)`.
pub(crate) const SLOPE: f64 = 1.595_769_121_605_730_7;
/// The factor of `x³`.
pub(crate) const CUBIC: f64 = 0.044_715;

/// `gelu(gate) · up`, all `[t, f]`.
pub fn geglu(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    match form(&gate_tf.device(), gate_tf.dtype()) {
        Form::Composed => geglu_composed(gate_tf, up_tf),
        Form::Flex | Form::Cube => {
            Tensor::from_dispatch(Dispatch::geglu(gate_tf.into_dispatch(), up_tf.into_dispatch()))
        }
    }
}

/// The form that runs for inputs of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::fused(device, dtype)
}

/// Back ends with their own form of [`geglu()`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"))]
pub trait Geglu: Backend {
    /// See [`geglu()`].
    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`Geglu`].
pub trait GegluGrad: Geglu {
    /// Gradients of `gate` and `up` for the output gradient `d`, each if `wanted`.
    fn geglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2];
}

#[derive(Debug, Clone)]
struct GegluOperation;

impl<B: GegluGrad> Differentiable<B, 2> for GegluOperation {
    fn forward(&self, [gate, up]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::geglu(gate, up)
    }

    fn backward(
        &self,
        [gate, up]: [FloatTensor<B>; 2],
        d: FloatTensor<B>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        B::geglu_grad(gate, up, d, wanted)
    }
}

impl<B: GegluGrad, C: CheckpointStrategy> Geglu for Autodiff<B, C> {
    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        register::<B, C, _, 2>(GegluOperation, [gate, up])
    }
}
