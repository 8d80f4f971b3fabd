//! Passes over whole parameters: sums of gradients, their norm, optimizer updates.
//!
//! On the CPU each is one multi-threaded pass in place; elsewhere it is composed of Burn's
//! operations. All vectors are float32 and without autodiff.

use std::sync::Arc;

use burn::backend::{
    Backend, Dispatch, Flex, backend_extension, flex::FlexTensor, tensor::FloatTensor,
};
use burn::tensor::{DType, IndexingUpdateOp, Tensor, TensorData};
use rayon::prelude::*;

use super::contiguous;
use super::flex::lanes;
use super::index_tensor;
use super::is_fused;
use super::slice;
use super::vectorized;

/// Elements a unit of work.
const BLOCK: usize = 1 << 14;

/// Elements whose squares are summed together. Parts of a parameter that begin at a multiple of it have
/// the block sums of the whole.
pub const SQUARES_BLOCK: usize = 1 << 12;

/// `sum + value`, in place where nobody else holds `sum`.
pub fn add_into(sum: Tensor<1>, value: Tensor<1>) -> Tensor<1> {
    if !is_fused(&sum) {
        return sum + value;
    }
    Tensor::from_dispatch(Dispatch::add_vectors(sum.into_dispatch(), value.into_dispatch()))
}

/// Adds row `i` of `rows` (`[t, d]`) to row `ids[i]` of `sum` (`[v · d]`), in the order of the rows, in place
/// where nobody else holds `sum`.
pub fn add_rows_into(sum: Tensor<1>, ids: &[u32], rows: Tensor<2>) -> Tensor<1> {
    if !is_fused(&sum) {
        let (len, width) = (sum.dims()[0], rows.dims()[1]);
        let ids = index_tensor(ids.iter().copied(), &sum.device());
        let sum = sum.reshape([len / width, width]);
        return sum.select_assign(0, ids, rows, IndexingUpdateOp::Add).reshape([len]);
    }
    let ids = Arc::new(ids.to_vec());
    Tensor::from_dispatch(Dispatch::add_rows(sum.into_dispatch(), ids, rows.into_dispatch()))
}

/// `Σ x²` in double precision of each block of [`SQUARES_BLOCK`] elements, so that neither threads nor
/// ranks change it. Where there is no fused form the first block stands for all.
pub fn block_squares(x: &Tensor<1>) -> Vec<f64> {
    let blocks = x.dims()[0].div_ceil(SQUARES_BLOCK);
    let sums = if is_fused(x) {
        Tensor::<1>::from_dispatch(Dispatch::squares(x.clone().into_dispatch()))
    } else {
        x.clone().cast(DType::F32).square().sum()
    };
    let sums = sums.into_data().convert::<f64>();
    let mut sums = sums.try_into_vec::<f64>().expect("converted to float64");
    sums.resize(blocks, 0.0);
    sums
}

/// One optimizer update of a parameter; all numbers of this step are filled in. Each was computed in double
/// precision and rounded once, as torch does: `1 − 0.999` in float32 would be off by a hundred-thousandth.
#[derive(Debug, Clone, Copy)]
pub struct UpdateRule {
    pub kind: UpdateKind,
    /// Factor on the gradient: clipping.
    pub gradient_scale: f32,
    /// Factor on the parameter that is added to the gradient: weight decay of all but AdamW.
    pub weight_decay: f32,
    /// Factor on the parameter itself: weight decay of AdamW.
    pub shrink: f32,
    /// The learning rate; for Adam divided by `1 − β₁ᵗ`.
    pub step_size: f32,
    pub epsilon: f32,
}

/// The formulas of torch's optimizers, with `s` for the step size.
#[derive(Debug, Clone, Copy)]
pub enum UpdateKind {
    /// `m ← m + w₁(g − m)`, `v ← β₂v + w₂g²`, `p ← p − s · m / (√v/√c₂ + ε)` with `wᵢ = 1 − βᵢ` and
    /// `c₂ = 1 − β₂ᵗ`.
    Adam { weight1: f32, beta2: f32, weight2: f32, sqrt_correction2: f32 },
    /// `v ← αv + wg²`, `p ← p − s · g / (√v + ε)` with `w = 1 − α`.
    RmsProp { alpha: f32, weight: f32 },
}

/// Parameter with the optimizer's running means, all of one length. RMSprop leaves `first` empty.
#[derive(Debug)]
pub struct UpdateState {
    pub parameter: Tensor<1>,
    pub first: Tensor<1>,
    pub second: Tensor<1>,
}

