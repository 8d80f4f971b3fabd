//! One row of logits on the CPU: its scores, its exponentials, and the gradient of its logits.

use super::scores::{COLUMNS, ScoredRow};
use crate::flex::exp::{exp, vectorized};
use crate::flex::lanes;

vectorized!(
    /// The columns of one row; the logits become `exp(logit − largest)`. Each block is summed in
    /// float32, and the blocks are added in double precision.
    pub(super) fn score_row(logits: &mut [f32], target: usize) -> [f32; COLUMNS] = score_row_plain
);
vectorized!(
    /// `exp(logit − highest)` in place.
    pub(super) fn exponentials(logits: &mut [f32], highest: f32) = exponentials_plain
);
vectorized!(
    /// Turns exponentials into the gradient of their logits, `g · (onehot(target) − softmax)`.
    pub(super) fn logit_gradient(exponentials: &mut [f32], row: &ScoredRow) = logit_gradient_plain
);

#[inline(always)]
fn score_row_plain(logits: &mut [f32], target: usize) -> [f32; COLUMNS] {
    const BLOCK: usize = 256;
    let highest = lanes::highest(logits);
    let first_best = logits.iter().position(|logit| *logit == highest);
    let of_target = f64::from(logits[target] - highest);
    let (mut total, mut norm, mut weighted, mut squares) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let mut shifted = [0.0f32; BLOCK];
    for block in logits.chunks_mut(BLOCK) {
        let shifted = &mut shifted[..block.len()];
        for (shifted, logit) in shifted.iter_mut().zip(block.iter_mut()) {
            *shifted = *logit - highest;
            *logit = exp(*shifted);
        }
        total += f64::from(lanes::sum(shifted, |x| x));
        norm += f64::from(lanes::sum(block, |e| e));
        squares += f64::from(lanes::sum(block, |e| e * e));
        weighted += f64::from(lanes::sum_of_pairs(block, shifted, |e, x| e * x));
    }
    let log_norm = norm.ln();
    [
        (of_target - log_norm) as f32,
        (log_norm - weighted / norm) as f32,
        f32::from(first_best == Some(target)),
        (total / logits.len() as f64 + f64::from(highest)) as f32,
        highest,
        norm as f32,
        (squares.ln() - 2.0 * log_norm) as f32,
    ]
}

#[inline(always)]
fn exponentials_plain(logits: &mut [f32], highest: f32) {
    for logit in logits {
        *logit = exp(*logit - highest);
    }
}

#[inline(always)]
fn logit_gradient_plain(exponentials: &mut [f32], row: &ScoredRow) {
    for exponential in exponentials.iter_mut() {
        *exponential *= row.factor;
    }
    exponentials[row.target as usize] += row.g;
}
