//! Attention over segments: queries of a segment attend causally to `prefix keys ++ own keys`,
//! within the sliding window where the model has one. Rotary embedding (rotate-half) is part of it.
//!
//! Legend: `t` tokens, `h` query heads, `g` key-value heads, `e` head width; `q` queries and `k` keys
//! of one segment.

mod flex;

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation::softmax};

use super::autodiff::{Differentiable, register};
use super::contiguous;
use super::is_fused;
use super::slice;
use super::tensor;
use super::timed;
use crate::data::ragged::{Segment, Segments};
use crate::model::config::ModelConfig;

/// Everything about a batch that attention needs besides queries, keys and values.
#[derive(Debug, Clone)]
pub struct AttentionLayout {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees itself and the `window - 1` keys before it.
    pub window: Option<usize>,
    /// The plan of the layers that have no window, where others have one.
    without_window: Option<Arc<Self>>,
    pub segments: Segments,
    /// Cosine of the rotary angle of each token, `[t, e / 2]`.
    pub cos: Vec<f32>,
    /// Sine of the rotary angle of each token, `[t, e / 2]`.
    pub sin: Vec<f32>,
}

impl AttentionLayout {
    /// Rotary angles for the positions of `segments`, computed in double precision.
    pub fn new(config: &ModelConfig, segments: &Segments) -> Arc<Self> {
        let (cos, sin) = rotary_angles(config, &segments.positions());
        let plan = Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
            without_window: None,
            segments: segments.clone(),
            cos,
            sin,
        };
        let without_window =
            config.windows_differ().then(|| Arc::new(Self { window: None, ..plan.clone() }));
        Arc::new(Self { without_window, ..plan })
    }

    /// The plan for a layer of the model that `plan` is for, with a window (`windowed`) or without.
    pub fn of_layer(plan: &Arc<Self>, windowed: bool) -> &Arc<Self> {
        match &plan.without_window {
            Some(without_window) if !windowed => without_window,
            _ => plan,
        }
    }

    /// Factor on the scores, `1 / sqrt(e)`.
    pub fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// Query heads that share one key-value head.
    pub fn repeat(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Keys that a query at position `position` of its sequence sees, as a range of positions.
    pub fn visible(&self, position: usize) -> std::ops::Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// Cosine and sine of the rotary angles at `positions`, `[positions, e / 2]`, computed in double precision.
pub fn rotary_angles(config: &ModelConfig, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let frequencies = config.rotary_frequencies();
    // transformers forms the angle in float32; so do we, that long inputs agree.
    let angles = positions
        .iter()
        .flat_map(|position| frequencies.iter().map(move |f| *position as f32 * *f as f32));
    angles
        .map(|angle| f64::from(angle).sin_cos())
        .map(|(sin, cos)| (cos as f32, sin as f32))
        .unzip()
}

/// Attention over the segments of `plan`.
///
/// `q_t` is `[t, h · e]`, `k_t` and `v_t` are `[t, g · e]`; the result is `[t, h · e]`.
pub fn segment_attention(
    q_t: Tensor<2>,
    k_t: Tensor<2>,
    v_t: Tensor<2>,
    plan: &Arc<AttentionLayout>,
) -> Tensor<2> {
    if !is_fused(&q_t) {
        return segment_attention_composed(q_t, k_t, v_t, plan);
    }
    Tensor::from_dispatch(Dispatch::segment_attention(
        q_t.into_dispatch(),
        k_t.into_dispatch(),
        v_t.into_dispatch(),
        plan.clone(),
    ))
}

#[backend_extension(Autodiff, Flex)]
pub trait SegmentAttention: Backend {
    /// See [`segment_attention`].
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        plan: Arc<AttentionLayout>,
    ) -> FloatTensor<Self>;
}

/// The backward half of [`SegmentAttention`], on a back end without autodiff.
pub trait SegmentAttentionGrad: SegmentAttention {
    /// Gradients of queries, keys and values, each if `wanted`, for the output gradient `d_t`
    /// (`[t, h · e]`). Scores are recomputed: none are kept.
    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        d_t: FloatTensor<Self>,
        plan: &AttentionLayout,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];
}

impl SegmentAttention for Flex {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        plan: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        timed!("attention");
        let (q_t, k_t, v_t) = (contiguous(q_t), contiguous(k_t), contiguous(v_t));
        let out = flex::forward(slice(&q_t), slice(&k_t), slice(&v_t), &plan);
        tensor(out, &[plan.segments.tokens(), plan.heads * plan.head_dim])
    }
}

impl SegmentAttentionGrad for Flex {
    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        d_t: FloatTensor<Self>,
        plan: &AttentionLayout,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        timed!("attention.backward");
        let [q_t, k_t, v_t] = inputs.map(contiguous);
        let d_t = contiguous(d_t);
        let inputs = [slice(&q_t), slice(&k_t), slice(&v_t)];
        let [dq, dk, dv] = flex::backward(inputs, slice(&d_t), plan, wanted);
        let tokens = plan.segments.tokens();
        let (query_width, key_width) = (plan.heads * plan.head_dim, plan.kv_heads * plan.head_dim);
        [(dq, query_width), (dk, key_width), (dv, key_width)]
            .map(|(gradient, width)| gradient.map(|values| tensor(values, &[tokens, width])))
    }
}

#[derive(Debug, Clone)]
struct AttentionOperation {
    plan: Arc<AttentionLayout>,
}

