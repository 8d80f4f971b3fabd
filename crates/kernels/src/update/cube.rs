//! The GPU form of sums, squares and updates: one pass each, in place.

use std::sync::Arc;

use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{SQUARES_BLOCK, SquaresOnDevice, UpdateKind, UpdateRule, VectorPasses};
#[cfg(feature = "ptx")]
use crate::cube::ptx::{
    ELEMENTWISE_UNITS, Ptx, ROW_UNITS, Target, argument, device, properties, settings,
};
use crate::cube::{
    address, buffer, contiguous, cube_sum_f64, cubes, elements, elementwise, empty, owned,
    row_units, vector_width,
};
use crate::select_rows::cube::add_rows_at;

impl VectorPasses for Cube {
    fn add_vectors(sum: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self> {
        let (sum, value) = (owned(sum), contiguous(value));
        let len = sum.meta.num_elements();
        let lanes = vector_width([&sum, &value]);
        let (count, cube) = elementwise(&sum.client, len / lanes);
        if len > 0 {
            // SAFETY: a unit has one vector, within both buffers.
            unsafe {
                add::launch_unchecked(
                    &sum.client,
                    count,
                    cube,
                    address([&sum]),
                    lanes,
                    buffer(&sum),
                    buffer(&value),
                    elements(value.dtype),
                );
            }
        }
        sum
    }

    fn add_rows(
        sum: FloatTensor<Self>,
        ids: Arc<Vec<u32>>,
        rows: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (sum, rows) = (owned(sum), contiguous(rows));
        add_rows_at(&sum, &ids, &rows);
        sum
    }

    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let blocks = x.meta.num_elements().div_ceil(SQUARES_BLOCK);
        let sums = empty(&x, [blocks], DType::F64);
        write_squares(&sums, x, 0);
        sums
    }

    fn update_vectors(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (parameter, g) = (owned(parameter), contiguous(g));
        let first = if rule.kind.has_first() { owned(first) } else { first };
        let second = if rule.kind.has_second() { owned(second) } else { second };
        if parameter.meta.num_elements() > 0 {
            match rule.kind {
                UpdateKind::Adam { .. } => launch_adam([&parameter, &first, &second], &g, &rule),
                UpdateKind::RmsProp { .. } => launch_rms_prop([&parameter, &second], &g, &rule),
                UpdateKind::Sgd { .. } if rule.kind.has_first() => {
                    launch_momentum([&parameter, &first], &g, &rule);
                }
                UpdateKind::Sgd { .. } => launch_sgd(&parameter, &g, &rule),
                UpdateKind::Lion { .. } => launch_lion([&parameter, &first], &g, &rule),
            }
        }
        (parameter, first, second)
    }
}

/// Whether two vectors of this back end lie in the same memory.
pub(super) fn share_memory(a: Tensor<1>, b: Tensor<1>) -> bool {
    let primitive = |vector: Tensor<1>| vector.try_into_primitive::<Cube>().ok();
    let (Some(a), Some(b)) = (primitive(a), primitive(b)) else { return false };
    std::ptr::eq(a.handle.memory.descriptor(), b.handle.memory.descriptor())
}

impl SquaresOnDevice for Cube {
    fn squares_into(sums: FloatTensor<Self>, x: FloatTensor<Self>, at: usize) -> FloatTensor<Self> {
        let sums = owned(sums);
        write_squares(&sums, x, at);
        sums
    }

    fn sum_of_blocks(sums: FloatTensor<Self>) -> FloatTensor<Self> {
        let total = empty(&sums, [1], DType::F64);
        let units = row_units(&sums.client);
        let (count, cube) = cubes(1, units);
        // SAFETY: the only cube reads elements of `sums` and writes the one of `total`.
        unsafe {
            sum_of_blocks::launch_unchecked(
                &sums.client,
                count,
                cube,
                address([&sums]),
                buffer(&sums),
                buffer(&total),
                units,
            );
        }
        total
    }
}

/// Writes the sums of the blocks of `x` into `sums` from place `at` on.
fn write_squares(sums: &CubeTensor, x: CubeTensor, at: usize) {
    let x = contiguous(x);
    let len = x.meta.num_elements();
    let units = row_units(&x.client);
    let blocks = len.div_ceil(SQUARES_BLOCK);
    assert!(at + blocks <= sums.meta.num_elements(), "a place for each block");
    let (count, cube) = cubes(blocks, units);
    if len > 0 {
        // SAFETY: a cube has one element of `sums`, within it, and reads elements below `len`.
        unsafe {
            block_squares::launch_unchecked(
                &x.client,
                count,
                cube,
                address([&x]),
                buffer(&x),
                buffer(sums),
                SQUARES_BLOCK,
                at,
                units,
            );
        }
    }
}

