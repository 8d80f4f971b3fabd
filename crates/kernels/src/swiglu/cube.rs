//! The GPU form of SwiGLU: one pass over vectors of elements each way.

use burn::backend::{Cube, tensor::FloatTensor};
use cubecl::prelude::*;

use super::{Swiglu, SwigluGrad};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{ELEMENTWISE_UNITS, Ptx, Target, argument, device, properties, settings};
use crate::cube::{address, buffer, contiguous, elements, elementwise, empty, vector_width};

impl Swiglu for Cube {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (contiguous(gate), contiguous(up));
        let [rows, width] = gate.meta.shape().dims();
        let out = empty(&gate, [rows, width], gate.dtype);
        let lanes = vector_width([&gate, &up]);
        let (count, cube) = elementwise(&gate.client, rows * width / lanes);
        if rows * width > 0 {
            // SAFETY: a unit has one vector, within all buffers.
            unsafe {
                forward::launch_unchecked(
                    &gate.client,
                    count,
                    cube,
                    address([&gate]),
                    lanes,
                    buffer(&gate),
                    buffer(&up),
                    buffer(&out),
                    elements(gate.dtype),
                );
            }
        }
        out
    }
}

impl SwigluGrad for Cube {
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        let (gate, up, d) = (contiguous(gate), contiguous(up), contiguous(d));
        let [rows, width] = gate.meta.shape().dims();
        let (d_gate, d_up) =
            (empty(&gate, [rows, width], gate.dtype), empty(&gate, [rows, width], gate.dtype));
        let lanes = vector_width([&gate, &up, &d]);
        let (count, cube) = elementwise(&gate.client, rows * width / lanes);
        if rows * width > 0 {
            // SAFETY: a unit has one vector, within all buffers.
            unsafe {
                backward::launch_unchecked(
                    &gate.client,
                    count,
                    cube,
                    address([&gate]),
                    lanes,
                    buffer(&gate),
                    buffer(&up),
                    buffer(&d),
                    buffer(&d_gate),
                    buffer(&d_up),
                    elements(gate.dtype),
                );
            }
        }
        let [gate_wanted, up_wanted] = wanted;
        [gate_wanted.then_some(d_gate), up_wanted.then_some(d_up)]
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (-x).exp())
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    out: &mut [Vector<E, N>],
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < out.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        out[ABSOLUTE_POS] = Vector::cast_from(x * sigmoid::<N>(x) * up);
    }
}

/// `d silu(x) / dx = s (1 + x (1 − s))` with `s = sigmoid(x)`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    d: &[Vector<E, N>],
    d_gate: &mut [Vector<E, N>],
    d_up: &mut [Vector<E, N>],
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < d.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        let d = Vector::<f32, N>::cast_from(d[ABSOLUTE_POS]);
        let s = sigmoid::<N>(x);
        let one = Vector::<f32, N>::new(1.0f32);
        d_gate[ABSOLUTE_POS] = Vector::cast_from(d * up * s * (one + x * (one - s)));
        d_up[ABSOLUTE_POS] = Vector::cast_from(d * x * s);
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let (b, threads) = (argument, ELEMENTWISE_UNITS);
    let lanes = 16 / target.elements.size();
    let forward = forward::Forward::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        lanes,
        target.elements,
    );
    let backward = backward::Backward::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        b(),
        lanes,
        target.elements,
    );
    vec![
        target.compile("swiglu", threads, forward),
        target.compile("swiglu, gradients", threads, backward),
    ]
}
