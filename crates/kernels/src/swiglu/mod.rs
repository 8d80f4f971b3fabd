//! SwiGLU (arXiv 2002.05202): `silu(gate) · up`, with `silu(x) = x · sigmoid(x)`.
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
pub use composed::swiglu_composed;

/// `silu(gate) · up`, all `[t, f]`.
pub fn swiglu(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    match form(&gate_tf.device(), gate_tf.dtype()) {
        Form::Composed => swiglu_composed(gate_tf, up_tf),
        Form::Flex | Form::Cube => {
            Tensor::from_dispatch(Dispatch::swiglu(gate_tf.into_dispatch(), up_tf.into_dispatch()))
        }
    }
}

/// The form that runs for inputs of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::fused(device, dtype)
}

/// Back ends with their own form of [`swiglu()`].
#[backend_extension(Autodiff, Flex, Cube: cfg(feature = "cube"))]
pub trait Swiglu: Backend {
    /// See [`swiglu()`].
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`Swiglu`].
pub trait SwigluGrad: Swiglu {
    /// Gradients of `gate` and `up` for the output gradient `d`, each if `wanted`.
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2];
}

#[derive(Debug, Clone)]
struct SwigluOperation;

impl<B: SwigluGrad> Differentiable<B, 2> for SwigluOperation {
    fn forward(&self, [gate, up]: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::swiglu(gate, up)
    }

    fn backward(
        &self,
        [gate, up]: [FloatTensor<B>; 2],
        d: FloatTensor<B>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        B::swiglu_grad(gate, up, d, wanted)
    }
}

impl<B: SwigluGrad, C: CheckpointStrategy> Swiglu for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        register::<B, C, _, 2>(SwigluOperation, [gate, up])
    }
}
