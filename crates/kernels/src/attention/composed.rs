//! Attention composed of Burn's own operations, for every device and precision.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation::softmax};

use super::{AttentionLayout, Segment};
use crate::soft_cap::soft_cap;

/// [`segment_attention`](super::segment_attention) composed of Burn's own operations. Each segment
/// forms its whole score matrices, in float32 even if the inputs have fewer bits.
pub fn segment_attention_composed(
    q_t: Tensor<2>,
    k_t: Tensor<2>,
    v_t: Tensor<2>,
    layout: &AttentionLayout,
) -> Tensor<2> {
    if layout.segments.tokens() == 0 {
        return q_t;
    }
    let (dtype, device) = (q_t.dtype(), q_t.device());
    let rotary = |values: &[f32]| {
        let shape = [layout.segments.tokens(), 1, layout.angles];
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), &device)
    };
    let (cos, sin) = (rotary(&layout.cos), rotary(&layout.sin));
    let heads = |x: Tensor<2>, heads: usize| {
        x.cast(DType::F32).reshape([layout.segments.tokens(), heads, layout.head_dim])
    };
    let q = rotate(heads(q_t, layout.heads), &cos, &sin);
    let k = rotate(heads(k_t, layout.kv_heads), &cos, &sin);
    let v = heads(v_t, layout.kv_heads);
    // An empty prompt is a segment without tokens; Burn has no tensors with zero rows.
    let outputs = layout
        .segments
        .iter()
        .filter(|segment| segment.len > 0)
        .map(|segment| {
            let mut ancestors = layout.segments.ancestors(segment);
            ancestors.retain(|ancestor| ancestor.len > 0);
            attend_segment(&q, &k, &v, segment, &ancestors, layout, &device)
        })
        .collect();
    Tensor::cat(outputs, 0).cast(dtype)
}

/// Output of one segment, `[q, h · e]`.
fn attend_segment(
    q_the: &Tensor<3>,
    k_tge: &Tensor<3>,
    v_tge: &Tensor<3>,
    segment: &Segment,
    ancestors: &[Segment],
    layout: &AttentionLayout,
    device: &Device,
) -> Tensor<2> {
    let rows = |x: &Tensor<3>, s: &Segment| x.clone().narrow(0, s.start, s.len);
    let with_prefix = |x: &Tensor<3>| match ancestors {
        [] => rows(x, segment),
        _ => Tensor::cat(ancestors.iter().chain([segment]).map(|s| rows(x, s)).collect(), 0),
    };
    let offset: usize = ancestors.iter().map(|ancestor| ancestor.len).sum();
    let (queries, keys) = (segment.len, offset + segment.len);
    let repeat = layout.repeat();

    let q = rows(q_the, segment).reshape([queries, layout.kv_heads, repeat * layout.head_dim]);
    let q: Tensor<4> = q
        .reshape([queries, layout.kv_heads, repeat, layout.head_dim])
        .permute([1, 2, 0, 3])
        .reshape([layout.kv_heads, 1, repeat * queries, layout.head_dim]);
    let k: Tensor<4> = with_prefix(k_tge).permute([1, 2, 0]).unsqueeze_dim(1);
    let v: Tensor<4> = with_prefix(v_tge).permute([1, 0, 2]).unsqueeze_dim(1);

    let hidden = hidden_keys(queries, offset, layout.window, device);
    let hidden = hidden.reshape([1, 1, queries, keys]);
    let shape = [layout.kv_heads, repeat, queries, keys];
    let scores = soft_cap(q.matmul(k).mul_scalar(layout.scale()), layout.softcap).reshape(shape);
    let scores = scores.mask_fill(hidden.expand(shape), f32::NEG_INFINITY);
    let weights = softmax(scores, 3).reshape([layout.kv_heads, 1, repeat * queries, keys]);
    weights
        .matmul(v)
        .reshape([layout.kv_heads, repeat, queries, layout.head_dim])
        .permute([2, 0, 1, 3])
        .reshape([queries, layout.heads * layout.head_dim])
}

/// Mask `[q, k]`: true if the query `q`, at position `offset + q`, must not see the key `k`.
pub fn hidden_keys(
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

/// Rotary embedding in Hugging Face's rotate-half form on `[t, heads, e]`. With `n` angles, the
/// first
/// `2 n` elements of a head are rotated.
pub fn rotate(x: Tensor<3>, cos: &Tensor<3>, sin: &Tensor<3>) -> Tensor<3> {
    let (half, width) = (cos.dims()[2], x.dims()[2]);
    if 2 * half < width {
        let rest = x.clone().narrow(2, 2 * half, width - 2 * half);
        return Tensor::cat(vec![rotate(x.narrow(2, 0, 2 * half), cos, sin), rest], 2);
    }
    let (low, high) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let rotated_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let rotated_high = high * cos.clone() + low * sin.clone();
    Tensor::cat(vec![rotated_low, rotated_high], 2)
}
