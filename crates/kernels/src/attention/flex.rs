//! The CPU form of attention (Flex, float32): multi-threaded passes over slices.
//!
//! A unit of work has one key-value head and, in the forward pass, some queries of one segment; in
//! the backward pass, which adds up the gradients of shared keys, one group: a root segment and all
//! segments that see it. A unit iterates over tiles of queries, with the query heads that share the
//! keys side by side; only the scores of one tile exist at a time. Keys after a tile's last query,
//! or before its window, are never read.

pub(super) mod tile;

use std::ops::Range;
use std::sync::Arc;

use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

use super::{AttentionLayout, Segment, SegmentAttention, SegmentAttentionGrad};
use crate::flex::fresh::filled;
use crate::flex::{contiguous, slice, tensor};
use crate::timed;
use tile::{ByDimension, ByKey, Rotation, Sink, Tile, multiply, times_slope, transposed};

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
    forward_units(layout).into_par_iter().with_max_len(1).for_each(|unit| {
        let [mut queries, mut scores, mut outputs] = [const { Vec::new() }; 3];
        for branch in &unit.branches {
            let keys = unit.keys(branch, k, Some(Rotation::Forward), layout).by_dimension();
            let values = unit.keys(branch, v, None, layout);
            for tile in unit.tiles(branch, layout) {
                tile.gather(q, Some(Rotation::Forward), layout, &mut queries);
                tile.probabilities(&queries, &keys, layout, &mut scores, None);
                multiply(tile.matrix(&scores), values.seen(&tile), &mut outputs);
                // SAFETY: only this unit writes the rows of these queries in the columns of its
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
    backward_units(layout).into_par_iter().for_each(|unit| {
        let [mut queries, mut upstream, mut scores, mut tanh, mut gradients, mut d_queries] =
            [const { Vec::new() }; 6];
        for branch in &unit.branches {
            let keys = unit.keys(branch, k, Some(Rotation::Forward), layout);
            let keys_by_dimension = keys.by_dimension();
            let values = unit.keys(branch, v, None, layout).by_dimension();
            let mut d_keys = k_wanted.then(|| values.zeros());
            let mut d_values = v_wanted.then(|| values.zeros());
            for tile in unit.tiles(branch, layout) {
                tile.gather(q, Some(Rotation::Forward), layout, &mut queries);
                tile.gather(d, None, layout, &mut upstream);
                let tanh_of_scores = Some(&mut tanh);
                tile.probabilities(
                    &queries,
                    &keys_by_dimension,
                    layout,
                    &mut scores,
                    tanh_of_scores,
                );
                if q_wanted || k_wanted {
                    tile.score_gradients(&upstream, &values, &scores, layout, &mut gradients);
                    if layout.softcap.is_some() {
                        times_slope(&mut gradients, &tanh);
                    }
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
                    unsafe { unit.add_keys(branch, d, sink, layout) };
                }
            }
        }
    });
    [q_wanted.then_some(dq), k_wanted.then(|| rotated_back(&dk, layout)), v_wanted.then_some(dv)]
}

fn zeros(len: usize) -> Vec<f32> {
    filled(len, 1 << 16, |_, _| ())
}

/// Consecutive queries of one segment.
struct Branch {
    segment: Segment,
    /// The segments whose keys come before the segment's own, the root first.
    ancestors: Vec<Segment>,
    /// The queries, as offsets in the segment.
    queries: Range<usize>,
}

impl Branch {
    fn whole(segment: &Segment, layout: &AttentionLayout) -> Self {
        let ancestors = layout.segments.ancestors(segment);
        Self { segment: *segment, ancestors, queries: 0..segment.len }
    }

    /// Position of the segment's first query among its keys.
    fn offset(&self) -> usize {
        self.ancestors.iter().map(|ancestor| ancestor.len).sum()
    }

    /// Number of keys that at least one of the queries may see.
    fn keys(&self) -> usize {
        self.offset() + self.queries.end
    }

    /// Tokens of these keys, in the order of their positions.
    fn key_tokens(&self) -> impl Iterator<Item = usize> {
        let Segment { start, .. } = self.segment;
        let ancestors = self.ancestors.iter().flat_map(|s| s.start..s.start + s.len);
        ancestors.chain(start..start + self.queries.end)
    }
}

/// One key-value head with the queries of some branches.
struct Unit {
    branches: Vec<Branch>,
    kv_head: usize,
}

/// Queries of a tile in each query head.
fn tile_queries(layout: &AttentionLayout) -> usize {
    (ROWS / layout.repeat()).clamp(16, 64)
}

/// A unit for some tiles of each segment and each key-value head. Units copy the keys that they
/// see, so that those of a long segment are few.
fn forward_units(layout: &AttentionLayout) -> Vec<Unit> {
    /// Tiles of a unit.
    const TILES: usize = 8;
    let most = TILES * tile_queries(layout);
    let mut units = Vec::new();
    for segment in layout.segments.iter() {
        for from in (0..segment.len).step_by(most) {
            let queries = from..(from + most).min(segment.len);
            for kv_head in 0..layout.kv_heads {
                let branch = Branch { queries: queries.clone(), ..Branch::whole(segment, layout) };
                units.push(Unit { branches: vec![branch], kv_head });
            }
        }
    }
    units
}

/// A unit for each group and each key-value head.
fn backward_units(layout: &AttentionLayout) -> Vec<Unit> {
    let mut units = Vec::new();
    for group in layout.segments.groups() {
        for kv_head in 0..layout.kv_heads {
            let branches = group.iter().map(|segment| Branch::whole(segment, layout)).collect();
            units.push(Unit { branches, kv_head });
        }
    }
    units
}

impl Unit {
    fn tiles(&self, branch: &Branch, layout: &AttentionLayout) -> impl Iterator<Item = Tile> {
        let queries = tile_queries(layout);
        let (start, offset, end) = (branch.segment.start, branch.offset(), branch.queries.end);
        let first_column = self.kv_head * layout.repeat() * layout.head_dim;
        branch.queries.clone().step_by(queries).map(move |from| {
            let to = (from + queries).min(end);
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

    /// Each token of [`Branch::key_tokens`], and the index in `[t, g · e]` at which this head
    /// begins.
    fn key_places(
        &self,
        branch: &Branch,
        layout: &AttentionLayout,
    ) -> impl Iterator<Item = (usize, usize)> {
        let (row, column) = (layout.key_row(), self.kv_head * layout.head_dim);
        branch.key_tokens().map(move |token| (token, token * row + column))
    }

    /// This head's part of `x` (`[t, g · e]`) for the keys of the branch, rotated if `rotation`.
    fn keys(
        &self,
        branch: &Branch,
        x: &[f32],
        rotation: Option<Rotation>,
        layout: &AttentionLayout,
    ) -> ByKey {
        let width = layout.head_dim;
        let mut numbers = vec![0.0; branch.keys() * width];
        let places = self.key_places(branch, layout).zip(numbers.chunks_exact_mut(width));
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
        branch: &Branch,
        d: &ByDimension,
        sink: &Sink,
        layout: &AttentionLayout,
    ) {
        let d = transposed(&d.numbers, d.width, d.keys);
        let places = self.key_places(branch, layout).zip(d.chunks_exact(layout.head_dim));
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
