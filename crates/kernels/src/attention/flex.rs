//! The CPU form of attention (Flex, float32): multi-threaded passes over slices.
//!
//! A unit of work is one group (a root segment and the segments that see it) and one key-value
//! head. It iterates over tiles of queries, with the query heads that share the keys side by side;
//! only the scores of one tile exist at a time. Keys after a tile's last query, or before its
//! window, are never read.

mod tile;

use std::sync::Arc;

use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

use super::{AttentionLayout, Segment, SegmentAttention, SegmentAttentionGrad};
use crate::flex::fresh::filled;
use crate::flex::{contiguous, slice, tensor};
use crate::timed;
use tile::{ByDimension, ByKey, Rotation, Sink, Tile, multiply, transposed};

/// Approximate rows of a tile: their scores against a thousand keys fit the second-level cache.
const ROWS: usize = 126;

impl SegmentAttention for Flex {
    fn segment_attention(
        q_t: FloatTensor<Self>,
        k_t: FloatTensor<Self>,
        v_t: FloatTensor<Self>,
        layout: Arc<AttentionLayout>,
    ) -> FloatTensor<Self> {
        timed!("attention");
        let (q_t, k_t, v_t) = (contiguous(q_t), contiguous(k_t), contiguous(v_t));
        let out = forward(slice(&q_t), slice(&k_t), slice(&v_t), &layout);
        tensor(out, &[layout.segments.tokens(), layout.heads * layout.head_dim])
    }
}

impl SegmentAttentionGrad for Flex {
    fn segment_attention_grad(
        inputs: [FloatTensor<Self>; 3],
        _: Vec<FloatTensor<Self>>,
        d_t: FloatTensor<Self>,
        layout: &Arc<AttentionLayout>,
        wanted: [bool; 3],
    ) -> [Option<FloatTensor<Self>>; 3] {
        timed!("attention.backward");
        let [q_t, k_t, v_t] = inputs.map(contiguous);
        let d_t = contiguous(d_t);
        let inputs = [slice(&q_t), slice(&k_t), slice(&v_t)];
        let [dq, dk, dv] = backward(inputs, slice(&d_t), layout, wanted);
        let tokens = layout.segments.tokens();
        let (query_width, key_width) =
            (layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim);
        [(dq, query_width), (dk, key_width), (dv, key_width)]
            .map(|(gradient, width)| gradient.map(|values| tensor(values, &[tokens, width])))
    }
}

/// `[t, h · e]` from `q` (`[t, h · e]`), `k` and `v` (`[t, g · e]`), before the rotary embedding.
fn forward(q: &[f32], k: &[f32], v: &[f32], layout: &AttentionLayout) -> Vec<f32> {
    let mut out = zeros(q.len());
    let sink = Sink(out.as_mut_ptr());
    units(layout).into_par_iter().for_each(|unit| {
        let [mut queries, mut scores, mut outputs] = [const { Vec::new() }; 3];
        for segment in &unit.group {
            let keys = unit.keys(segment, k, Some(Rotation::Forward), layout).by_dimension();
            let values = unit.keys(segment, v, None, layout);
            for tile in unit.tiles(segment, layout) {
                tile.gather(q, Some(Rotation::Forward), layout, &mut queries);
                tile.probabilities(&queries, &keys, layout, &mut scores);
                multiply(tile.matrix(&scores), values.seen(&tile), &mut outputs);
                // SAFETY: only this unit writes the rows of this segment in the columns of its
                // heads.
                unsafe { tile.scatter(&outputs, None, layout, &sink) };
            }
        }
    });
    out
}

/// Gradients of `q`, `k`, `v` (before the rotary embedding), each if `wanted`, for the output
/// gradient `d`.
fn backward(
    [q, k, v]: [&[f32]; 3],
    d: &[f32],
    layout: &AttentionLayout,
    wanted: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let [mut dq, mut dk, mut dv] = [(q, wanted[0]), (k, wanted[1]), (v, wanted[2])]
        .map(|(x, wanted)| if wanted { zeros(x.len()) } else { Vec::new() });
    let [dq_sink, dk_sink, dv_sink] =
        [&mut dq, &mut dk, &mut dv].map(|gradient| Sink(gradient.as_mut_ptr()));
    let [q_wanted, k_wanted, v_wanted] = wanted;
    units(layout).into_par_iter().for_each(|unit| {
        let [mut queries, mut upstream, mut scores, mut gradients, mut d_queries] =
            [const { Vec::new() }; 5];
        for segment in &unit.group {
            let keys = unit.keys(segment, k, Some(Rotation::Forward), layout);
            let keys_by_dimension = keys.by_dimension();
            let values = unit.keys(segment, v, None, layout).by_dimension();
            let mut d_keys = k_wanted.then(|| values.zeros());
            let mut d_values = v_wanted.then(|| values.zeros());
            for tile in unit.tiles(segment, layout) {
                tile.gather(q, Some(Rotation::Forward), layout, &mut queries);
                tile.gather(d, None, layout, &mut upstream);
                tile.probabilities(&queries, &keys_by_dimension, layout, &mut scores);
                if q_wanted || k_wanted {
                    tile.score_gradients(&upstream, &values, &scores, layout, &mut gradients);
                }
                if q_wanted {
                    let ds = tile.matrix(&gradients);
                    multiply(ds, keys.seen(&tile), &mut d_queries);
                    // SAFETY: only this unit writes the rows of this segment in the columns of its
                    // heads.
                    unsafe { tile.scatter(&d_queries, Some(Rotation::Back), layout, &dq_sink) };
                }
                if let Some(d_keys) = &mut d_keys {
                    d_keys.add(tile.rows_of(&queries), tile.matrix(&gradients), &tile);
                }
                if let Some(d_values) = &mut d_values {
                    d_values.add(tile.rows_of(&upstream), tile.matrix(&scores), &tile);
                }
            }
            for (d, sink) in [(&d_keys, &dk_sink), (&d_values, &dv_sink)] {
                if let Some(d) = d {
                    // SAFETY: only this unit writes the rows of its group in the columns of this
                    // key-value head.
                    unsafe { unit.add_keys(segment, d, sink, layout) };
                }
            }
        }
    });
    [q_wanted.then_some(dq), k_wanted.then(|| rotated_back(&dk, layout)), v_wanted.then_some(dv)]
}

