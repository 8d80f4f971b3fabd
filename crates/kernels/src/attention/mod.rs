//! Causal attention over segments, with rotary embedding, grouped heads and a sliding window.
//!
//! For each query `i` and head, `out_i = Σ_j softmax_j(q_i · k_j / √e) v_j` over the keys `j` that
//! the query sees: those of the segment's prefix and of the segment itself, up to position `i` and
//! within the sliding window. Queries and keys are rotated first (RoPE, arXiv 2104.09864, in the
//! rotate-half form of Hugging Face); `h / g` query heads share a key-value head (arXiv
//! 2305.13245). A soft cap `c` (arXiv 2408.00118) replaces each score by `c · tanh(score / c)`.
//!
//! Legend: `t` tokens, `h` query heads, `g` key-value heads, `e` head width; `q` queries and `k`
//! keys of one segment.

// The code that `backend_extension` writes names LibTorch.
#![cfg_attr(
    feature = "tch",
    allow(deprecated, reason = "Burn 0.22 still has LibTorch, and says that a later one will not")
)]

mod composed;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod kept;
mod layout;
mod segments;
#[cfg(feature = "tch")]
mod torch;

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, autodiff::checkpoint::strategy::CheckpointStrategy,
    backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, Tensor};

use super::autodiff::{Differentiable, register};
use super::form::Form;
pub use composed::{hidden_keys, rotate, segment_attention_composed};
#[cfg(feature = "ptx")]
pub(crate) use cube::ptx;
pub use kept::{KeptKeys, attention_to_kept, keeps_keys};
pub use layout::{AttentionLayout, AttentionShape, LayerKind, LongFrequencies, rotary_angles};
pub use segments::{Segment, Segments};

/// Attention over the segments of `layout`.
///
/// `q_t` is `[t, h · e]`, `k_t` and `v_t` are `[t, g · e]`; the result is `[t, h · e]`.
pub fn segment_attention(
    q_t: Tensor<2>,
    k_t: Tensor<2>,
    v_t: Tensor<2>,
    layout: &Arc<AttentionLayout>,
) -> Tensor<2> {
    match form_of(form(&q_t.device(), q_t.dtype()), layout) {
        Form::Composed if torch_takes(&q_t.device(), layout) => fused(q_t, k_t, v_t, layout),
        Form::Composed => segment_attention_composed(q_t, k_t, v_t, layout),
        Form::Flex | Form::Cube => fused(q_t, k_t, v_t, layout),
    }
}

/// The form of the tensors' own back end.
fn fused(
    q_t: Tensor<2>,
    k_t: Tensor<2>,
    v_t: Tensor<2>,
    layout: &Arc<AttentionLayout>,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::segment_attention(
        q_t.into_dispatch(),
        k_t.into_dispatch(),
        v_t.into_dispatch(),
        layout.clone(),
    ))
}

/// The form that runs for inputs of this type on this device.
pub fn form(device: &Device, dtype: DType) -> Form {
    Form::fused(device, dtype)
}

/// The form for this layout, if `form` runs for others.
fn form_of(form: Form, layout: &AttentionLayout) -> Form {
    match form {
        Form::Cube if !cube_takes(layout.head_dim) => Form::Composed,
        form => form,
    }
}

#[cfg(feature = "tch")]
use torch::takes as torch_takes;

/// Whether torch's own attention stands in for the composed form, on GPUs of LibTorch.
#[cfg(not(feature = "tch"))]
fn torch_takes(_: &Device, _: &AttentionLayout) -> bool {
    false
}

/// Whether the GPU form takes heads of this many elements: a multiple of 8, of which a tile fits
/// into shared memory. Other heads run in the composed form.
pub fn cube_takes(head_dim: usize) -> bool {
    head_dim.is_multiple_of(8) && (8..=256).contains(&head_dim)
}

/// Bytes of the score matrices that the autodiff graph keeps for `scores` pairs of query and key
/// (masked ones included) in each of `heads` query heads. The fused forms keep none; the composed
/// form keeps the exponentials and the attention weights, and those of a soft cap (`capped`), in
/// float32.
pub fn score_bytes(form: Form, scores: usize, heads: usize, capped: bool) -> usize {
    let matrices = if capped { 3 } else { 2 };
    match form {
        Form::Flex | Form::Cube => 0,
        Form::Composed => scores.saturating_mul(matrices * heads * 4),
    }
}

/// Back ends with their own form of [`segment_attention`].
#[backend_extension(
    Autodiff,
    Flex,
    Cube: cfg(feature = "cube"),
    LibTorch: cfg(feature = "tch")
)]
pub trait SegmentAttention: Backend {
    /// See [`segment_attention`].
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: Arc<AttentionLayout>,
    ) -> FloatTensor<Self>;
}

/// The backward half of [`SegmentAttention`], on a back end without autodiff.
pub trait SegmentAttentionGrad: SegmentAttention {
    /// The output, and what the backward pass needs besides the inputs. By default nothing.
    fn segment_attention_keeping(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        (Self::segment_attention(q_t, k_t, v_t, layout.clone()), Vec::new())
    }

    /// Gradients of queries, keys and values, each if `wanted`, for the output gradient `d_t`
    /// (`[t, h · e]`) and what the forward pass `kept`. The scores are recomputed.
    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        kept: Vec<FloatTensor<Self>>,
        d_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3];
}

#[derive(Debug, Clone)]
struct AttentionOperation {
    layout: Arc<AttentionLayout>,
}

impl<B: SegmentAttentionGrad> Differentiable<B, 3> for AttentionOperation {
    fn forward(&self, [q_t, k_t, v_t]: [FloatTensor<B>; 3]) -> FloatTensor<B> {
        B::segment_attention(q_t, k_t, v_t, self.layout.clone())
    }

    fn forward_keeping(
        &self,
        [q_t, k_t, v_t]: [FloatTensor<B>; 3],
    ) -> (FloatTensor<B>, Vec<FloatTensor<B>>) {
        B::segment_attention_keeping(q_t, k_t, v_t, &self.layout)
    }

    fn backward(
        &self,
        inputs: [FloatTensor<B>; 3],
        d_t: FloatTensor<B>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let (_, kept) = Differentiable::<B, 3>::forward_keeping(self, inputs.clone());
        Differentiable::<B, 3>::backward_from(self, inputs, kept, d_t, wanted)
    }

    fn backward_from(
        &self,
        inputs: [FloatTensor<B>; 3],
        kept: Vec<FloatTensor<B>>,
        d_t: FloatTensor<B>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        B::segment_attention_grad(inputs, kept, d_t, &self.layout, wanted)
    }
}

impl<B: SegmentAttentionGrad, C: CheckpointStrategy> SegmentAttention for Autodiff<B, C> {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        register::<B, C, _, 3>(AttentionOperation { layout }, [q_t, k_t, v_t])
    }
}
