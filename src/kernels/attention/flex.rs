//! Attention over segments on slices: the CPU form of [`crate::kernels::attention`].
//!
//! A unit of work is one group (a root segment with the segments that see it) and one key-value
//! head. It walks tiles of queries, the heads that share the keys side by side; scores of one tile are
//! all that is ever kept. Keys beyond a tile's last query, or before its window, are never touched.
//! Keys and values lie as the products read them fastest: by key, or by dimension of the head.
//!
//! Legend: `k` keys of a segment, those of its prefix first; `s` of them that a tile sees; `r` rows of a tile,
//! one for each query and head; `e` head width.

use std::ops::Range;

use rayon::prelude::*;

use super::AttentionLayout;
use crate::data::ragged::Segment;
use crate::kernels::flex::exp::exp;
use crate::kernels::flex::fresh::filled;
use crate::kernels::flex::lanes;
use crate::kernels::flex::product::{Matrix, multiply_at};
use crate::kernels::vectorized;

/// Rows of a tile, about: their scores against a thousand keys stay in the second-level cache.
const ROWS: usize = 126;

/// `[t, h · e]` from rotary-free `q` (`[t, h · e]`), `k` and `v` (`[t, g · e]`).
pub fn forward(q: &[f32], k: &[f32], v: &[f32], plan: &AttentionLayout) -> Vec<f32> {
    let mut out = zeros(q.len());
    let sink = Sink(out.as_mut_ptr());
    units(plan).into_par_iter().for_each(|unit| {
        let [mut queries, mut scores, mut outputs] = [const { Vec::new() }; 3];
        for segment in &unit.group {
            let keys = unit.keys(segment, k, Some(Turn::Forward), plan).by_dimension();
            let values = unit.keys(segment, v, None, plan);
            for tile in unit.tiles(segment, plan) {
                tile.gather(q, Some(Turn::Forward), plan, &mut queries);
                tile.probabilities(&queries, &keys, plan, &mut scores);
                multiply(tile.matrix(&scores), values.seen(&tile), &mut outputs);
                // SAFETY: rows of this segment in the columns of this unit's heads are its own.
                unsafe { tile.scatter(&outputs, None, plan, &sink) };
            }
        }
    });
    out
}

/// Gradients of `q`, `k`, `v` (before the rotary embedding), each if `wanted`, for the output
/// gradient `d`.
pub fn backward(
    [q, k, v]: [&[f32]; 3],
    d: &[f32],
    plan: &AttentionLayout,
    wanted: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let [mut dq, mut dk, mut dv] = [(q, wanted[0]), (k, wanted[1]), (v, wanted[2])]
        .map(|(x, wanted)| if wanted { zeros(x.len()) } else { Vec::new() });
    let [dq_sink, dk_sink, dv_sink] =
        [&mut dq, &mut dk, &mut dv].map(|gradient| Sink(gradient.as_mut_ptr()));
    let [q_wanted, k_wanted, v_wanted] = wanted;
    units(plan).into_par_iter().for_each(|unit| {
        let [mut queries, mut upstream, mut scores, mut gradients, mut d_queries] =
            [const { Vec::new() }; 5];
        for segment in &unit.group {
            let keys = unit.keys(segment, k, Some(Turn::Forward), plan);
            let keys_by_dimension = keys.by_dimension();
            let values = unit.keys(segment, v, None, plan).by_dimension();
            let mut d_keys = k_wanted.then(|| values.zeros());
            let mut d_values = v_wanted.then(|| values.zeros());
            for tile in unit.tiles(segment, plan) {
                tile.gather(q, Some(Turn::Forward), plan, &mut queries);
                tile.gather(d, None, plan, &mut upstream);
                tile.probabilities(&queries, &keys_by_dimension, plan, &mut scores);
                if q_wanted || k_wanted {
                    tile.score_gradients(&upstream, &values, &scores, plan, &mut gradients);
                }
                if q_wanted {
                    let ds = tile.matrix(&gradients);
                    multiply(ds, keys.seen(&tile), &mut d_queries);
                    // SAFETY: rows of this segment in the columns of this unit's heads are its own.
                    unsafe { tile.scatter(&d_queries, Some(Turn::Back), plan, &dq_sink) };
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
                    // SAFETY: the group's rows in the columns of this key-value head belong to
                    // this unit.
                    unsafe { unit.add_keys(segment, d, sink, plan) };
                }
            }
        }
    });
    [q_wanted.then_some(dq), k_wanted.then(|| rotated_back(&dk, plan)), v_wanted.then_some(dv)]
}

/// `out = a · b`, dense, on this thread.
fn multiply(a: Matrix, b: Matrix, out: &mut Vec<f32>) {
    out.resize(a.rows() * b.columns(), 0.0);
    // SAFETY: `out` has just that many numbers.
    unsafe { multiply_at(a, b, out.as_mut_ptr(), b.columns(), false) };
}

fn zeros(len: usize) -> Vec<f32> {
    filled(len, 1 << 16, |_, _| ())
}

