//! The CPU form of sums, squares and updates (Flex, float32): multi-threaded passes in place.

use std::sync::Arc;

use burn::backend::{Flex, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::{SQUARES_BLOCK, UpdateKind, UpdateRule, VectorPasses};
use crate::flex::exp::vectorized;
use crate::flex::lanes;
use crate::flex::{contiguous, slice};

/// Elements of a unit of work.
const BLOCK: usize = 1 << 14;

impl VectorPasses for Flex {
    fn add_vectors(sum: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self> {
        let (mut sum, value) = (owned(sum), contiguous(value));
        let blocks =
            sum.storage_mut::<f32>().par_chunks_mut(BLOCK).zip(slice(&value).par_chunks(BLOCK));
        blocks.for_each(|(sum, value)| add_block(sum, value));
        sum
    }

    fn add_rows(
        sum: FloatTensor<Self>,
        ids: Arc<Vec<u32>>,
        rows: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (mut sum, rows) = (owned(sum), contiguous(rows));
        let width = slice(&rows).len() / ids.len().max(1);
        let target = sum.storage_mut::<f32>();
        for (id, row) in ids.iter().zip(slice(&rows).chunks_exact(width.max(1))) {
            let start = *id as usize * width;
            add_block(&mut target[start..start + width], row);
        }
        sum
    }

    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = contiguous(x);
        let blocks: Vec<f64> = slice(&x).par_chunks(SQUARES_BLOCK).map(squares_of).collect();
        let len = blocks.len();
        FlexTensor::from_data(TensorData::new(blocks, [len]))
    }

    fn update_vectors(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (mut parameter, mut first, mut second) =
            (owned(parameter), owned(first), owned(second));
        let g = contiguous(g);
        let m = first.storage_mut::<f32>().par_chunks_mut(BLOCK);
        let v = second.storage_mut::<f32>().par_chunks_mut(BLOCK);
        let p = parameter.storage_mut::<f32>().par_chunks_mut(BLOCK);
        let blocks = p.zip(slice(&g).par_chunks(BLOCK));
        match rule.kind {
            UpdateKind::Adam { .. } => {
                blocks.zip(v).zip(m).for_each(|(((p, g), v), m)| adam_block(p, m, v, g, &rule));
            }
            UpdateKind::RmsProp { .. } => {
                blocks.zip(v).for_each(|((p, g), v)| rms_prop_block(p, v, g, &rule));
            }
            UpdateKind::Sgd { momentum, .. } if momentum != 0.0 => {
                blocks.zip(m).for_each(|((p, g), m)| momentum_block(p, m, g, &rule));
            }
            UpdateKind::Sgd { .. } => blocks.for_each(|(p, g)| sgd_block(p, g, &rule)),
            UpdateKind::Lion { .. } => {
                blocks.zip(m).for_each(|((p, g), m)| lion_block(p, m, g, &rule));
            }
        }
        (parameter, first, second)
    }
}

/// A tensor that covers its whole buffer, so that its storage is exactly its elements.
fn owned(tensor: FlexTensor) -> FlexTensor {
    let elements = tensor.layout().num_elements();
    let whole = tensor.as_slice::<f32>().is_some() && tensor.bytes().len() == elements * 4;
    if whole { tensor } else { tensor.to_contiguous() }
}

vectorized!(fn add_block(sum: &mut [f32], value: &[f32]) = add_block_plain);
vectorized!(fn squares_of(block: &[f32]) -> f64 = squares_of_plain);
vectorized!(
    fn adam_block(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], rule: &UpdateRule)
        = adam_block_plain
);
vectorized!(
    fn rms_prop_block(p: &mut [f32], v: &mut [f32], g: &[f32], rule: &UpdateRule)
        = rms_prop_block_plain
);

vectorized!(fn sgd_block(p: &mut [f32], g: &[f32], rule: &UpdateRule) = sgd_block_plain);
vectorized!(
    fn momentum_block(p: &mut [f32], m: &mut [f32], g: &[f32], rule: &UpdateRule)
        = momentum_block_plain
);
vectorized!(
    fn lion_block(p: &mut [f32], m: &mut [f32], g: &[f32], rule: &UpdateRule) = lion_block_plain
);

#[inline(always)]
fn add_block_plain(sum: &mut [f32], value: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(value) {
        *sum += value;
    }
}

#[inline(always)]
fn squares_of_plain(block: &[f32]) -> f64 {
    lanes::dot_f64(block, block)
}

#[inline(always)]
fn adam_block_plain(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], rule: &UpdateRule) {
    let UpdateKind::Adam { weight1, beta2, weight2, sqrt_correction2 } = rule.kind else { return };
    let UpdateRule { gradient_scale, weight_decay, shrink, step_size, epsilon, .. } = *rule;
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * gradient_scale + weight_decay * *p;
        *m += weight1 * (g - *m);
        *v = beta2 * *v + weight2 * g * g;
        *p = *p * shrink - step_size * *m / (v.sqrt() / sqrt_correction2 + epsilon);
    }
}

#[inline(always)]
fn rms_prop_block_plain(p: &mut [f32], v: &mut [f32], g: &[f32], rule: &UpdateRule) {
    let UpdateKind::RmsProp { alpha, weight } = rule.kind else { return };
    let UpdateRule { gradient_scale, weight_decay, shrink, step_size, epsilon, .. } = *rule;
    for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
        let g = g * gradient_scale + weight_decay * *p;
        *v = alpha * *v + weight * g * g;
        *p = *p * shrink - step_size * g / (v.sqrt() + epsilon);
    }
}

#[inline(always)]
fn sgd_block_plain(p: &mut [f32], g: &[f32], rule: &UpdateRule) {
    let UpdateRule { gradient_scale, weight_decay, shrink, step_size, .. } = *rule;
    for (p, g) in p.iter_mut().zip(g) {
        let g = g * gradient_scale + weight_decay * *p;
        *p = *p * shrink - step_size * g;
    }
}

#[inline(always)]
fn momentum_block_plain(p: &mut [f32], m: &mut [f32], g: &[f32], rule: &UpdateRule) {
    let UpdateKind::Sgd { momentum, weight, nesterov, is_first } = rule.kind else { return };
    let UpdateRule { gradient_scale, weight_decay, shrink, step_size, .. } = *rule;
    for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
        let g = g * gradient_scale + weight_decay * *p;
        *m = if is_first { g } else { momentum * *m + weight * g };
        let step = if nesterov { g + momentum * *m } else { *m };
        *p = *p * shrink - step_size * step;
    }
}

#[inline(always)]
fn lion_block_plain(p: &mut [f32], m: &mut [f32], g: &[f32], rule: &UpdateRule) {
    let UpdateKind::Lion { beta1, weight1, beta2, weight2 } = rule.kind else { return };
    let UpdateRule { gradient_scale, weight_decay, shrink, step_size, .. } = *rule;
    for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
        let g = g * gradient_scale + weight_decay * *p;
        let mean = beta1 * *m + weight1 * g;
        let sign = if mean == 0.0 { 0.0 } else { mean.signum() };
        *m = beta2 * *m + weight2 * g;
        *p = *p * shrink - step_size * sign;
    }
}
