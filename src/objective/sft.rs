//! The SFT loss: cross-entropy of the labelled tokens.

use crate::kernels::linear_logp::TokenScores;

/// `Σ −logp / label_tokens` over the scored tokens of one micro-batch, and its gradient with
/// respect to each log-prob (`[n]`).
///
/// `label_tokens` counts the labels of the whole accumulation window over all ranks, so that
/// accumulation does not change the update.
pub fn cross_entropy(scores: &TokenScores, label_tokens: usize) -> (f64, Vec<f32>) {
    let divisor = label_tokens.max(1) as f64;
    let sum: f64 = scores.logp.iter().map(|logp| -f64::from(*logp)).sum();
    (sum / divisor, cross_entropy_upstream(scores.logp.len(), label_tokens))
}

/// The gradient that [`cross_entropy`] gives for `n` scored tokens, whatever their log-probs are.
pub fn cross_entropy_upstream(n: usize, label_tokens: usize) -> Vec<f32> {
    vec![(-1.0 / label_tokens.max(1) as f64) as f32; n]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_add_up_to_the_window() {
        let scores = |logp: &[f32]| TokenScores { logp: logp.to_vec(), ..Default::default() };
        let (whole, _) = cross_entropy(&scores(&[-1.0, -2.0, -6.0]), 3);
        let (first, upstream) = cross_entropy(&scores(&[-1.0]), 3);
        let (second, _) = cross_entropy(&scores(&[-2.0, -6.0]), 3);
        assert_eq!(whole, 3.0);
        assert!((first + second - whole).abs() < 1e-12);
        assert_eq!(upstream, [-1.0 / 3.0]);
    }
}