fn launch_adam([p, m, v]: [&CubeTensor; 3], g: &CubeTensor, rule: &UpdateRule) {
    let UpdateKind::Adam { weight1, beta2, weight2, sqrt_correction2 } = rule.kind else { return };
    let len = p.meta.num_elements();
    let lanes = vector_width([p, m, v, g]);
    let (count, cube) = elementwise(&p.client, len / lanes);
    // SAFETY: a unit has one vector, within all buffers.
    unsafe {
        adam::launch_unchecked(
            &p.client,
            count,
            cube,
            address([p]),
            lanes,
            buffer(p),
            buffer(m),
            buffer(v),
            buffer(g),
            weight1,
            beta2,
            weight2,
            sqrt_correction2,
            rule.gradient_scale,
            rule.weight_decay,
            rule.shrink,
            rule.step_size,
            rule.epsilon,
            elements(g.dtype),
        );
    }
}

fn launch_rms_prop([p, v]: [&CubeTensor; 2], g: &CubeTensor, rule: &UpdateRule) {
    let UpdateKind::RmsProp { alpha, weight } = rule.kind else { return };
    let len = p.meta.num_elements();
    let lanes = vector_width([p, v, g]);
    let (count, cube) = elementwise(&p.client, len / lanes);
    // SAFETY: a unit has one vector, within all buffers.
    unsafe {
        rms_prop::launch_unchecked(
            &p.client,
            count,
            cube,
            address([p]),
            lanes,
            buffer(p),
            buffer(v),
            buffer(g),
            alpha,
            weight,
            rule.gradient_scale,
            rule.weight_decay,
            rule.shrink,
            rule.step_size,
            rule.epsilon,
            elements(g.dtype),
        );
    }
}

fn launch_sgd(p: &CubeTensor, g: &CubeTensor, rule: &UpdateRule) {
    let lanes = vector_width([p, g]);
    let (count, cube) = elementwise(&p.client, p.meta.num_elements() / lanes);
    // SAFETY: a unit has one vector, within both buffers.
    unsafe {
        sgd::launch_unchecked(
            &p.client,
            count,
            cube,
            address([p]),
            lanes,
            buffer(p),
            buffer(g),
            rule.gradient_scale,
            rule.weight_decay,
            rule.shrink,
            rule.step_size,
            elements(g.dtype),
        );
    }
}

fn launch_momentum([p, m]: [&CubeTensor; 2], g: &CubeTensor, rule: &UpdateRule) {
    let UpdateKind::Sgd { momentum, weight, nesterov, is_first } = rule.kind else { return };
    let (decay, weight) = if is_first { (0.0, 1.0) } else { (momentum, weight) };
    let (of_g, of_m) = if nesterov { (1.0, momentum) } else { (0.0, 1.0) };
    let lanes = vector_width([p, m, g]);
    let (count, cube) = elementwise(&p.client, p.meta.num_elements() / lanes);
    // SAFETY: a unit has one vector, within all buffers.
    unsafe {
        sgd_with_momentum::launch_unchecked(
            &p.client,
            count,
            cube,
            address([p]),
            lanes,
            buffer(p),
            buffer(m),
            buffer(g),
            decay,
            weight,
            of_g,
            of_m,
            rule.gradient_scale,
            rule.weight_decay,
            rule.shrink,
            rule.step_size,
            elements(g.dtype),
        );
    }
}