impl AttentionLayout {
    fn query_row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn key_row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// `out` = one head of `token`, turned by its rotary angle, or back, or as it is.
    fn turn(&self, token: usize, turn: Option<Turn>, x: &[f32], out: &mut [f32]) {
        let half = self.head_dim / 2;
        let angles = token * half..(token + 1) * half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        match turn {
            Some(Turn::Forward) => turn_head(out, x, cos, sin, 1.0),
            Some(Turn::Back) => turn_head(out, x, cos, sin, -1.0),
            None => out.copy_from_slice(x),
        }
    }
}

/// One group of segments and one key-value head.
struct Unit {
    group: Vec<Segment>,
    kv_head: usize,
}

fn units(plan: &AttentionLayout) -> Vec<Unit> {
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

    fn tiles(&self, segment: &Segment, plan: &AttentionLayout) -> impl Iterator<Item = Tile> {
        let queries = (ROWS / plan.repeat()).clamp(16, 64);
        let (start, len, offset) = (segment.start, segment.len, self.offset(segment));
        let first_column = self.kv_head * plan.repeat() * plan.head_dim;
        (0..len).step_by(queries).map(move |from| {
            let to = (from + queries).min(len);
            Tile {
                first_token: start + from,
                queries: to - from,
                repeat: plan.repeat(),
                first_column,
                position: offset + from,
                seen: plan.visible(offset + from).start..offset + to,
            }
        })
    }

    /// Tokens whose keys the segment sees: those of its prefix, then its own.
    fn key_tokens(&self, segment: &Segment) -> impl Iterator<Item = usize> {
        let prefix = self.prefix(segment).map_or(0..0, |p| p.start..p.start + p.len);
        prefix.chain(segment.start..segment.start + segment.len)
    }

    /// Each token of [`Self::key_tokens`], and where its numbers of this head begin in `[t, g · e]`.
    fn key_places(
        &self,
        segment: &Segment,
        plan: &AttentionLayout,
    ) -> impl Iterator<Item = (usize, usize)> {
        let (row, column) = (plan.key_row(), self.kv_head * plan.head_dim);
        self.key_tokens(segment).map(move |token| (token, token * row + column))
    }

    /// This head's part of `x` (`[t, g · e]`) for the keys of the segment, turned or as it is.
    fn keys(
        &self,
        segment: &Segment,
        x: &[f32],
        turn: Option<Turn>,
        plan: &AttentionLayout,
    ) -> ByKey {
        let width = plan.head_dim;
        let mut numbers = vec![0.0; (self.offset(segment) + segment.len) * width];
        let places = self.key_places(segment, plan).zip(numbers.chunks_exact_mut(width));
        for ((token, at), key) in places {
            plan.turn(token, turn, &x[at..at + width], key);
        }
        ByKey { numbers, width }
    }

    /// Adds gradients to the places that [`Self::keys`] read.
    ///
    /// # Safety
    /// No other thread may touch the group's rows in this head's columns.
    unsafe fn add_keys(
        &self,
        segment: &Segment,
        d: &ByDimension,
        sink: &Sink,
        plan: &AttentionLayout,
    ) {
        let d = transposed(&d.numbers, d.width, d.keys);
        let places = self.key_places(segment, plan).zip(d.chunks_exact(plan.head_dim));
        for ((_, at), values) in places {
            // SAFETY: within the buffer, and this thread's by the caller's word.
            let target = unsafe { std::slice::from_raw_parts_mut(sink.at(at), plan.head_dim) };
            for (sum, value) in target.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
}

/// Keys (or values) that a segment sees, of one head, `[k, e]`.
struct ByKey {
    numbers: Vec<f32>,
    width: usize,
}

impl ByKey {
    /// `[s, e]`.
    fn seen(&self, tile: &Tile) -> Matrix<'_> {
        let seen = tile.seen.start * self.width..tile.seen.end * self.width;
        Matrix::dense(&self.numbers[seen], tile.seen.len(), self.width)
    }

    fn by_dimension(&self) -> ByDimension {
        let keys = self.numbers.len() / self.width;
        ByDimension {
            numbers: transposed(&self.numbers, keys, self.width),
            keys,
            width: self.width,
        }
    }
}

/// Keys or values, or their gradients, `[e, k]`.
struct ByDimension {
    numbers: Vec<f32>,
    keys: usize,
    width: usize,
}

impl ByDimension {
    /// `[e, s]`.
    fn seen(&self, tile: &Tile) -> Matrix<'_> {
        let seen = &self.numbers[tile.seen.start..];
        Matrix::rows_apart(seen, self.width, tile.seen.len(), self.keys)
    }

    /// Zeros of the same shape.
    fn zeros(&self) -> Self {
        Self { numbers: vec![0.0; self.numbers.len()], ..*self }
    }

    /// Adds `x[r, e]ᵀ · weights[r, s]` for the keys that the tile sees.
    fn add(&mut self, x: Matrix, weights: Matrix, tile: &Tile) {
        assert!(tile.seen.end <= self.keys && x.columns() == self.width);
        // SAFETY: `e` rows, `keys` apart, of which the seen ones were just seen to lie within.
        unsafe {
            let out = self.numbers.as_mut_ptr().add(tile.seen.start);
            multiply_at(x.transposed(), weights, out, self.keys, true);
        }
    }
}

