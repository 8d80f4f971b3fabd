//! Attention over segments on slices: the CPU form of [`super::attention`].
//!
//! A unit of work is one group (a root segment with the segments that see it) and one key-value
//! head. It walks tiles of [`TILE`] queries; scores of one tile are all that is ever kept. Keys
//! beyond a tile's last query, or before its window, are never touched.

use rayon::prelude::*;

use super::attention::AttentionPlan;
use super::product::{Matrix, multiply_at};
use super::{exp, lanes, vectorized};
use crate::data::ragged::Segment;

/// Queries a tile: 64 rows of scores against a thousand keys stay in the second-level cache.
const TILE: usize = 64;

/// `[t, h · e]` from rotary-free `q` (`[t, h · e]`), `k` and `v` (`[t, g · e]`).
pub fn forward(q: &[f32], k: &[f32], v: &[f32], plan: &AttentionPlan) -> Vec<f32> {
    let q = rotated(q, plan.heads, plan, Turn::Forward);
    let k = rotated(k, plan.kv_heads, plan, Turn::Forward);
    let mut out = vec![0.0; q.len()];
    let sink = Sink(out.as_mut_ptr());
    units(plan).into_par_iter().for_each(|unit| {
        let mut scores = Vec::new();
        for segment in &unit.group {
            let keys = unit.keys(segment, &k, plan);
            let values = unit.keys(segment, v, plan);
            for head in unit.heads(plan) {
                for tile in tiles(segment.len) {
                    let tile = Tile::new(tile, segment, unit.offset(segment), plan);
                    tile.probabilities(&q, head, &keys, plan, &mut scores);
                    let rows = tile.matrix(&scores);
                    let seen = tile.seen_keys(&values, plan);
                    // SAFETY: rows of this segment in the columns of this head belong to this unit.
                    unsafe {
                        multiply_at(
                            rows,
                            seen,
                            sink.at(tile.query(head, plan)),
                            plan.query_row(),
                            false,
                        )
                    };
                }
            }
        }
    });
    out
}

/// Gradients of `q`, `k`, `v` (before the rotary embedding) for the output gradient `d`.
pub fn backward(q: &[f32], k: &[f32], v: &[f32], d: &[f32], plan: &AttentionPlan) -> [Vec<f32>; 3] {
    let q = rotated(q, plan.heads, plan, Turn::Forward);
    let k = rotated(k, plan.kv_heads, plan, Turn::Forward);
    let mut dq = vec![0.0; q.len()];
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let (dq_sink, dk_sink, dv_sink) =
        (Sink(dq.as_mut_ptr()), Sink(dk.as_mut_ptr()), Sink(dv.as_mut_ptr()));
    units(plan).into_par_iter().for_each(|unit| {
        let (mut scores, mut gradients) = (Vec::new(), Vec::new());
        for segment in &unit.group {
            let keys = unit.keys(segment, &k, plan);
            let values = unit.keys(segment, v, plan);
            let (mut d_keys, mut d_values) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
            for head in unit.heads(plan) {
                for tile in tiles(segment.len) {
                    let tile = Tile::new(tile, segment, unit.offset(segment), plan);
                    tile.probabilities(&q, head, &keys, plan, &mut scores);
                    tile.score_gradients(d, head, &values, &scores, plan, &mut gradients);
                    let (p, ds) = (tile.matrix(&scores), tile.matrix(&gradients));
                    let queries = tile.queries(&q, head, plan);
                    let upstream = tile.queries(d, head, plan);
                    let seen = tile.seen_keys(&keys, plan);
                    let first = tile.seen.start * plan.head_dim;
                    // SAFETY: rows of this segment in the columns of this head belong to this
                    // unit; the key and value buffers are its own.
                    unsafe {
                        multiply_at(
                            ds,
                            seen,
                            dq_sink.at(tile.query(head, plan)),
                            plan.query_row(),
                            false,
                        );
                        multiply_at(
                            ds.transposed(),
                            queries,
                            d_keys.as_mut_ptr().add(first),
                            plan.head_dim,
                            true,
                        );
                        multiply_at(
                            p.transposed(),
                            upstream,
                            d_values.as_mut_ptr().add(first),
                            plan.head_dim,
                            true,
                        );
                    }
                }
            }
            // SAFETY: the group's rows in the columns of this key-value head belong to this unit.
            unsafe {
                unit.add_keys(segment, &d_keys, &dk_sink, plan);
                unit.add_keys(segment, &d_values, &dv_sink, plan);
            }
        }
    });
    [rotated(&dq, plan.heads, plan, Turn::Back), rotated(&dk, plan.kv_heads, plan, Turn::Back), dv]
}