/// Applies `rule` to `state` with the gradient `g`, in place where nobody else holds the vectors.
pub fn update(state: UpdateState, g: Tensor<1>, rule: UpdateRule) -> UpdateState {
    if !is_fused(&state.parameter) {
        return update_composed(state, g, rule);
    }
    let (parameter, first, second) = Dispatch::update_vectors(
        state.parameter.into_dispatch(),
        state.first.into_dispatch(),
        state.second.into_dispatch(),
        g.into_dispatch(),
        rule,
    );
    UpdateState {
        parameter: Tensor::from_dispatch(parameter),
        first: Tensor::from_dispatch(first),
        second: Tensor::from_dispatch(second),
    }
}

/// [`update`] composed of Burn's own operations.
pub fn update_composed(state: UpdateState, g: Tensor<1>, rule: UpdateRule) -> UpdateState {
    let UpdateState { mut parameter, mut first, second } = state;
    let mut g = g.mul_scalar(rule.gradient_scale);
    if rule.weight_decay != 0.0 {
        g = g + parameter.clone().mul_scalar(rule.weight_decay);
    }
    if rule.shrink != 1.0 {
        parameter = parameter.mul_scalar(rule.shrink);
    }
    let mean_square = |beta: f32, weight: f32, second: Tensor<1>, g: Tensor<1>| {
        second.mul_scalar(beta) + g.clone().mul_scalar(weight) * g
    };
    let (second, step) = match rule.kind {
        UpdateKind::Adam { weight1, beta2, weight2, sqrt_correction2 } => {
            first = first.clone() + (g.clone() - first).mul_scalar(weight1);
            let second = mean_square(beta2, weight2, second, g);
            let root = second.clone().sqrt().div_scalar(sqrt_correction2).add_scalar(rule.epsilon);
            (second, first.clone().mul_scalar(rule.step_size) / root)
        }
        UpdateKind::RmsProp { alpha, weight } => {
            let second = mean_square(alpha, weight, second, g.clone());
            let root = second.clone().sqrt().add_scalar(rule.epsilon);
            (second, g.mul_scalar(rule.step_size) / root)
        }
    };
    UpdateState { parameter: parameter - step, first, second }
}

