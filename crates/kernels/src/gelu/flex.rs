//! The CPU form of GELU (Flex, float32): one multi-threaded pass over slices.

use burn::backend::{Flex, tensor::FloatTensor};

use super::{Gelu, GeluGrad};
use crate::flex::exp::vectorized;
use crate::flex::fresh::filled;
use crate::flex::gated::CHUNK;
use crate::flex::{contiguous, slice, tensor};
use crate::geglu::{gelu_slope, share};
use crate::timed;

impl Gelu for Flex {
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("gelu");
        let shape = x.layout().shape().to_vec();
        let x = contiguous(x);
        let x = slice(&x);
        let out = filled(x.len(), CHUNK, |index, out| {
            let place = index * CHUNK..index * CHUNK + out.len();
            forward(out, &x[place]);
        });
        tensor(out, &shape)
    }
}

impl GeluGrad for Flex {
    fn gelu_grad(x: FloatTensor<Self>, d: FloatTensor<Self>) -> FloatTensor<Self> {
        timed!("gelu.backward");
        let shape = x.layout().shape().to_vec();
        let [x, d] = [x, d].map(contiguous);
        let (x, d) = (slice(&x), slice(&d));
        let dx = filled(x.len(), CHUNK, |index, dx| {
            let place = index * CHUNK..index * CHUNK + dx.len();
            backward(dx, &x[place.clone()], &d[place]);
        });
        tensor(dx, &shape)
    }
}

vectorized!(fn forward(out: &mut [f32], x: &[f32]) = forward_plain);
vectorized!(fn backward(dx: &mut [f32], x: &[f32], d: &[f32]) = backward_plain);

#[inline(always)]
fn forward_plain(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * share(*x);
    }
}

#[inline(always)]
fn backward_plain(dx: &mut [f32], x: &[f32], d: &[f32]) {
    for ((dx, x), d) in dx.iter_mut().zip(x).zip(d) {
        *dx = d * gelu_slope(*x, share(*x));
    }
}
