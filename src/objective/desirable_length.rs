//! LD-DPO (arXiv 2409.06411): in a response's log-prob, tokens beyond the length of the pair's
//! shorter response have weight `α`, the other tokens have weight 1.

use crate::data::ragged::RaggedBatch;

/// The weight of each scored token of a batch of pairs, `[n]`; all 1 without `ld_alpha`.
pub fn token_weights(batch: &RaggedBatch, ld_alpha: Option<f64>) -> Vec<f64> {
    let Some(alpha) = ld_alpha else { return vec![1.0; batch.sequence.len()] };
    let lengths = batch.scored_by_sequence();
    let mut place = vec![0; lengths.len()];
    let weights = batch.sequence.iter().map(|sequence| {
        let shared = lengths[*sequence].min(lengths[sequence ^ 1]);
        place[*sequence] += 1;
        if place[*sequence] <= shared { 1.0 } else { alpha }
    });
    weights.collect()
}

/// `Σ weight · logp` over the scored tokens of each sequence, in nats, `[sequences]`.
pub fn weighted_sums(batch: &RaggedBatch, logp: &[f32], ld_alpha: Option<f64>) -> Vec<f64> {
    let mut sums = vec![0.0; batch.sequences];
    let weights = token_weights(batch, ld_alpha);
    for ((sequence, logp), weight) in batch.sequence.iter().zip(logp).zip(weights) {
        sums[*sequence] += weight * f64::from(*logp);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferencePair;

    #[test]
    fn the_tail_of_the_longer_response_weighs_alpha() {
        let pair = PreferencePair {
            prompt: vec![1, 2],
            chosen: vec![3, 4, 5],
            rejected: vec![6, 7],
            gold: vec![],
        };
        let batch = RaggedBatch::preferences([&pair, &pair]);
        let weights = token_weights(&batch, Some(0.25));
        assert_eq!(weights, [1.0, 1.0, 0.25, 1.0, 1.0, 1.0, 1.0, 0.25, 1.0, 1.0]);
        assert_eq!(weighted_sums(&batch, &[-1.0; 10], Some(0.5)), [-2.5, -2.0, -2.5, -2.0]);
        assert_eq!(weighted_sums(&batch, &[-1.0; 10], None), [-3.0, -2.0, -3.0, -2.0]);
    }
}