impl AttentionPlan {
    fn query_row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn key_row(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// One group of segments and one key-value head.
struct Unit {
    group: Vec<Segment>,
    kv_head: usize,
}

fn units(plan: &AttentionPlan) -> Vec<Unit> {
    let groups = plan.segments.groups();
    let units = groups.into_iter().flat_map(|group| {
        (0..plan.kv_heads).map(move |kv_head| Unit { group: group.clone(), kv_head })
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

    /// Query heads that share this unit's key-value head.
    fn heads(&self, plan: &AttentionPlan) -> std::ops::Range<usize> {
        let repeat = plan.heads / plan.kv_heads;
        self.kv_head * repeat..(self.kv_head + 1) * repeat
    }

    fn key_rows(&self, segment: &Segment) -> impl Iterator<Item = usize> {
        let prefix = self.prefix(segment).map_or(0..0, |p| p.start..p.start + p.len);
        prefix.chain(segment.start..segment.start + segment.len)
    }

    /// `[k, e]`: this head's rows of the prefix and of the segment, side by side in memory.
    fn keys(&self, segment: &Segment, x: &[f32], plan: &AttentionPlan) -> Vec<f32> {
        let mut keys = Vec::with_capacity((self.offset(segment) + segment.len) * plan.head_dim);
        for row in self.key_rows(segment) {
            let at = row * plan.key_row() + self.kv_head * plan.head_dim;
            keys.extend_from_slice(&x[at..at + plan.head_dim]);
        }
        keys
    }

    /// Adds `[k, e]` to the rows that [`Self::keys`] came from.
    ///
    /// # Safety
    /// No other thread may touch the group's rows in this head's columns.
    unsafe fn add_keys(&self, segment: &Segment, d: &[f32], sink: &Sink, plan: &AttentionPlan) {
        for (row, values) in self.key_rows(segment).zip(d.chunks_exact(plan.head_dim)) {
            let at = row * plan.key_row() + self.kv_head * plan.head_dim;
            // SAFETY: within the buffer, and this thread's by the caller's word.
            let target = unsafe { std::slice::from_raw_parts_mut(sink.at(at), plan.head_dim) };
            for (sum, value) in target.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
}

fn tiles(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..len).step_by(TILE).map(move |start| start..(start + TILE).min(len))
}

/// Consecutive queries of one segment and the keys that any of them sees.
struct Tile {
    /// First token row in the batch.
    row: usize,
    queries: usize,
    /// Position of the first query among the segment's keys.
    position: usize,
    /// Keys that some query of the tile sees.
    seen: std::ops::Range<usize>,
}

impl Tile {
    fn new(
        range: std::ops::Range<usize>,
        segment: &Segment,
        offset: usize,
        plan: &AttentionPlan,
    ) -> Self {
        let first = offset + range.start;
        let last = offset + range.end - 1;
        Self {
            row: segment.start + range.start,
            queries: range.len(),
            position: first,
            seen: plan.visible(first).start..last + 1,
        }
    }

    /// Where the tile's first query (or output) of `head` lies.
    fn query(&self, head: usize, plan: &AttentionPlan) -> usize {
        self.row * plan.query_row() + head * plan.head_dim
    }

    fn queries<'a>(&self, x: &'a [f32], head: usize, plan: &AttentionPlan) -> Matrix<'a> {
        let values = &x[self.query(head, plan)..];
        Matrix::rows_apart(values, self.queries, plan.head_dim, plan.query_row())
    }

    fn seen_keys<'a>(&self, keys: &'a [f32], plan: &AttentionPlan) -> Matrix<'a> {
        let e = plan.head_dim;
        Matrix::dense(&keys[self.seen.start * e..self.seen.end * e], self.seen.len(), e)
    }

    /// The tile's scores (or their gradients) as a `[queries, seen]` matrix.
    fn matrix<'a>(&self, scores: &'a [f32]) -> Matrix<'a> {
        Matrix::dense(scores, self.queries, self.seen.len())
    }

    /// Softmax over visible keys, zero elsewhere, into `scores` (`[queries, seen]`).
    fn probabilities(
        &self,
        q: &[f32],
        head: usize,
        keys: &[f32],
        plan: &AttentionPlan,
        scores: &mut Vec<f32>,
    ) {
        let width = self.seen.len();
        scores.resize(self.queries * width, 0.0);
        let keys = self.seen_keys(keys, plan).transposed();
        // SAFETY: `scores` holds `queries × seen` elements.
        unsafe {
            multiply_at(self.queries(q, head, plan), keys, scores.as_mut_ptr(), width, false)
        };
        let scale = plan.scale();
        for (query, row) in scores.chunks_exact_mut(width).enumerate() {
            let visible = plan.visible(self.position + query);
            let visible = visible.start - self.seen.start..visible.end - self.seen.start;
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            softmax(&mut row[visible], scale);
        }
    }

    /// Gradient of the unscaled scores, `p ∘ (d·vᵀ − rowsum(p ∘ d·vᵀ)) · scale`.
    fn score_gradients(
        &self,
        d: &[f32],
        head: usize,
        values: &[f32],
        probabilities: &[f32],
        plan: &AttentionPlan,
        out: &mut Vec<f32>,
    ) {
        let width = self.seen.len();
        out.resize(self.queries * width, 0.0);
        let values = self.seen_keys(values, plan).transposed();
        // SAFETY: `out` holds `queries × seen` elements.
        unsafe { multiply_at(self.queries(d, head, plan), values, out.as_mut_ptr(), width, false) };
        let scale = plan.scale();
        for (row, p) in out.chunks_exact_mut(width).zip(probabilities.chunks_exact(width)) {
            softmax_gradient(row, p, scale);
        }
    }
}

