//! SwiGLU (arXiv 2002.05202): `silu(gate) · up`, with `silu(x) = x · sigmoid(x)`.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::{Tensor, activation::silu};
use rayon::prelude::*;

use super::contiguous;
use super::flex::exp::exp;
use super::flex::fresh::{Fresh, filled};
use super::is_fused;
use super::slice;
use super::tensor;
use super::timed;
use super::vectorized;

/// Elements a unit of work.
const CHUNK: usize = 1 << 14;

/// `silu(gate) · up`, all `[t, f]`.
pub fn swiglu(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    if !is_fused(&gate_tf) {
        return swiglu_composed(gate_tf, up_tf);
    }
    Tensor::from_dispatch(Dispatch::swiglu(gate_tf.into_dispatch(), up_tf.into_dispatch()))
}

/// [`swiglu`] composed of Burn's own operations.
pub fn swiglu_composed(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    silu(gate_tf) * up_tf
}

#[backend_extension(Autodiff, Flex)]
pub trait Swiglu: Backend {
    /// See [`swiglu`].
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward half of [`Swiglu`].
pub trait SwigluGrad: Swiglu {
    /// Gradients of `gate` and `up` for the output gradient `d`.
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl Swiglu for Flex {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("swiglu");
        let shape = gate.layout().shape().to_vec();
        let (gate, up) = (contiguous(gate), contiguous(up));
        let (gate, up) = (slice(&gate), slice(&up));
        let out = filled(gate.len(), CHUNK, |index, out| {
            let place = index * CHUNK..index * CHUNK + out.len();
            forward(out, &gate[place.clone()], &up[place]);
        });
        tensor(out, &shape)
    }
}

impl SwigluGrad for Flex {
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        timed!("swiglu.backward");
        let shape = gate.layout().shape().to_vec();
        let [gate, up, d] = [gate, up, d].map(contiguous);
        let (gate, up, d) = (slice(&gate), slice(&up), slice(&d));
        let (mut d_gate, mut d_up) = (Fresh::new(d.len()), Fresh::new(d.len()));
        let outputs = d_gate.chunks(CHUNK).zip(d_up.chunks(CHUNK));
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(d.par_chunks(CHUNK));
        outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), d))| {
            backward(d_gate, d_up, gate, up, d);
        });
        // SAFETY: `for_each` took all chunks of both.
        let gradients = unsafe { [d_gate.written(), d_up.written()] };
        gradients.map(|gradient| tensor(gradient, &shape))
    }
}

vectorized!(fn forward(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_plain);
vectorized!(
    fn backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32])
        = backward_plain
);

#[inline(always)]
fn forward_plain(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(*gate) * up;
    }
}

/// `d silu(x) / dx = s (1 + x (1 − s))` with `s = sigmoid(x)`.
#[inline(always)]
fn backward_plain(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32]) {
    let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
    for ((d_gate, d_up), ((gate, up), d)) in outputs.zip(gate.iter().zip(up).zip(d)) {
        let s = sigmoid(*gate);
        *d_gate = d * up * s * (1.0 + gate * (1.0 - s));
        *d_up = d * gate * s;
    }
}

impl<B: SwigluGrad, C: CheckpointStrategy> Swiglu for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwigluBackward;

        impl<B: SwigluGrad> Backward<B, 2> for SwigluBackward {
            type State = [NodeId; 2];

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                checkpointer: &mut Checkpointer,
            ) {
                let d = grads.consume::<B>(&ops.node);
                let [gate, up] = ops.state.map(|id| checkpointer.retrieve_node_output(id));
                let gradients = B::swiglu_grad(gate, up, d);
                for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = parent {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }

        match SwigluBackward.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&gate), prep.checkpoint(&up)];
                prep.finish(inputs, B::swiglu(gate.into_primitive(), up.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::swiglu(gate.into_primitive(), up.into_primitive()))
            }
        }
    }
}
