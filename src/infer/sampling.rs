//! Sampling of the next token from logits: greedy, or by temperature, top-k and top-p, applied in
//! the order of transformers.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The settings of sampling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The divisor of the logits; 0 means greedy decoding.
    pub temperature: f64,
    /// Sample from the `top_k` most likely tokens only; 0 means from all.
    pub top_k: usize,
    /// Sample from the fewest most likely tokens whose probabilities sum to `top_p` or more; 1
    /// means from all.
    pub top_p: f64,
    pub seed: u64,
}

impl Sampling {
    /// Greedy decoding: always the most likely token.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
}

/// Samples the tokens of one sequence. Its random numbers depend on the seed and the sequence's
/// number only, not on the other sequences of a batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    repetition_penalty: f32,
    /// The ids that the repetition penalty applies to.
    seen: BTreeSet<u32>,
}

impl Sampler {
    /// A sampler for the sequence with this number, without a repetition penalty.
    pub fn new(sampling: Sampling, sequence: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(sequence);
        Self { sampling, random, repetition_penalty: 1.0, seen: BTreeSet::new() }
    }

    /// Makes the ids of `prompt`, and those sampled after it, less likely to occur again: a
    /// positive logit is divided by `penalty`, a negative one multiplied (arXiv 1909.05858). A
    /// penalty of 1 has no effect.
    pub fn penalize_repetition(&mut self, penalty: f32, prompt: &[u32]) {
        self.repetition_penalty = penalty;
        self.seen = prompt.iter().copied().collect();
    }

    /// Samples the next id from the logits of the whole vocabulary. Greedy decoding breaks ties by
    /// the lowest id.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if self.repetition_penalty == 1.0 {
            return self.choose(logits);
        }
        let mut logits = logits.to_vec();
        for id in &self.seen {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = match *logit < 0.0 {
                    true => *logit * self.repetition_penalty,
                    false => *logit / self.repetition_penalty,
                };
            }
        }
        let id = self.choose(&logits);
        self.seen.insert(id);
        id
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return most_likely(logits);
        }
        let candidates = self.sampling.candidates(logits);
        let mut remaining = self.random.random::<f64>();
        for &(id, probability) in &candidates {
            remaining -= probability;
            if remaining < 0.0 {
                return id;
            }
        }
        candidates.last().map_or_else(|| most_likely(logits), |(id, _)| *id)
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

impl Sampling {
    /// The ids that may be sampled, with their probabilities, the most likely first. Ids whose
    /// logit is NaN or minus infinity are left out.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| !logit.is_nan() && **logit > f32::NEG_INFINITY)
            .map(|(id, logit)| (id as u32, f64::from(*logit) / self.temperature))
            .collect();
        candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            candidates.truncate(self.top_k);
        }
        let highest = candidates.first().map_or(0.0, |(_, logit)| *logit);
        for (_, value) in &mut candidates {
            *value = (*value - highest).exp();
        }
        normalize(&mut candidates);
        if self.top_p < 1.0 {
            let mut cumulative = 0.0;
            let enough = candidates.iter().position(|(_, probability)| {
                cumulative += probability;
                cumulative >= self.top_p
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
            normalize(&mut candidates);
        }
        candidates
    }
}

fn normalize(candidates: &mut [(u32, f64)]) {
    let sum: f64 = candidates.iter().map(|(_, value)| value).sum();
    candidates.iter_mut().for_each(|(_, value)| *value /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, f32::NEG_INFINITY, 2.0];

    fn sampling(temperature: f64, top_k: usize, top_p: f64) -> Sampling {
        Sampling { temperature, top_k, top_p, seed: 7 }
    }

    #[test]
    fn the_repetition_penalty_lowers_the_logits_of_seen_ids() {
        let logits = [3.0, 2.5, -1.0, -1.5];
        let mut sampler = Sampler::new(Sampling::GREEDY, 0);
        sampler.penalize_repetition(1.0, &[0]);
        assert_eq!([sampler.next(&logits), sampler.next(&logits)], [0, 0]);
        sampler.penalize_repetition(2.0, &[0]);
        // The logits are 1.5, 2.5, … and, after id 1 was sampled, 1.5, 1.25, …
        assert_eq!([sampler.next(&logits), sampler.next(&logits)], [1, 0]);
        sampler.penalize_repetition(2.0, &[2]);
        assert_eq!(sampler.next(&[-9.0, -9.0, -1.0, -1.5]), 3, "negative logits are multiplied");
    }

    fn ids(sampling: Sampling) -> Vec<u32> {
        sampling.candidates(&LOGITS).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn greedy_decoding_breaks_ties_by_the_lowest_id() {
        assert_eq!(Sampler::new(Sampling::GREEDY, 0).next(&LOGITS), 1);
    }

    #[test]
    fn top_k_and_top_p_limit_the_candidates() {
        assert_eq!(ids(sampling(1.0, 0, 1.0)), [1, 4, 2, 0]);
        assert_eq!(ids(sampling(1.0, 3, 1.0)), [1, 4, 2]);
        // The probabilities are 0.39, 0.39, 0.14 and 0.05 (proportional to e², e², e and 1).
        assert_eq!(ids(sampling(1.0, 0, 0.3)), [1]);
        assert_eq!(ids(sampling(1.0, 0, 0.5)), [1, 4]);
        assert_eq!(ids(sampling(1.0, 0, 0.9)), [1, 4, 2]);
        let sum: f64 = sampling(0.7, 3, 0.9).candidates(&LOGITS).iter().map(|c| c.1).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn sampled_frequencies_match_the_probabilities() {
        let mut sampler = Sampler::new(sampling(1.0, 0, 1.0), 0);
        let mut counts = [0usize; 5];
        for _ in 0..20_000 {
            counts[sampler.next(&LOGITS) as usize] += 1;
        }
        let sum = 2.0 * 2f64.exp() + 1f64.exp() + 1.0;
        for (count, logit) in counts.iter().zip(LOGITS) {
            let expected = f64::from(logit).exp() / sum;
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn samples_depend_on_the_seed_and_the_sequence() {
        let draw = |seed: u64, sequence: u64| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(1.0, 0, 1.0) }, sequence);
            (0..32).map(|_| sampler.next(&LOGITS)).collect()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }
}
