//! Gated units, `x · share(x) · up`: one pass over vectors of elements each way.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

#[cfg(feature = "ptx")]
use super::ptx::{ELEMENTWISE_UNITS, Ptx, Target, argument, device, properties, settings};
use super::{address, buffer, contiguous, elements, elementwise, empty, vector_width};
use crate::geglu::{CUBIC, SLOPE};

/// The function of the gate, `x · share(x)`.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `share = sigmoid(x)`.
    Silu,
    /// `share = sigmoid(z(x))`, see [`crate::geglu`].
    Gelu,
}

/// `gate · share(gate) · up`, all `[t, f]`.
pub(crate) fn gated(gate: CubeTensor, up: CubeTensor, kind: Gate) -> CubeTensor {
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
                kind,
                elements(gate.dtype),
            );
        }
    }
    out
}

/// Gradients of `gate` and `up` for the output gradient `d`, each if `wanted`.
pub(crate) fn gated_grad(
    [gate, up, d]: [CubeTensor; 3],
    wanted: [bool; 2],
    kind: Gate,
) -> [Option<CubeTensor>; 2] {
    let [gate, up, d] = [gate, up, d].map(contiguous);
    let [rows, width] = gate.meta.shape().dims();
    let [d_gate, d_up] = [(); 2].map(|()| empty(&gate, [rows, width], gate.dtype));
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
                kind,
                elements(gate.dtype),
            );
        }
    }
    let [gate_wanted, up_wanted] = wanted;
    [gate_wanted.then_some(d_gate), up_wanted.then_some(d_up)]
}

#[cube]
fn share<N: Size>(x: Vector<f32, N>, #[comptime] kind: Gate) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let z = match kind {
        Gate::Silu => x,
        Gate::Gelu => {
            let cubed = Vector::new(comptime!(CUBIC as f32)) * x * x * x;
            Vector::new(comptime!(SLOPE as f32)) * (x + cubed)
        }
    };
    one / (one + (-z).exp())
}

/// `d (x · share(x)) / dx = s (1 + x (1 − s) z')` with `s = share(x)`. `z' = 1` for SiLU and
/// `2 √(2/π) (1 + 3 · 0.044715 x²)` for GELU.
#[cube]
fn slope<N: Size>(x: Vector<f32, N>, s: Vector<f32, N>, #[comptime] kind: Gate) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let along = x * (one - s);
    let along = match kind {
        Gate::Silu => along,
        Gate::Gelu => {
            let cubic = Vector::new(comptime!(3.0 * CUBIC as f32));
            along * Vector::new(comptime!(SLOPE as f32)) * (one + cubic * x * x)
        }
    };
    s * (one + along)
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    out: &mut [Vector<E, N>],
    #[comptime] kind: Gate,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < out.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        out[ABSOLUTE_POS] = Vector::cast_from(x * share::<N>(x, kind) * up);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward<E: Float, N: Size>(
    gate: &[Vector<E, N>],
    up: &[Vector<E, N>],
    d: &[Vector<E, N>],
    d_gate: &mut [Vector<E, N>],
    d_up: &mut [Vector<E, N>],
    #[comptime] kind: Gate,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < d.len() {
        let x = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        let d = Vector::<f32, N>::cast_from(d[ABSOLUTE_POS]);
        let s = share::<N>(x, kind);
        d_gate[ABSOLUTE_POS] = Vector::cast_from(d * up * slope::<N>(x, s, kind));
        d_up[ABSOLUTE_POS] = Vector::cast_from(d * x * s);
    }
}

/// The kernels of the unit `name` as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target, name: &str, kind: Gate) -> Vec<Ptx> {
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
        kind,
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
        kind,
        target.elements,
    );
    vec![
        target.compile(name, threads, forward),
        target.compile(&format!("{name}, gradients"), threads, backward),
    ]
}
