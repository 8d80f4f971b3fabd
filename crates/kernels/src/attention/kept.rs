//! Attention of new tokens to the kept keys of their sequences, for generation on the CPU.
//!
//! Each sequence keeps its rotated keys and its values in main memory, head by head, so that a new
//! token is appended without copying the earlier ones. No sequence sees another.
//!
//! Legend: `n` new tokens, one of each sequence; `p` kept keys of a sequence; `h` query heads, `g`
//! key-value heads, `e` head width, `r` query heads that share a key-value head.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use super::flex::tile::{Rotation, capped, rotate_head, softmax};
use super::{AttentionLayout, AttentionShape, form, rotary_angles};
use crate::flex::exp::vectorized;
use crate::flex::lanes;
use crate::form::Form;
use crate::timed;

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct KeptKeys {
    heads: Vec<KeptHead>,
}

/// One key-value head of a sequence.
#[derive(Debug, Clone, Default)]
struct KeptHead {
    /// Rotary embedding applied, `[p, e]`.
    keys: Vec<f32>,
    /// `[p, e]`.
    values: Vec<f32>,
}

/// Whether [`attention_to_kept`] computes with tensors of this type on this device.
pub fn keeps_keys(device: &Device, dtype: DType) -> bool {
    form(device, dtype) == Form::Flex
}

impl KeptKeys {
    /// Keys and values of the given tokens of a batch, with room for `room` tokens. `k_t` and `v_t`
    /// are `[t, g · e]`, before the rotary embedding.
    ///
    /// # Panics
    /// If the tensors are not float32, or do not have the shape of the layout.
    pub fn of_tokens(
        k_t: &[f32],
        v_t: &[f32],
        tokens: &[usize],
        layout: &AttentionLayout,
        room: usize,
    ) -> Self {
        let (width, row) = (layout.head_dim, layout.kv_heads * layout.head_dim);
        let head = |head: usize| {
            let mut kept = KeptHead::default();
            kept.keys.reserve_exact(room.max(tokens.len()) * width);
            kept.values.reserve_exact(room.max(tokens.len()) * width);
            kept.keys.resize(tokens.len() * width, 0.0);
            for (token, key) in tokens.iter().zip(kept.keys.chunks_exact_mut(width)) {
                let at = token * row + head * width;
                layout.rotate(*token, Some(Rotation::Forward), &k_t[at..at + width], key);
                kept.values.extend_from_slice(&v_t[at..at + width]);
            }
            kept
        };
        Self { heads: (0..layout.kv_heads).map(head).collect() }
    }
}

/// Attention of one new token of each sequence to all tokens of the sequence, itself included.
/// Appends its key and value to `kept`.
///
/// `q_n` is `[n, h · e]`, `k_n` and `v_n` are `[n, g · e]`, all before the rotary embedding;
/// `positions` are those of the tokens, `[n]`. The result is `[n, h · e]`. `kind` is the index of the
/// layer's kind in `shape`.
///
/// # Panics
/// If the tensors are not float32, or if sequences, positions and rows differ in number.
pub fn attention_to_kept(
    [q_n, k_n, v_n]: [Tensor<2>; 3],
    kept: &mut [&mut KeptKeys],
    positions: &[u32],
    shape: &AttentionShape,
    kind: usize,
) -> Tensor<2> {
    timed!("attention to kept keys");
    let device = q_n.device();
    let [q, k, v] = [q_n, k_n, v_n].map(numbers);
    let width = shape.head_dim;
    let repeat = shape.heads / shape.kv_heads;
    let kind = &shape.kinds[kind];
    let (window, angles) = (kind.window, kind.rotary_frequencies.len());
    let lengths: Vec<u32> = positions.iter().map(|position| position + 1).collect();
    let (cos, sin) = rotary_angles(kind, positions, &lengths);
    assert!(kept.len() == positions.len() && q.len() == kept.len() * shape.heads * width);
    let mut out = vec![0.0; q.len()];
    let heads: Vec<&mut KeptHead> = kept.iter_mut().flat_map(|kept| &mut kept.heads).collect();
    let inputs = q.par_chunks_exact(repeat * width).zip(k.par_chunks_exact(width));
    let inputs = inputs.zip(v.par_chunks_exact(width)).enumerate();
    heads.into_par_iter().zip(inputs).zip(out.par_chunks_exact_mut(repeat * width)).for_each(
        |((head, (index, ((q, k), v))), out)| {
            let sequence = index / shape.kv_heads;
            let angles = sequence * angles..(sequence + 1) * angles;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            head.append(k, v, cos, sin);
            let mut queries = vec![0.0; q.len()];
            for (query, q) in queries.chunks_exact_mut(width).zip(q.chunks_exact(width)) {
                rotate_head(query, q, cos, sin, 1.0);
            }
            head.attend(&queries, window, shape, out);
        },
    );
    let shape = [positions.len(), shape.heads * width];
    Tensor::from_data(TensorData::new(out, shape), &device)
}

/// The elements of a float32 tensor in row-major order.
fn numbers(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("the caller chose this form for float32")
}

impl KeptHead {
    fn append(&mut self, k: &[f32], v: &[f32], cos: &[f32], sin: &[f32]) {
        let from = self.keys.len();
        self.keys.resize(from + k.len(), 0.0);
        rotate_head(&mut self.keys[from..], k, cos, sin, 1.0);
        self.values.extend_from_slice(v);
    }

    /// `out` (`[r, e]`) = attention of the rotated queries of the last token (`[r, e]`).
    fn attend(
        &self,
        queries: &[f32],
        window: Option<usize>,
        shape: &AttentionShape,
        out: &mut [f32],
    ) {
        let width = shape.head_dim;
        let scale = (width as f32).sqrt().recip();
        let keys = self.keys.len() / width;
        let first = window.map_or(0, |window| keys.saturating_sub(window)) * width;
        let mut scores = vec![0.0; keys - first / width];
        let rows = queries.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for (query, out) in rows {
            products(query, &self.keys[first..], &mut scores);
            let scale = capped(&mut scores, scale, shape.softcap);
            softmax(&mut scores, scale);
            weighted_sum(&scores, &self.values[first..], out);
        }
    }
}

vectorized!(
    /// `out` (`[s]`) = the products of `query` (`[e]`) with each row of `keys` (`[s, e]`).
    fn products(query: &[f32], keys: &[f32], out: &mut [f32]) = products_plain
);
vectorized!(
    /// `out` (`[e]`) = `Σ weight · row` over the rows of `values` (`[s, e]`).
    fn weighted_sum(weights: &[f32], values: &[f32], out: &mut [f32]) = weighted_sum_plain
);

#[inline(always)]
fn products_plain(query: &[f32], keys: &[f32], out: &mut [f32]) {
    for (out, key) in out.iter_mut().zip(keys.chunks_exact(query.len())) {
        *out = lanes::sum_of_pairs(query, key, |q, k| q * k);
    }
}

#[inline(always)]
fn weighted_sum_plain(weights: &[f32], values: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (weight, row) in weights.iter().zip(values.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(row) {
            *out += weight * value;
        }
    }
}
