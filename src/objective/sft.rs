//! The SFT losses: cross-entropy of the labelled tokens, plain or weighted by their probabilities.

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

/// Dynamic fine-tuning (DFT, [arXiv 2508.05629](https://arxiv.org/abs/2508.05629)):
/// `Σ −p logp / label_tokens`, in which the probability `p = exp(logp)` counts as a constant, and
/// its gradient `−p / label_tokens` with respect to each log-prob (`[n]`).
pub fn dynamic_cross_entropy(scores: &TokenScores, label_tokens: usize) -> (f64, Vec<f32>) {
    let divisor = label_tokens.max(1) as f64;
    let (mut sum, mut upstream) = (0.0, Vec::with_capacity(scores.logp.len()));
    for logp in scores.logp.iter().map(|logp| f64::from(*logp)) {
        let p = logp.exp();
        sum -= p * logp;
        upstream.push((-p / divisor) as f32);
    }
    (sum / divisor, upstream)
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

    #[test]
    fn a_dynamic_loss_weighs_each_label_by_its_probability() {
        let scores = TokenScores { logp: vec![0.5f32.ln(), 0.0], ..Default::default() };
        let (loss, upstream) = dynamic_cross_entropy(&scores, 4);
        assert!((loss - 0.5 * 2f64.ln() / 4.0).abs() < 1e-7, "{loss}");
        assert_eq!(upstream, [-0.125, -0.25]);
    }
}