impl<B: SegmentAttentionGrad> Differentiable<B, 3> for AttentionOperation {
    fn forward(&self, [q_t, k_t, v_t]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
        B::segment_attention(q_t, k_t, v_t, self.plan.clone())
    }

    fn backward(
        &self,
        inputs: [FloatTensor<B>; 3],
        d_t: FloatTensor<B>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        B::segment_attention_grad(inputs, d_t, &self.plan, wanted)
    }
}

impl<B: SegmentAttentionGrad, C: CheckpointStrategy> SegmentAttention for Autodiff<B, C> {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        plan: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        register::<B, C, _, 3>(AttentionOperation { plan }, [q_t, k_t, v_t])
    }
}

/// [`segment_attention`] composed of Burn's own operations: one softmax over whole score
/// matrices a segment, in float32 whatever the inputs are.
pub fn segment_attention_composed(
    q_t: Tensor<2>,
    k_t: Tensor<2>,
    v_t: Tensor<2>,
    plan: &AttentionLayout,
) -> Tensor<2> {
    if plan.segments.tokens() == 0 {
        return q_t;
    }
    let (dtype, device) = (q_t.dtype(), q_t.device());
    let rotary = |values: &[f32]| {
        let shape = [plan.segments.tokens(), 1, plan.head_dim / 2];
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &device)
    };
    let (cos, sin) = (rotary(&plan.cos), rotary(&plan.sin));
    let heads = |x: Tensor<2>, heads: usize| {
        x.cast(DType::F32).reshape([plan.segments.tokens(), heads, plan.head_dim])
    };
    let q = rotate(heads(q_t, plan.heads), &cos, &sin);
    let k = rotate(heads(k_t, plan.kv_heads), &cos, &sin);
    let v = heads(v_t, plan.kv_heads);
    // An empty prompt is a segment and a prefix of no tokens, of which there is no tensor.
    let outputs = plan
        .segments
        .iter()
        .filter(|segment| segment.len > 0)
        .map(|segment| {
            let prefix = plan.segments.prefix_of(segment).filter(|prefix| prefix.len > 0);
            attend_segment(&q, &k, &v, segment, prefix, plan, &device)
        })
        .collect();
    Tensor::cat(outputs, 0).cast(dtype)
}

/// One segment: `[q, h · e]` from its own queries and the keys that they see.
fn attend_segment(
    q_the: &Tensor<3>,
    k_tge: &Tensor<3>,
    v_tge: &Tensor<3>,
    segment: &Segment,
    prefix: Option<&Segment>,
    plan: &AttentionLayout,
    device: &Device,
) -> Tensor<2> {
    let rows = |x: &Tensor<3>, s: &Segment| x.clone().narrow(0, s.start, s.len);
    let with_prefix = |x: &Tensor<3>| match prefix {
        Some(prefix) => Tensor::cat(vec![rows(x, prefix), rows(x, segment)], 0),
        None => rows(x, segment),
    };
    let offset = prefix.map_or(0, |prefix| prefix.len);
    let (queries, keys) = (segment.len, offset + segment.len);
    let repeat = plan.repeat();

    let q = rows(q_the, segment).reshape([queries, plan.kv_heads, repeat * plan.head_dim]);
    let q: Tensor<4> = q
        .reshape([queries, plan.kv_heads, repeat, plan.head_dim])
        .permute([1, 2, 0, 3])
        .reshape([plan.kv_heads, 1, repeat * queries, plan.head_dim]);
    let k: Tensor<4> = with_prefix(k_tge).permute([1, 2, 0]).unsqueeze_dim(1);
    let v: Tensor<4> = with_prefix(v_tge).permute([1, 0, 2]).unsqueeze_dim(1);

    let hidden = hidden_keys(queries, offset, plan.window, device);
    let hidden = hidden.reshape([1, 1, queries, keys]);
    let shape = [plan.kv_heads, repeat, queries, keys];
    let scores = q.matmul(k).mul_scalar(plan.scale()).reshape(shape);
    let scores = scores.mask_fill(hidden.expand(shape), f32::NEG_INFINITY);
    let weights = softmax(scores, 3).reshape([plan.kv_heads, 1, repeat * queries, keys]);
    weights
        .matmul(v)
        .reshape([plan.kv_heads, repeat, queries, plan.head_dim])
        .permute([2, 0, 1, 3])
        .reshape([queries, plan.heads * plan.head_dim])
}

/// `[q, k]`, true where key `k` may not be seen by query `q` (at position `offset + q`).
pub(crate) fn hidden_keys(
    queries: usize,
    offset: usize,
    window: Option<usize>,
    device: &Device,
) -> Tensor<2, Bool> {
    let plain = device.clone().without_autodiff();
    let range = |from: usize, to: usize| Tensor::<1, Int>::arange(from as i64..to as i64, &plain);
    let shape = [queries, offset + queries];
    let position = range(offset, offset + queries).reshape([queries, 1]).expand(shape);
    let key = range(0, offset + queries).reshape([1, offset + queries]).expand(shape);
    let future = key.clone().greater(position.clone());
    match window {
        Some(window) => future.bool_or(key.add_scalar(window as i64).lower_equal(position)),
        None => future,
    }
}

/// Rotary embedding in Hugging Face's rotate-half form on `[t, heads, e]`.
pub(crate) fn rotate(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let (low, high) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let rotated_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let rotated_high = high * cos.clone() + low * sin.clone();
    Tensor::cat(vec![rotated_low, rotated_high], 2)
}
