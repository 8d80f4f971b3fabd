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

use super::{contiguous, index_tensor, is_fused, lanes, slice, vectorized};

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

/// One optimizer update of a parameter; all numbers of this step are filled in.
#[derive(Debug, Clone, Copy)]
pub struct UpdateRule {
    pub kind: UpdateKind,
    pub lr: f32,
    /// Factor on the gradient: clipping.
    pub gradient_scale: f32,
    pub weight_decay: f32,
    pub epsilon: f32,
}

/// The formulas of torch's optimizers.
#[derive(Debug, Clone, Copy)]
pub enum UpdateKind {
    /// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `p ← p − lr/c₁ · m / (√v/√c₂ + ε)` with
    /// `cᵢ = 1 − βᵢᵗ`. Weight decay is added to `g` (Adam) or taken off `p` (`decoupled`: AdamW).
    Adam { beta1: f32, beta2: f32, correction1: f32, sqrt_correction2: f32, decoupled: bool },
    /// `v ← αv + (1−α)g²`, `p ← p − lr · g / (√v + ε)`.
    RmsProp { alpha: f32 },
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
    let decoupled = matches!(rule.kind, UpdateKind::Adam { decoupled: true, .. });
    if rule.weight_decay != 0.0 && decoupled {
        parameter = parameter.mul_scalar(1.0 - rule.lr * rule.weight_decay);
    } else if rule.weight_decay != 0.0 {
        g = g + parameter.clone().mul_scalar(rule.weight_decay);
    }
    let mean_square = |beta: f32, second: Tensor<1>, g: Tensor<1>| {
        second.mul_scalar(beta) + g.square().mul_scalar(1.0 - beta)
    };
    let (second, step) = match rule.kind {
        UpdateKind::Adam { beta1, beta2, correction1, sqrt_correction2, .. } => {
            first = first.mul_scalar(beta1) + g.clone().mul_scalar(1.0 - beta1);
            let second = mean_square(beta2, second, g);
            let root = second.clone().sqrt().div_scalar(sqrt_correction2).add_scalar(rule.epsilon);
            (second, (first.clone() / root).mul_scalar(rule.lr / correction1))
        }
        UpdateKind::RmsProp { alpha } => {
            let second = mean_square(alpha, second, g.clone());
            let root = second.clone().sqrt().add_scalar(rule.epsilon);
            (second, (g / root).mul_scalar(rule.lr))
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
            UpdateKind::RmsProp { alpha } => {
                blocks.for_each(|((p, v), g)| rms_prop_block(p, v, g, alpha, &rule));
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
    fn rms_prop_block(p: &mut [f32], v: &mut [f32], g: &[f32], alpha: f32, rule: &UpdateRule)
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
    let UpdateKind::Adam { beta1, beta2, correction1, sqrt_correction2, decoupled } = rule.kind
    else {
        return;
    };
    let shrink = if decoupled { 1.0 - rule.lr * rule.weight_decay } else { 1.0 };
    let pull = if decoupled { 0.0 } else { rule.weight_decay };
    let step = rule.lr / correction1;
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * rule.gradient_scale + pull * *p;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *p = *p * shrink - step * (*m / (v.sqrt() / sqrt_correction2 + rule.epsilon));
    }
}

#[inline(always)]
fn rms_prop_block_plain(p: &mut [f32], v: &mut [f32], g: &[f32], alpha: f32, rule: &UpdateRule) {
    for ((p, v), g) in p.iter_mut().zip(v).zip(g) {
        let g = g * rule.gradient_scale + rule.weight_decay * *p;
        *v = alpha * *v + (1.0 - alpha) * g * g;
        *p -= rule.lr * (g / (v.sqrt() + rule.epsilon));
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

    fn rule(kind: UpdateKind) -> UpdateRule {
        UpdateRule { kind, lr: 1e-3, gradient_scale: 0.7, weight_decay: 0.1, epsilon: 1e-8 }
    }

    fn adam(step: i32, decoupled: bool) -> UpdateKind {
        UpdateKind::Adam {
            beta1: 0.9,
            beta2: 0.999,
            correction1: 1.0 - 0.9f32.powi(step),
            sqrt_correction2: (1.0 - 0.999f32.powi(step)).sqrt(),
            decoupled,
        }
    }

    #[test]
    fn one_pass_and_composed_updates_agree() {
        let len = 40_001;
        let kinds: [fn(i32) -> UpdateKind; 3] = [
            |step| adam(step, true),
            |step| adam(step, false),
            |_| UpdateKind::RmsProp { alpha: 0.99 },
        ];
        for kind in kinds {
            let start = || UpdateState {
                parameter: vector(0, 1.0, len),
                first: vector(0, 0.0, len),
                second: vector(0, 0.0, len),
            };
            let (mut fused, mut composed) = (start(), start());
            for step in 1..=20 {
                let rule = rule(kind(step));
                fused = update(fused, vector(step as u64, 0.01, len), rule);
                composed = update_composed(composed, vector(step as u64, 0.01, len), rule);
            }
            let difference =
                (fused.parameter - composed.parameter).abs().max().into_scalar::<f32>();
            assert!(difference < 2e-7, "{difference}");
        }
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
