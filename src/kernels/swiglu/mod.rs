//! SwiGLU (arXiv 2002.05202): `silu(gate) · up`, with `silu(x) = x · sigmoid(x)`.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{Tensor, activation::silu};
use rayon::prelude::*;

use super::autodiff::{Differentiable, register};
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
    /// Gradients of `gate` and `up` for the output gradient `d`, each if `wanted`.
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2];
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
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        timed!("swiglu.backward");
        let shape = gate.layout().shape().to_vec();
        let [gate, up, d] = [gate, up, d].map(contiguous);
        let (gate, up, d) = (slice(&gate), slice(&up), slice(&d));
        let gradients = match wanted {
            [true, true] => both_gradients(gate, up, d).map(Some),
            [gate_wanted, up_wanted] => [
                gate_wanted.then(|| {
                    filled(d.len(), CHUNK, |index, d_gate| {
                        let place = index * CHUNK..index * CHUNK + d_gate.len();
                        gate_backward(d_gate, &gate[place.clone()], &up[place.clone()], &d[place]);
                    })
                }),
                up_wanted.then(|| {
                    filled(d.len(), CHUNK, |index, d_up| {
                        let place = index * CHUNK..index * CHUNK + d_up.len();
                        up_backward(d_up, &gate[place.clone()], &d[place]);
                    })
                }),
            ],
        };
        gradients.map(|gradient| gradient.map(|gradient| tensor(gradient, &shape)))
    }
}

/// Both gradients in one pass.
fn both_gradients(gate: &[f32], up: &[f32], d: &[f32]) -> [Vec<f32>; 2] {
    let (mut d_gate, mut d_up) = (Fresh::new(d.len()), Fresh::new(d.len()));
    let outputs = d_gate.chunks(CHUNK).zip(d_up.chunks(CHUNK));
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(d.par_chunks(CHUNK));
    outputs.zip(inputs).for_each(|((d_gate, d_up), ((gate, up), d))| {
        backward(d_gate, d_up, gate, up, d);
    });
    // SAFETY: `for_each` took all chunks of both.
    unsafe { [d_gate.written(), d_up.written()] }
}

vectorized!(fn forward(out: &mut [f32], gate: &[f32], up: &[f32]) = forward_plain);
vectorized!(
    fn backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32])
        = backward_plain
);
vectorized!(
    fn gate_backward(d_gate: &mut [f32], gate: &[f32], up: &[f32], d: &[f32])
        = gate_backward_plain
);
vectorized!(fn up_backward(d_up: &mut [f32], gate: &[f32], d: &[f32]) = up_backward_plain);

#[inline(always)]
fn forward_plain(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(*gate) * up;
    }
}

#[inline(always)]
fn backward_plain(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], d: &[f32]) {
    let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
    for ((d_gate, d_up), ((gate, up), d)) in outputs.zip(gate.iter().zip(up).zip(d)) {
        let s = sigmoid(*gate);
        *d_gate = gate_gradient(*gate, *up, *d, s);
        *d_up = d * gate * s;
    }
}

#[inline(always)]
fn gate_backward_plain(d_gate: &mut [f32], gate: &[f32], up: &[f32], d: &[f32]) {
    for (d_gate, ((gate, up), d)) in d_gate.iter_mut().zip(gate.iter().zip(up).zip(d)) {
        *d_gate = gate_gradient(*gate, *up, *d, sigmoid(*gate));
    }
}

#[inline(always)]
fn up_backward_plain(d_up: &mut [f32], gate: &[f32], d: &[f32]) {
    for (d_up, (gate, d)) in d_up.iter_mut().zip(gate.iter().zip(d)) {
        *d_up = d * gate * sigmoid(*gate);
    }
}

/// `d silu(x) / dx = s (1 + x (1 − s))` with `s = sigmoid(x)`.
#[inline(always)]
fn gate_gradient(gate: f32, up: f32, d: f32, s: f32) -> f32 {
    d * up * s * (1.0 + gate * (1.0 - s))
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