vectorized!(
    /// `softmax(scale · x)` in place.
    fn softmax(x: &mut [f32], scale: f32) = softmax_plain
);
vectorized!(
    /// `p ∘ (d − Σ p d) · scale` in place of `d`.
    fn softmax_gradient(d: &mut [f32], p: &[f32], scale: f32) = softmax_gradient_plain
);
vectorized!(
    /// One head of one token, turned.
    fn turn_head(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) = turn_head_plain
);

#[inline(always)]
fn softmax_plain(x: &mut [f32], scale: f32) {
    let highest = lanes::highest(x);
    for value in x.iter_mut() {
        *value = exp((*value - highest) * scale);
    }
    let norm = lanes::sum(x, |value| value).recip();
    for value in x.iter_mut() {
        *value *= norm;
    }
}

#[inline(always)]
fn softmax_gradient_plain(d: &mut [f32], p: &[f32], scale: f32) {
    let mean = lanes::sum_of_pairs(d, p, |d, p| d * p);
    for (d, p) in d.iter_mut().zip(p) {
        *d = p * (*d - mean) * scale;
    }
}

#[inline(always)]
fn turn_head_plain(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = x.len() / 2;
    let (out_low, out_high) = out.split_at_mut(half);
    let (low, high) = x.split_at(half);
    let outputs = out_low.iter_mut().zip(out_high);
    let angles = cos.iter().zip(sin);
    for (((out_low, out_high), (low, high)), (cos, sin)) in
        outputs.zip(low.iter().zip(high)).zip(angles)
    {
        let sin = sign * sin;
        *out_low = low * cos - high * sin;
        *out_high = high * cos + low * sin;
    }
}

#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
}

/// Each token's heads turned by its rotary angle, or back.
fn rotated(x: &[f32], heads: usize, plan: &AttentionPlan, turn: Turn) -> Vec<f32> {
    let (e, half) = (plan.head_dim, plan.head_dim / 2);
    let mut out = vec![0.0; x.len()];
    let rows = out.par_chunks_exact_mut(heads * e).zip(x.par_chunks_exact(heads * e));
    rows.enumerate().with_min_len(64).for_each(|(token, (out, x))| {
        let cos = &plan.cos[token * half..(token + 1) * half];
        let sin = &plan.sin[token * half..(token + 1) * half];
        let sign = match turn {
            Turn::Forward => 1.0,
            Turn::Back => -1.0,
        };
        for (out, x) in out.chunks_exact_mut(e).zip(x.chunks_exact(e)) {
            turn_head(out, x, cos, sin, sign);
        }
    });
    out
}

/// A buffer that several units write, each its own rows and columns.
struct Sink(*mut f32);

// SAFETY: units write disjoint elements (rows of their group, columns of their head).
unsafe impl Sync for Sink {}

impl Sink {
    fn at(&self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}
