//! The CPU form of soft-capped logits: `z = c · tanh(u / c)` for the products `u` with the head.
//!
//! The exponentials of capped logits do not give the slope of the cap, so that this form keeps the
//! capped logits themselves for the backward pass.

use rayon::prelude::*;

use super::row::score_row;
use super::scores::{COLUMNS, ScoredRow};
use crate::flex::exp::{exp, vectorized};
use crate::flex::tanh::tanh;

/// Caps each row of logits (`[c, v]`) and writes its columns.
pub(super) fn score_rows(logits: &mut [f32], targets: &[u32], out: &mut [f32], cap: f32) {
    let vocab = logits.len() / targets.len();
    let rows = logits.par_chunks_exact_mut(vocab).zip(out.par_chunks_exact_mut(COLUMNS));
    rows.zip(targets).for_each_init(Vec::new, |exponentials, ((logits, out), target)| {
        cap_row(logits, cap);
        exponentials.clear();
        exponentials.extend_from_slice(logits);
        out.copy_from_slice(&score_row(exponentials, *target as usize));
    });
}

/// Caps each row of logits (`[c, v]`).
pub(super) fn cap_rows(logits: &mut [f32], vocab: usize, cap: f32) {
    logits.par_chunks_exact_mut(vocab).for_each(|logits| cap_row(logits, cap));
}

/// Turns capped logits (`[c, v]`) into the gradients of the logits before the cap.
pub(super) fn logit_gradients(logits: &mut [f32], rows: &[ScoredRow], cap: f32) {
    let vocab = logits.len() / rows.len();
    logits.par_chunks_exact_mut(vocab).zip(rows).for_each(|(logits, row)| {
        let target = row.target as usize;
        let of_target = row.g * slope(logits[target], cap.recip());
        capped_gradient(logits, row, cap.recip());
        logits[target] += of_target;
    });
}

vectorized!(
    /// `c · tanh(u / c)` in place.
    fn cap_row(logits: &mut [f32], cap: f32) = cap_row_plain
);
vectorized!(
    /// `−g · softmax(z) · slope(z)` in place of the capped logits `z`.
    fn capped_gradient(logits: &mut [f32], row: &ScoredRow, inverse_cap: f32)
        = capped_gradient_plain
);

#[inline(always)]
fn cap_row_plain(logits: &mut [f32], cap: f32) {
    let inverse_cap = cap.recip();
    for logit in logits {
        *logit = cap * tanh(*logit * inverse_cap);
    }
}

#[inline(always)]
fn capped_gradient_plain(logits: &mut [f32], row: &ScoredRow, inverse_cap: f32) {
    for logit in logits {
        *logit = exp(*logit - row.highest) * row.factor * slope(*logit, inverse_cap);
    }
}

/// `dz / du = 1 − (z / c)²`.
#[inline(always)]
fn slope(capped: f32, inverse_cap: f32) -> f32 {
    let tanh = capped * inverse_cap;
    1.0 - tanh * tanh
}
