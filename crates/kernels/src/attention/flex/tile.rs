//! A tile of queries and the keys that it sees, in the layouts that are fastest for the matrix
//! products: key by key, or dimension by dimension.
//!
//! Legend: `k` keys of a segment, those of its prefix first; `s` keys that a tile sees; `r` rows of
//! a tile, one for each query and head; `e` head width.

use std::ops::Range;

use super::super::AttentionLayout;
use crate::flex::exp::{exp, vectorized};
use crate::flex::lanes;
use crate::flex::product::{Matrix, multiply_at};
use crate::flex::tanh::tanh;

/// Direction of the rotary embedding.
#[derive(Clone, Copy)]
pub enum Rotation {
    Forward,
    Back,
}

impl AttentionLayout {
    pub(super) fn query_row(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn key_row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// `out` = one head of `token`, rotated by its rotary angle, rotated back, or copied (`None`).
    pub(in crate::attention) fn rotate(
        &self,
        token: usize,
        rotation: Option<Rotation>,
        x: &[f32],
        out: &mut [f32],
    ) {
        let angles = token * self.angles..(token + 1) * self.angles;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        match rotation {
            Some(Rotation::Forward) => rotate_head(out, x, cos, sin, 1.0),
            Some(Rotation::Back) => rotate_head(out, x, cos, sin, -1.0),
            None => out.copy_from_slice(x),
        }
    }
}

/// `out = a · b`, dense, on this thread.
pub fn multiply(a: Matrix, b: Matrix, out: &mut Vec<f32>) {
    out.resize(a.rows() * b.columns(), 0.0);
    // SAFETY: `out` has exactly the size of the product.
    unsafe { multiply_at(a, b, out.as_mut_ptr(), b.columns(), false) };
}

/// One head of the keys (or values) that a segment sees, `[k, e]`.
pub struct ByKey {
    pub numbers: Vec<f32>,
    pub width: usize,
}

impl ByKey {
    /// `[s, e]`.
    pub fn seen(&self, tile: &Tile) -> Matrix<'_> {
        let seen = tile.seen.start * self.width..tile.seen.end * self.width;
        Matrix::dense(&self.numbers[seen], tile.seen.len(), self.width)
    }

    pub fn by_dimension(&self) -> ByDimension {
        let keys = self.numbers.len() / self.width;
        ByDimension {
            numbers: transposed(&self.numbers, keys, self.width),
            keys,
            width: self.width,
        }
    }
}

/// One head of keys or values, or of their gradients, `[e, k]`.
pub struct ByDimension {
    pub numbers: Vec<f32>,
    pub keys: usize,
    pub width: usize,
}

impl ByDimension {
    /// `[e, s]`.
    pub fn seen(&self, tile: &Tile) -> Matrix<'_> {
        let seen = &self.numbers[tile.seen.start..];
        Matrix::rows_apart(seen, self.width, tile.seen.len(), self.keys)
    }

    /// Zeros of the same shape.
    pub fn zeros(&self) -> Self {
        Self { numbers: vec![0.0; self.numbers.len()], ..*self }
    }

    /// Adds `x[r, e]ᵀ · weights[r, s]` for the keys that the tile sees.
    pub fn add(&mut self, x: Matrix, weights: Matrix, tile: &Tile) {
        assert!(tile.seen.end <= self.keys && x.columns() == self.width);
        // SAFETY: `e` rows, `keys` apart; the columns that the tile sees lie within, as checked
        // above.
        unsafe {
            let out = self.numbers.as_mut_ptr().add(tile.seen.start);
            multiply_at(x.transposed(), weights, out, self.keys, true);
        }
    }
}

/// Consecutive queries of one segment in all query heads of a unit, and the keys that they see.
pub struct Tile {
    pub first_token: usize,
    pub queries: usize,
    /// Query heads, side by side.
    pub repeat: usize,
    /// Column in `[t, h · e]` at which the first query head begins.
    pub first_column: usize,
    /// Position of the first query among the segment's keys.
    pub position: usize,
    /// Keys that at least one query of the tile sees.
    pub seen: Range<usize>,
}

impl Tile {
    fn rows(&self) -> usize {
        self.queries * self.repeat
    }