fn zeros(len: usize) -> Vec<f32> {
    filled(len, 1 << 16, |_, _| ())
}

/// One group of segments and one key-value head.
struct Unit {
    group: Vec<Segment>,
    kv_head: usize,
}

fn units(layout: &AttentionLayout) -> Vec<Unit> {
    let groups = layout.segments.groups();
    let units = groups.into_iter().flat_map(|group| {
        (0..layout.kv_heads).map(move |kv_head| Unit { group: group.clone(), kv_head })
    });
    units.collect()
}

impl Unit {
    fn prefix(&self, segment: &Segment) -> Option<&Segment> {
        segment.prefix.map(|_| &self.group[0])
    }

    /// Position of the segment's first query among its keys.
    fn offset(&self, segment: &Segment) -> usize {
        self.prefix(segment).map_or(0, |prefix| prefix.len)
    }

    fn tiles(&self, segment: &Segment, layout: &AttentionLayout) -> impl Iterator<Item = Tile> {
        let queries = (ROWS / layout.repeat()).clamp(16, 64);
        let (start, len, offset) = (segment.start, segment.len, self.offset(segment));
        let first_column = self.kv_head * layout.repeat() * layout.head_dim;
        (0..len).step_by(queries).map(move |from| {
            let to = (from + queries).min(len);
            Tile {
                first_token: start + from,
                queries: to - from,
                repeat: layout.repeat(),
                first_column,
                position: offset + from,
                seen: layout.visible(offset + from).start..offset + to,
            }
        })
    }

    /// Tokens whose keys the segment sees: those of its prefix, then its own.
    fn key_tokens(&self, segment: &Segment) -> impl Iterator<Item = usize> {
        let prefix = self.prefix(segment).map_or(0..0, |p| p.start..p.start + p.len);
        prefix.chain(segment.start..segment.start + segment.len)
    }

    /// Each token of [`Self::key_tokens`], and the index in `[t, g · e]` at which this head begins.
    fn key_places(
        &self,
        segment: &Segment,
        layout: &AttentionLayout,
    ) -> impl Iterator<Item = (usize, usize)> {
        let (row, column) = (layout.key_row(), self.kv_head * layout.head_dim);
        self.key_tokens(segment).map(move |token| (token, token * row + column))
    }

    /// This head's part of `x` (`[t, g · e]`) for the keys of the segment, rotated if `rotation`.
    fn keys(
        &self,
        segment: &Segment,
        x: &[f32],
        rotation: Option<Rotation>,
        layout: &AttentionLayout,
    ) -> ByKey {
        let width = layout.head_dim;
        let mut numbers = vec![0.0; (self.offset(segment) + segment.len) * width];
        let places = self.key_places(segment, layout).zip(numbers.chunks_exact_mut(width));
        for ((token, at), key) in places {
            layout.rotate(token, rotation, &x[at..at + width], key);
        }
        ByKey { numbers, width }
    }

    /// Adds gradients to the places that [`Self::keys`] read.
    ///
    /// # Safety
    /// No other thread may access the rows of the group in the columns of this head.
    unsafe fn add_keys(
        &self,
        segment: &Segment,
        d: &ByDimension,
        sink: &Sink,
        layout: &AttentionLayout,
    ) {
        let d = transposed(&d.numbers, d.width, d.keys);
        let places = self.key_places(segment, layout).zip(d.chunks_exact(layout.head_dim));
        for ((_, at), values) in places {
            // SAFETY: within the buffer; the caller guarantees that no other thread accesses it.
            let target = unsafe { std::slice::from_raw_parts_mut(sink.at(at), layout.head_dim) };
            for (sum, value) in target.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
}

/// Gradients of rotated keys (`[t, g · e]`), rotated back.
fn rotated_back(d: &[f32], layout: &AttentionLayout) -> Vec<f32> {
    /// Tokens of a unit of work.
    const TOKENS: usize = 64;
    let row = layout.key_row();
    filled(d.len(), TOKENS * row, |unit, out| {
        let first = unit * TOKENS;
        let heads = d[first * row..].chunks_exact(layout.head_dim);
        for (index, (out, d)) in out.chunks_exact_mut(layout.head_dim).zip(heads).enumerate() {
            layout.rotate(first + index / layout.kv_heads, Some(Rotation::Back), d, out);
        }
    })
}
