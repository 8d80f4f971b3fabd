//! The kernels of updates. A unit has one vector of each buffer.

use cubecl::prelude::*;

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn adam<E: Float, R: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    rounded: &mut [Vector<R, N>],
    weight1: f32,
    beta2: f32,
    weight2: f32,
    sqrt_correction2: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    epsilon: f32,
    #[comptime] rounds: bool,
    #[define(E, R)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let first = m[ABSOLUTE_POS] + (g - m[ABSOLUTE_POS]) * Vector::new(weight1);
        let second = v[ABSOLUTE_POS] * Vector::new(beta2) + g * g * Vector::new(weight2);
        let root = second.sqrt() / Vector::new(sqrt_correction2) + Vector::new(epsilon);
        m[ABSOLUTE_POS] = first;
        v[ABSOLUTE_POS] = second;
        let new = parameter * Vector::new(shrink) - first * Vector::new(step_size) / root;
        p[ABSOLUTE_POS] = new;
        if comptime!(rounds) {
            rounded[ABSOLUTE_POS] = Vector::cast_from(new);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rms_prop<E: Float, R: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    rounded: &mut [Vector<R, N>],
    alpha: f32,
    weight: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    epsilon: f32,
    #[comptime] rounds: bool,
    #[define(E, R)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let second = v[ABSOLUTE_POS] * Vector::new(alpha) + g * g * Vector::new(weight);
        let root = second.sqrt() + Vector::new(epsilon);
        v[ABSOLUTE_POS] = second;
        let new = parameter * Vector::new(shrink) - g * Vector::new(step_size) / root;
        p[ABSOLUTE_POS] = new;
        if comptime!(rounds) {
            rounded[ABSOLUTE_POS] = Vector::cast_from(new);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sgd<E: Float, R: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    rounded: &mut [Vector<R, N>],
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[comptime] rounds: bool,
    #[define(E, R)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let new = parameter * Vector::new(shrink) - g * Vector::new(step_size);
        p[ABSOLUTE_POS] = new;
        if comptime!(rounds) {
            rounded[ABSOLUTE_POS] = Vector::cast_from(new);
        }
    }
}

/// `m ← decay · m + weight · g`, `p ← p − s · (of_g · g + of_m · m)`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn sgd_with_momentum<E: Float, R: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    rounded: &mut [Vector<R, N>],
    decay: f32,
    weight: f32,
    of_g: f32,
    of_m: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[comptime] rounds: bool,
    #[define(E, R)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let first = m[ABSOLUTE_POS] * Vector::new(decay) + g * Vector::new(weight);
        let step = g * Vector::new(of_g) + first * Vector::new(of_m);
        m[ABSOLUTE_POS] = first;
        let new = parameter * Vector::new(shrink) - step * Vector::new(step_size);
        p[ABSOLUTE_POS] = new;
        if comptime!(rounds) {
            rounded[ABSOLUTE_POS] = Vector::cast_from(new);
        }
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn lion<E: Float, R: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    rounded: &mut [Vector<R, N>],
    beta1: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[comptime] rounds: bool,
    #[define(E, R)] _types: [ElemType; 2],
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let before = m[ABSOLUTE_POS];
        let mean = before * Vector::new(beta1) + g * Vector::new(weight1);
        let zero = Vector::<f32, N>::new(0.0f32);
        let down = select_many(mean.less_than(&zero), Vector::new(-1.0f32), zero);
        let sign = select_many(mean.greater_than(&zero), Vector::new(1.0f32), down);
        m[ABSOLUTE_POS] = before * Vector::new(beta2) + g * Vector::new(weight2);
        let new = parameter * Vector::new(shrink) - sign * Vector::new(step_size);
        p[ABSOLUTE_POS] = new;
        if comptime!(rounds) {
            rounded[ABSOLUTE_POS] = Vector::cast_from(new);
        }
    }
}