    /// The result of [`Self::gather`] as a matrix, `[r, e]`.
    pub fn rows_of<'a>(&self, x: &'a [f32]) -> Matrix<'a> {
        Matrix::dense(x, self.rows(), x.len() / self.rows())
    }

    /// The tile's scores (or their gradients), `[r, s]`.
    pub fn matrix<'a>(&self, scores: &'a [f32]) -> Matrix<'a> {
        Matrix::dense(scores, self.rows(), self.seen.len())
    }

    /// The token of each row, and the index in `[t, h · e]` at which the row begins.
    fn places(&self, layout: &AttentionLayout) -> impl Iterator<Item = (usize, usize)> {
        (0..self.rows()).map(move |row| {
            let token = self.first_token + row / self.repeat;
            let column = self.first_column + row % self.repeat * layout.head_dim;
            (token, token * layout.query_row() + column)
        })
    }

    /// `out` (`[r, e]`) = the tile's part of `x` (`[t, h · e]`), rotated if `rotation`.
    pub fn gather(
        &self,
        x: &[f32],
        rotation: Option<Rotation>,
        layout: &AttentionLayout,
        out: &mut Vec<f32>,
    ) {
        let width = layout.head_dim;
        out.resize(self.rows() * width, 0.0);
        for ((token, at), out) in self.places(layout).zip(out.chunks_exact_mut(width)) {
            layout.rotate(token, rotation, &x[at..at + width], out);
        }
    }

    /// The inverse of [`Self::gather`]: writes `x` (`[r, e]`) into the tile's part of `sink`.
    ///
    /// # Safety
    /// `sink` must be `[t, h · e]`, and no other thread may access the tile's part of it.
    pub unsafe fn scatter(
        &self,
        x: &[f32],
        rotation: Option<Rotation>,
        layout: &AttentionLayout,
        sink: &Sink,
    ) {
        let width = layout.head_dim;
        for ((token, at), x) in self.places(layout).zip(x.chunks_exact(width)) {
            // SAFETY: within the buffer; the caller guarantees that no other thread accesses it.
            let out = unsafe { std::slice::from_raw_parts_mut(sink.at(at), width) };
            layout.rotate(token, rotation, x, out);
        }
    }

    /// Writes the softmax over the visible keys into `scores` (`[r, s]`), with 0 for hidden keys.
    /// With a soft cap `c`, `tanh_of_scores` becomes `tanh(score / c)`, `[r, s]`.
    pub fn probabilities(
        &self,
        queries: &[f32],
        keys: &ByDimension,
        layout: &AttentionLayout,
        scores: &mut Vec<f32>,
        tanh_of_scores: Option<&mut Vec<f32>>,
    ) {
        multiply(self.rows_of(queries), keys.seen(self), scores);
        let scale = capped(scores, layout.scale(), layout.softcap);
        if let Some(kept) = tanh_of_scores.filter(|_| layout.softcap.is_some()) {
            kept.clone_from(scores);
        }
        for (row, scores) in scores.chunks_exact_mut(self.seen.len()).enumerate() {
            let visible = layout.visible(self.position + row / self.repeat);
            let visible = visible.start - self.seen.start..visible.end - self.seen.start;
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
            softmax(&mut scores[visible], scale);
        }
    }

    /// Gradient of the unscaled scores, `p ∘ (d·vᵀ − rowsum(p ∘ d·vᵀ)) · scale`.
    pub fn score_gradients(
        &self,
        upstream: &[f32],
        values: &ByDimension,
        probabilities: &[f32],
        layout: &AttentionLayout,
        out: &mut Vec<f32>,
    ) {
        multiply(self.rows_of(upstream), values.seen(self), out);
        let (width, scale) = (self.seen.len(), layout.scale());
        for (row, p) in out.chunks_exact_mut(width).zip(probabilities.chunks_exact(width)) {
            softmax_gradient(row, p, scale);
        }
    }
}

/// Turns unscaled scores into `tanh(scale · score / c)` if they have a soft cap `c`. Returns the
/// factor that they have in the softmax.
pub fn capped(scores: &mut [f32], scale: f32, softcap: Option<f32>) -> f32 {
    match softcap {
        None => scale,
        Some(cap) => {
            scaled_tanh(scores, scale / cap);
            cap
        }
    }
}

/// `x` (`[rows, columns]`) as `[columns, rows]`, in blocks that fit the first-level cache.
pub fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
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
    pub fn softmax(x: &mut [f32], scale: f32) = softmax_plain
);
vectorized!(
    /// `p ∘ (d − Σ p d) · scale` in place of `d`.
    fn softmax_gradient(d: &mut [f32], p: &[f32], scale: f32) = softmax_gradient_plain
);
vectorized!(
    /// `tanh(scale · x)` in place.
    fn scaled_tanh(x: &mut [f32], scale: f32) = scaled_tanh_plain
);
vectorized!(
    /// `d · (1 − tanh²)` in place of `d`: through the soft cap.
    pub fn times_slope(d: &mut [f32], tanh: &[f32]) = times_slope_plain
);
vectorized!(
    /// Rotary embedding of one head of one token, in the opposite direction if `sign` is −1. With
    /// `n` angles, the first `2 n` elements are rotated and the others are copied.
    pub fn rotate_head(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32)
        = rotate_head_plain
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
fn scaled_tanh_plain(x: &mut [f32], scale: f32) {
    for value in x {
        *value = tanh(*value * scale);
    }
}

#[inline(always)]
fn times_slope_plain(d: &mut [f32], tanh: &[f32]) {
    for (d, tanh) in d.iter_mut().zip(tanh) {
        *d *= 1.0 - tanh * tanh;
    }
}

#[inline(always)]
fn rotate_head_plain(out: &mut [f32], x: &[f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    let ((out, out_rest), (x, rest)) = (out.split_at_mut(2 * half), x.split_at(2 * half));
    if !rest.is_empty() {
        out_rest.copy_from_slice(rest);
    }
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

/// A buffer that several units write, each in its own rows and columns.
pub struct Sink(pub *mut f32);

// SAFETY: units write disjoint elements (rows of their group, columns of their heads).
unsafe impl Sync for Sink {}

impl Sink {
    pub fn at(&self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}
