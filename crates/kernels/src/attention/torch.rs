//! The form for GPUs of LibTorch: torch's own fused attention, one call a segment. Torch chooses the
//! kernels. The backward pass is torch's too; it computes the forward pass again.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::{DispatchDevice, LibTorch, LibTorchDevice, tensor::FloatTensor};
use burn::tensor::Device;
use tch::{Kind, Tensor};

use super::{AttentionLayout, Segment, SegmentAttention, SegmentAttentionGrad};
use crate::timed;

/// Whether this form runs on the device for this layout. Torch's kernels have no soft cap. On the
/// CPU the composed form runs: torch's kernel there has a less exact exponential function.
pub(super) fn takes(device: &Device, layout: &AttentionLayout) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::LibTorch(LibTorchDevice::Cuda(_)))
        && layout.softcap.is_none()
        && layout.segments.tokens() > 0
}

impl SegmentAttention for LibTorch {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        timed!("attention");
        let inputs = [&q_t.tensor, &k_t.tensor, &v_t.tensor];
        FloatTensor::<Self>::new(tch::no_grad(|| attend(inputs, &layout)))
    }
}

impl SegmentAttentionGrad for LibTorch {
    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        _kept: Vec<FloatTensor<Self>>,
        d_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        timed!("attention.backward");
        let leaves = inputs.map(|input| input.tensor.detach().set_requires_grad(true));
        let gradients = tch::with_grad(|| {
            let product = attend(leaves.each_ref(), layout) * &d_t.tensor;
            Tensor::run_backward(&[product.sum(Kind::Float)], &leaves, false, false)
        });
        let mut gradients = gradients.into_iter();
        wanted.map(|is_wanted| {
            let gradient = gradients.next().expect("torch returns a gradient for each input");
            is_wanted.then(|| FloatTensor::<Self>::new(gradient))
        })
    }
}

/// The output `[t, h · e]` for queries `[t, h · e]`, keys and values `[t, g · e]`.
fn attend([q_t, k_t, v_t]: [&Tensor; 3], layout: &AttentionLayout) -> Tensor {
    let tokens = layout.segments.tokens() as i64;
    let of_heads = |x: &Tensor, heads: usize| {
        x.reshape([tokens, heads as i64, layout.head_dim as i64]).transpose(0, 1)
    };
    let table = |values: &[f32]| {
        Tensor::from_slice(values).to_device(q_t.device()).reshape([tokens, layout.angles as i64])
    };
    let (cos, sin) = (table(&layout.cos), table(&layout.sin));
    // Each query head gets its keys and values: fewer of torch's kernels take grouped heads.
    let repeated =
        |x_gte: Tensor| x_gte.repeat_interleave_self_int(layout.repeat() as i64, 0, None);
    let q_hte = rotated(&of_heads(q_t, layout.heads), &cos, &sin);
    let k_hte = repeated(rotated(&of_heads(k_t, layout.kv_heads), &cos, &sin));
    let v_hte = repeated(of_heads(v_t, layout.kv_heads));
    let outputs: Vec<Tensor> = layout
        .segments
        .iter()
        .filter(|segment| segment.len > 0)
        .map(|segment| attend_segment([&q_hte, &k_hte, &v_hte], segment, layout))
        .collect();
    Tensor::cat(&outputs, 0)
}

/// Output of one segment, `[q, h · e]`, for all tokens' `[h, t, e]`.
fn attend_segment(
    [q_hte, k_hte, v_hte]: [&Tensor; 3],
    segment: &Segment,
    layout: &AttentionLayout,
) -> Tensor {
    let rows = |x: &Tensor, s: &Segment| x.narrow(1, s.start as i64, s.len as i64);
    let ancestors = layout.segments.ancestors(segment);
    let with_prefix = |x: &Tensor| {
        let parts: Vec<Tensor> = ancestors.iter().chain([segment]).map(|s| rows(x, s)).collect();
        Tensor::cat(&parts, 1).unsqueeze(0)
    };
    let offset: usize = ancestors.iter().map(|ancestor| ancestor.len).sum();
    let keys = offset + segment.len;
    // Torch's causal kernels are for as many keys as queries. Others get a mask.
    let is_causal = offset == 0 && layout.window.is_none_or(|window| window >= keys);
    let mask = (!is_causal).then(|| seen_keys(segment.len, offset, layout.window, q_hte.device()));
    let out = Tensor::scaled_dot_product_attention(
        &rows(q_hte, segment).unsqueeze(0),
        &with_prefix(k_hte),
        &with_prefix(v_hte),
        mask,
        0.0,
        is_causal,
        f64::from(layout.scale()),
        false,
    );
    let width = layout.heads * layout.head_dim;
    out.squeeze_dim(0).transpose(0, 1).reshape([segment.len as i64, width as i64])
}

/// Mask `[q, k]`: true if the query `q`, at position `offset + q`, sees the key `k`.
fn seen_keys(queries: usize, offset: usize, window: Option<usize>, device: tch::Device) -> Tensor {
    let (first, end) = (offset as i64, (offset + queries) as i64);
    let position = Tensor::arange_start(first, end, (Kind::Int64, device)).unsqueeze(1);
    let key = Tensor::arange(end, (Kind::Int64, device)).unsqueeze(0);
    let seen = key.le_tensor(&position);
    match window {
        Some(window) => seen.logical_and(&(&key + window as i64).gt_tensor(&position)),
        None => seen,
    }
}

/// Rotary embedding of `[heads, t, e]` in float32, in the type of `x`; `cos` and `sin` are
/// `[t, n]`, and the first `2 n` elements of a head are rotated.
fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let (angles, width) = (cos.size()[1], x.size()[2]);
    let part = |from: i64, len: i64| x.narrow(2, from, len).to_kind(Kind::Float);
    let (low, high) = (part(0, angles), part(angles, angles));
    let rest = part(2 * angles, width - 2 * angles);
    let rotated_low = &low * cos - &high * sin;
    let rotated_high = &high * cos + &low * sin;
    Tensor::cat(&[rotated_low, rotated_high, rest], 2).to_kind(x.kind())
}