fn launch_lion([p, m]: [&CubeTensor; 2], g: &CubeTensor, rule: &UpdateRule) {
    let UpdateKind::Lion { beta1, weight1, beta2, weight2 } = rule.kind else { return };
    let lanes = vector_width([p, m, g]);
    let (count, cube) = elementwise(&p.client, p.meta.num_elements() / lanes);
    // SAFETY: a unit has one vector, within all buffers.
    unsafe {
        lion::launch_unchecked(
            &p.client,
            count,
            cube,
            address([p]),
            lanes,
            buffer(p),
            buffer(m),
            buffer(g),
            beta1,
            weight1,
            beta2,
            weight2,
            rule.gradient_scale,
            rule.weight_decay,
            rule.shrink,
            rule.step_size,
            elements(g.dtype),
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add<E: Float, N: Size>(
    sum: &mut [Vector<f32, N>],
    value: &[Vector<E, N>],
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < sum.len() {
        sum[ABSOLUTE_POS] += Vector::<f32, N>::cast_from(value[ABSOLUTE_POS]);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn block_squares(
    x: &[f32],
    sums: &mut [f64],
    block: usize,
    place: usize,
    #[comptime] units: usize,
) {
    let first = CUBE_POS * block;
    let end = min(first + block, x.len());
    let mut sum = 0.0f64;
    let mut at = first + UNIT_POS as usize;
    while at < end {
        let value = f64::cast_from(x[at]);
        sum += value * value;
        at += units;
    }
    let sum = cube_sum_f64(sum, units);
    if UNIT_POS == 0 {
        sums[place + CUBE_POS] = sum;
    }
}

/// Each unit adds every `units`-th number, then the units' sums are added.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_of_blocks(sums: &[f64], total: &mut [f64], #[comptime] units: usize) {
    let mut sum = 0.0f64;
    let mut at = UNIT_POS as usize;
    while at < sums.len() {
        sum += sums[at];
        at += units;
    }
    let sum = cube_sum_f64(sum, units);
    if UNIT_POS == 0 {
        total[0] = sum;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn adam<E: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    weight1: f32,
    beta2: f32,
    weight2: f32,
    sqrt_correction2: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    epsilon: f32,
    #[define(E)] _type: ElemType,
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
        p[ABSOLUTE_POS] = parameter * Vector::new(shrink) - first * Vector::new(step_size) / root;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rms_prop<E: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    alpha: f32,
    weight: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    epsilon: f32,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let second = v[ABSOLUTE_POS] * Vector::new(alpha) + g * g * Vector::new(weight);
        let root = second.sqrt() + Vector::new(epsilon);
        v[ABSOLUTE_POS] = second;
        p[ABSOLUTE_POS] = parameter * Vector::new(shrink) - g * Vector::new(step_size) / root;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sgd<E: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        p[ABSOLUTE_POS] = parameter * Vector::new(shrink) - g * Vector::new(step_size);
    }
}

/// `m ← decay · m + weight · g`, `p ← p − s · (of_g · g + of_m · m)`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sgd_with_momentum<E: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    decay: f32,
    weight: f32,
    of_g: f32,
    of_m: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[define(E)] _type: ElemType,
) {
    if ABSOLUTE_POS < p.len() {
        let parameter = p[ABSOLUTE_POS];
        let g = Vector::<f32, N>::cast_from(g[ABSOLUTE_POS]) * Vector::new(gradient_scale)
            + parameter * Vector::new(weight_decay);
        let first = m[ABSOLUTE_POS] * Vector::new(decay) + g * Vector::new(weight);
        let step = g * Vector::new(of_g) + first * Vector::new(of_m);
        m[ABSOLUTE_POS] = first;
        p[ABSOLUTE_POS] = parameter * Vector::new(shrink) - step * Vector::new(step_size);
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn lion<E: Float, N: Size>(
    p: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    g: &[Vector<E, N>],
    beta1: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    gradient_scale: f32,
    weight_decay: f32,
    shrink: f32,
    step_size: f32,
    #[define(E)] _type: ElemType,
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
        p[ABSOLUTE_POS] = parameter * Vector::new(shrink) - sign * Vector::new(step_size);
    }
}

/// The kernels as PTX.
#[cfg(feature = "ptx")]
pub(crate) fn ptx(target: Target) -> Vec<Ptx> {
    let (b, units, threads) = (argument, ROW_UNITS, ELEMENTWISE_UNITS);
    let lanes = 16 / size_of::<f32>();
    let add =
        add::Add::new(settings(threads), device(), properties(), b(), b(), lanes, target.elements);
    let adam = adam::Adam::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        lanes,
        target.elements,
    );
    let rms_prop = rms_prop::RmsProp::new(
        settings(threads),
        device(),
        properties(),
        b(),
        b(),
        b(),
        (),
        (),
        (),
        (),
        (),
        (),
        (),
        lanes,
        target.elements,
    );
    let squares = block_squares::BlockSquares::new(
        settings(units),
        device(),
        properties(),
        b(),
        b(),
        (),
        (),
        units,
    );
    let total =
        sum_of_blocks::SumOfBlocks::new(settings(units), device(), properties(), b(), b(), units);
    vec![
        target.compile("sum of gradients", threads, add),
        target.compile("AdamW", threads, adam),
        target.compile("RMSprop", threads, rms_prop),
        target.compile("squares", units, squares),
        target.compile("sum of squares", units, total),
    ]
}
