//! Choosing the next token from logits: the most likely one, or one drawn by temperature, top-k and top-p, in the order of
//! transformers.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token each time.
    pub temperature: f64,
    /// Only the `top_k` most likely tokens; 0 leaves all.
    pub top_k: usize,
    /// Only the most likely tokens that together have at least this probability; 1 leaves all.
    pub top_p: f64,
    pub seed: u64,
}

impl Sampling {
    /// The most likely token each time.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };
}

/// Draws the tokens of one sequence. What it draws depends on the seed and the sequence's number, not on the others.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    repetition_penalty: f32,
    /// Ids that the penalty is for.
    seen: BTreeSet<u32>,
}

impl Sampler {
    pub fn new(sampling: Sampling, sequence: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(sequence);
        Self { sampling, random, repetition_penalty: 1.0, seen: BTreeSet::new() }
    }

    /// From now on ids of `prompt`, and those that follow, come again less easily: their logits are divided by `penalty`
    /// where positive, else multiplied (arXiv 1909.05858). 1 changes nothing.
    pub fn penalize_repetition(&mut self, penalty: f32, prompt: &[u32]) {
        self.repetition_penalty = penalty;
        self.seen = prompt.iter().copied().collect();
    }

    /// The id that follows; of equally likely ones the lowest.
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
        let mut left = self.random.random::<f64>();
        for &(id, probability) in &candidates {
            left -= probability;
            if left < 0.0 {
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
    /// The ids that may be drawn with their probabilities, the most likely first. A logit that is not a number is never drawn.
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
            let mut together = 0.0;
            let enough = candidates.iter().position(|(_, probability)| {
                together += probability;
                together >= self.top_p
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
    fn what_was_said_comes_again_less_easily() {
        let logits = [3.0, 2.5, -1.0, -1.5];
        let mut sampler = Sampler::new(Sampling::GREEDY, 0);
        sampler.penalize_repetition(1.0, &[0]);
        assert_eq!([sampler.next(&logits), sampler.next(&logits)], [0, 0]);
        sampler.penalize_repetition(2.0, &[0]);
        // 1.5 2.5 … and then, 1 being said, 1.5 1.25 …
        assert_eq!([sampler.next(&logits), sampler.next(&logits)], [1, 0]);
        sampler.penalize_repetition(2.0, &[2]);
        assert_eq!(sampler.next(&[-9.0, -9.0, -1.0, -1.5]), 3, "negative ones are multiplied");
    }

    fn ids(sampling: Sampling) -> Vec<u32> {
        sampling.candidates(&LOGITS).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_likely() {
        assert_eq!(Sampler::new(Sampling::GREEDY, 0).next(&LOGITS), 1);
    }

    #[test]
    fn top_k_and_top_p_narrow_the_choice() {
        assert_eq!(ids(sampling(1.0, 0, 1.0)), [1, 4, 2, 0]);
        assert_eq!(ids(sampling(1.0, 3, 1.0)), [1, 4, 2]);
        // Probabilities are 0.39, 0.39, 0.14, 0.05 (of e², e², e, 1).
        assert_eq!(ids(sampling(1.0, 0, 0.3)), [1]);
        assert_eq!(ids(sampling(1.0, 0, 0.5)), [1, 4]);
        assert_eq!(ids(sampling(1.0, 0, 0.9)), [1, 4, 2]);
        let sum: f64 = sampling(0.7, 3, 0.9).candidates(&LOGITS).iter().map(|c| c.1).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
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
    fn a_seed_and_a_sequence_decide() {
        let draw = |seed: u64, sequence: u64| -> Vec<u32> {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(1.0, 0, 1.0) }, sequence);
            (0..32).map(|_| sampler.next(&LOGITS)).collect()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }
}
