//! The CPU form of GeGLU (Flex, float32): one multi-threaded pass over slices.

use super::{CUBIC, Geglu, GegluGrad, SLOPE};
use crate::flex::exp::exp;
use crate::flex::gated::gated_unit;

gated_unit!(Geglu::geglu = "geglu", GegluGrad::geglu_grad = "geglu.backward", share, gate_gradient);

/// `sigmoid(z(x))`.
#[inline(always)]
fn share(x: f32) -> f32 {
    let z = SLOPE as f32 * (x + CUBIC as f32 * x * x * x);
    1.0 / (1.0 + exp(-z))
}

/// `d gelu(x) / dx = s + x s (1 − s) z'(x)` with `s = sigmoid(z(x))` and
/// `z'(x) = 2 √(2/π) (1 + 3 · 0.044715 x²)`.
#[inline(always)]
fn gate_gradient(gate: f32, up: f32, d: f32, s: f32) -> f32 {
    let slope = SLOPE as f32 * (1.0 + 3.0 * CUBIC as f32 * gate * gate);
    d * up * s * (1.0 + gate * (1.0 - s) * slope)
}
