//! The CPU form of SwiGLU (Flex, float32): one multi-threaded pass over slices.

use super::{Swiglu, SwigluGrad};
use crate::flex::exp::exp;
use crate::flex::gated::gated_unit;

gated_unit!(
    Swiglu::swiglu = "swiglu",
    SwigluGrad::swiglu_grad = "swiglu.backward",
    sigmoid,
    gate_gradient
);

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `d silu(x) / dx = s (1 + x (1 − s))` with `s = sigmoid(x)`.
#[inline(always)]
fn gate_gradient(gate: f32, up: f32, d: f32, s: f32) -> f32 {
    d * up * s * (1.0 + gate * (1.0 - s))
}