/// Consecutive queries of one segment in all heads of a unit, and the keys that any of them sees.
struct Tile {
    first_token: usize,
    queries: usize,
    /// Heads of a query, side by side.
    repeat: usize,
    /// Where the first of them begins in a token's row.
    first_column: usize,
    /// Position of the first query among the segment's keys.
    position: usize,
    /// Keys that some query of the tile sees.
    seen: Range<usize>,
}

impl Tile {
    fn rows(&self) -> usize {
        self.queries * self.repeat
    }

    /// `[r, e]` of what [`Self::gather`] made.
    fn rows_of<'a>(&self, x: &'a [f32]) -> Matrix<'a> {
        Matrix::dense(x, self.rows(), x.len() / self.rows())
    }

    /// The tile's scores (or their gradients), `[r, s]`.
    fn matrix<'a>(&self, scores: &'a [f32]) -> Matrix<'a> {
        Matrix::dense(scores, self.rows(), self.seen.len())
    }

    /// The token of each row, and where its numbers begin in `[t, h · e]`.
    fn places(&self, plan: &AttentionLayout) -> impl Iterator<Item = (usize, usize)> {
        (0..self.rows()).map(move |row| {
            let token = self.first_token + row / self.repeat;
            let column = self.first_column + row % self.repeat * plan.head_dim;
            (token, token * plan.query_row() + column)
        })
    }

    /// `out` (`[r, e]`) = the tile's part of `x` (`[t, h · e]`), turned or as it is.
    fn gather(&self, x: &[f32], turn: Option<Turn>, plan: &AttentionLayout, out: &mut Vec<f32>) {
        let width = plan.head_dim;
        out.resize(self.rows() * width, 0.0);
        for ((token, at), out) in self.places(plan).zip(out.chunks_exact_mut(width)) {
            plan.turn(token, turn, &x[at..at + width], out);
        }
    }

    /// The way back of [`Self::gather`].
    ///
    /// # Safety
    /// `sink` must be `[t, h · e]`, and no other thread may touch the tile's part of it.
    unsafe fn scatter(&self, x: &[f32], turn: Option<Turn>, plan: &AttentionLayout, sink: &Sink) {
        let width = plan.head_dim;
        for ((token, at), x) in self.places(plan).zip(x.chunks_exact(width)) {
            // SAFETY: within the buffer, and this thread's by the caller's word.
            let out = unsafe { std::slice::from_raw_parts_mut(sink.at(at), width) };
            plan.turn(token, turn, x, out);
        }
    }

    /// Softmax over visible keys, zero elsewhere, into `scores` (`[r, s]`).
    fn probabilities(
        &self,
        queries: &[f32],
        keys: &ByDimension,
        plan: &AttentionLayout,
        scores: &mut Vec<f32>,
    ) {
        multiply(self.rows_of(queries), keys.seen(self), scores);
        let scale = plan.scale();
        for (row, scores) in scores.chunks_exact_mut(self.seen.len()).enumerate() {
            let visible = plan.visible(self.position + row / self.repeat);
            let visible = visible.start - self.seen.start..visible.end - self.seen.start;
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            softmax(&mut scores[visible], scale);
        }
    }

    /// Gradient of the unscaled scores, `p ∘ (d·vᵀ − rowsum(p ∘ d·vᵀ)) · scale`.
    fn score_gradients(
        &self,
        upstream: &[f32],
        values: &ByDimension,
        probabilities: &[f32],
        plan: &AttentionLayout,
        out: &mut Vec<f32>,
    ) {
        multiply(self.rows_of(upstream), values.seen(self), out);
        let (width, scale) = (self.seen.len(), plan.scale());
        for (row, p) in out.chunks_exact_mut(width).zip(probabilities.chunks_exact(width)) {
            softmax_gradient(row, p, scale);
        }
    }
}

/// `[columns, rows]` of `x` (`[rows, columns]`), in blocks that stay in the first-level cache.
fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut out = vec![0.0; x.len()];
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for i in row..(row + BLOCK).min(rows) {
                for j in column..(column + BLOCK).min(columns) {
                    out[j * rows + i] = x[i * columns + j];
                }
            }
        }
    }
    out
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

/// Gradients of turned keys (`[t, g · e]`) turned back.
fn rotated_back(d: &[f32], plan: &AttentionLayout) -> Vec<f32> {
    /// Tokens a unit of work.
    const TOKENS: usize = 64;
    let row = plan.key_row();
    filled(d.len(), TOKENS * row, |unit, out| {
        let first = unit * TOKENS;
        let heads = d[first * row..].chunks_exact(plan.head_dim);
        for (index, (out, d)) in out.chunks_exact_mut(plan.head_dim).zip(heads).enumerate() {
            plan.turn(first + index / plan.kv_heads, Some(Turn::Back), d, out);
        }
    })
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