#[backend_extension(Flex)]
pub trait VectorPasses: Backend {
    /// See [`add_into`].
    fn add_vectors(sum: FloatTensor<Self>, value: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`add_rows_into`].
    fn add_rows(
        sum: FloatTensor<Self>,
        ids: Arc<Vec<u32>>,
        rows: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// See [`block_squares`]: a float64 for each block.
    fn squares(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// See [`update`].
    fn update_vectors(
        parameter: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        g: FloatTensor<Self>,
        rule: UpdateRule,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

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
        let p = parameter.storage_mut::<f32>().par_chunks_mut(BLOCK);
        let v = second.storage_mut::<f32>().par_chunks_mut(BLOCK);
        let blocks = p.zip(v).zip(slice(&g).par_chunks(BLOCK));
        match rule.kind {
            UpdateKind::Adam { .. } => {
                let m = first.storage_mut::<f32>().par_chunks_mut(BLOCK);
                blocks.zip(m).for_each(|(((p, v), g), m)| adam_block(p, m, v, g, &rule));
            }
            UpdateKind::RmsProp { .. } => {
                blocks.for_each(|((p, v), g)| rms_prop_block(p, v, g, &rule));
            }
        }
        (parameter, first, second)
    }
}

/// A tensor that covers its whole buffer, so that its storage is its elements.
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn vector(seed: u64, scale: f32, len: usize) -> Tensor<1> {
        let values: Vec<f32> = (0..len as u64)
            .map(|i| {
                let hash = (i * 2_654_435_761 + seed * 40_503 * 65_537) & 0xffff_ffff;
                ((hash as f64 / 4_294_967_296.0 - 0.5) as f32) * scale
            })
            .collect();
        Tensor::from_data(TensorData::new(values, [len]), &Device::flex())
    }

    const LR: f64 = 1e-3;

    fn adam(step: i32, [weight_decay, shrink]: [f32; 2]) -> UpdateRule {
        let kind = UpdateKind::Adam {
            weight1: 0.1,
            beta2: 0.999,
            weight2: 0.001,
            sqrt_correction2: (1.0 - 0.999f64.powi(step)).sqrt() as f32,
        };
        let step_size = (LR / (1.0 - 0.9f64.powi(step))) as f32;
        UpdateRule { kind, gradient_scale: 0.7, weight_decay, shrink, step_size, epsilon: 1e-8 }
    }

    fn rms_prop(_: i32) -> UpdateRule {
        let kind = UpdateKind::RmsProp { alpha: 0.99, weight: 0.01 };
        UpdateRule { kind, step_size: LR as f32, ..adam(1, [0.1, 1.0]) }
    }

    #[test]
    fn one_pass_and_composed_updates_agree() {
        let len = 40_001;
        let rules: [fn(i32) -> UpdateRule; 3] =
            [|step| adam(step, [0.0, 0.9999]), |step| adam(step, [0.1, 1.0]), rms_prop];
        for rule in rules {
            let start = || UpdateState {
                parameter: vector(0, 1.0, len),
                first: vector(0, 0.0, len),
                second: vector(0, 0.0, len),
            };
            let (mut fused, mut composed) = (start(), start());
            for step in 1..=20 {
                let rule = rule(step);
                fused = update(fused, vector(step as u64, 0.01, len), rule);
                composed = update_composed(composed, vector(step as u64, 0.01, len), rule);
            }
            let difference =
                (fused.parameter - composed.parameter).abs().max().into_scalar::<f32>();
            assert!(difference < 2e-7, "{difference}");
        }
    }

    /// torch's formulas of Adam in double precision, over a gradient that changes its sign.
    #[test]
    fn adam_keeps_to_the_formulas() {
        let gradient = |step: i32| 0.5 * f64::from(step % 3 - 1) + 0.01;
        let (mut p, mut m, mut v) = (0.3f64, 0.0f64, 0.0f64);
        let one = |x: f64| Tensor::<1>::from_data([x as f32], &Device::flex());
        let mut state = UpdateState { parameter: one(p), first: one(m), second: one(v) };
        for step in 1..=20 {
            let scaled = f64::from(0.7f32) * gradient(step);
            m += (1.0 - 0.9) * (scaled - m);
            v = 0.999 * v + (1.0 - 0.999) * scaled * scaled;
            let [correction1, correction2] = [0.9f64, 0.999].map(|beta| 1.0 - beta.powi(step));
            p = p * 0.9999 - LR / correction1 * m / ((v / correction2).sqrt() + 1e-8);
            state = update(state, one(gradient(step)), adam(step, [0.0, 0.9999]));
        }
        let [parameter, first, second] = [state.parameter, state.first, state.second]
            .map(|vector| f64::from(vector.into_scalar::<f32>()));
        assert!((parameter / p - 1.0).abs() < 2e-6, "{parameter} for {p}");
        assert!((first / m - 1.0).abs() < 2e-6, "{first} for {m}");
        assert!((second / v - 1.0).abs() < 2e-6, "{second} for {v}");
    }

    #[test]
    fn sums_and_squares() {
        let sum = add_into(vector(1, 1.0, 33_000), vector(2, 1.0, 33_000));
        let expected = vector(1, 1.0, 33_000) + vector(2, 1.0, 33_000);
        assert_eq!(sum.to_data(), expected.clone().into_data());
        let exact: f64 = expected.into_data().iter::<f32>().map(|x| f64::from(x).powi(2)).sum();
        let blocks = block_squares(&sum);
        assert!((blocks.iter().sum::<f64>() / exact - 1.0).abs() < 1e-12);
        let part = sum.clone().narrow(0, 2 * SQUARES_BLOCK, SQUARES_BLOCK);
        assert_eq!(block_squares(&part), blocks[2..3]);
    }

    #[test]
    fn rows_are_added_where_their_ids_say() {
        let (ids, rows) = ([3, 0, 3], vector(5, 1.0, 12).reshape([3, 4]));
        let sum = add_rows_into(vector(6, 1.0, 20), &ids, rows.clone());
        let indices = index_tensor(ids.into_iter(), &Device::flex());
        let start = vector(6, 1.0, 20).reshape([5, 4]);
        let expected = start.select_assign(0, indices, rows, IndexingUpdateOp::Add);
        assert_eq!(sum.into_data(), expected.reshape([20]).into_data());
    }

    #[test]
    fn a_view_is_updated_without_touching_its_neighbours() {
        let whole = vector(3, 1.0, 10);
        let part = whole.clone().narrow(0, 2, 4);
        let sum = add_into(part, vector(4, 1.0, 4));
        assert_eq!(sum.dims(), [4]);
        assert_eq!(whole.to_data(), vector(3, 1.0, 10).into_data());
    }
}
