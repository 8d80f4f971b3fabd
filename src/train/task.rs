//! What is trained: rows in, and from the log-probs of a micro-batch the loss, its gradient, and
//! the metrics. The loop knows nothing else of SFT or preferences.

use super::walk::Walk;
use crate::data::ragged::RaggedBatch;
use crate::data::{PreferencePair, SftRow, Splits};
use crate::objective::preference::{PairLogps, PreferenceOutcome, preference_loss};
use crate::objective::reference::ReferenceLogps;
use crate::objective::sft::cross_entropy;
use crate::recipe::{DpoSettings, LogitsOver};

/// Training rows or held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// What a micro-batch gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its share of the step's loss.
    pub loss: f64,
    /// Gradient of that share with respect to each scored log-prob, `[n]`.
    pub upstream: Vec<f32>,
    /// TRL's metrics of the micro-batch, in TRL's order. `num_tokens` is the loop's.
    pub metrics: Vec<(&'static str, f64)>,
    /// Margin for the progress bar.
    pub margin: Option<f64>,
}

/// An objective over rows.
pub trait Task {
    /// Rows of a split.
    fn rows(&self, split: Split) -> usize;

    /// The rows as a ragged batch.
    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch;

    /// By what a window's sums are divided, given the rows of each of its micro-batches.
    fn divisor(&self, split: Split, window: &[&[usize]]) -> usize;

    /// Loss, gradient and metrics of a micro-batch whose window has this `divisor`.
    fn measure(&self, split: Split, rows: &[usize], walk: &Walk, divisor: usize) -> Measured;

    /// Tokens of a batch as TRL counts them: a shared prompt twice.
    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize;
}

/// Supervised fine-tuning: cross-entropy over the labels of the whole window.
pub struct SftTask {
    pub rows: Splits<SftRow>,
}

impl SftTask {
    fn split(&self, split: Split) -> &[SftRow] {
        match split {
            Split::Train => &self.rows.train,
            Split::Test => &self.rows.test,
        }
    }
}

impl Task for SftTask {
    fn rows(&self, split: Split) -> usize {
        self.split(split).len()
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::sft(rows.iter().map(|row| &self.split(split)[*row]))
    }

    fn divisor(&self, split: Split, window: &[&[usize]]) -> usize {
        let rows = window.iter().copied().flatten();
        let documents = rows.flat_map(|row| &self.split(split)[*row].documents);
        documents.map(|document| document.targets()).sum()
    }

    fn measure(&self, _: Split, _: &[usize], walk: &Walk, divisor: usize) -> Measured {
        let (loss, upstream) = cross_entropy(&walk.scores, divisor);
        let metrics = vec![
            ("entropy", mean(walk.scores.entropy.iter().map(|x| f64::from(*x)))),
            ("mean_token_accuracy", mean(walk.scores.correct.iter().map(|x| f64::from(*x)))),
        ];
        Measured { loss, upstream, metrics, margin: None }
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        rows.iter().map(|row| self.split(split)[*row].tokens()).sum()
    }
}

/// Preference optimization against stored reference log-probs.
pub struct PreferenceTask {
    pub pairs: Splits<PreferencePair>,
    pub reference_train: ReferenceLogps,
    pub reference_test: ReferenceLogps,
    pub settings: DpoSettings,
}

impl PreferenceTask {
    fn split(&self, split: Split) -> (&[PreferencePair], &ReferenceLogps) {
        match split {
            Split::Train => (&self.pairs.train, &self.reference_train),
            Split::Test => (&self.pairs.test, &self.reference_test),
        }
    }

    fn pair_logps(
        &self,
        split: Split,
        rows: &[usize],
        batch: &RaggedBatch,
        walk: &Walk,
    ) -> PairLogps {
        let sums = batch.sum_by_sequence(&walk.scores.logp);
        let tokens = batch.scored_by_sequence();
        let reference = self.split(split).1;
        PairLogps {
            chosen: sums.iter().copied().step_by(2).collect(),
            rejected: sums.iter().copied().skip(1).step_by(2).collect(),
            reference_chosen: rows.iter().map(|row| reference.chosen[*row]).collect(),
            reference_rejected: rows.iter().map(|row| reference.rejected[*row]).collect(),
            chosen_tokens: tokens.iter().copied().step_by(2).collect(),
            rejected_tokens: tokens.iter().copied().skip(1).step_by(2).collect(),
        }
    }

    /// Mean logits of chosen and rejected sides: over response positions as TRL has it today, or
    /// over all positions of the sequence as it was until v0.11.
    fn mean_logits(&self, batch: &RaggedBatch, walk: &Walk) -> [f64; 2] {
        match self.settings.logits_over {
            LogitsOver::Response => [0, 1].map(|side| {
                let scored = batch.sequence.iter().zip(&walk.scores.mean_logit);
                mean(scored.filter(|(s, _)| *s % 2 == side).map(|(_, x)| f64::from(*x)))
            }),
            LogitsOver::All => {
                let means = walk.mean_logits();
                let of_side = |side: usize| {
                    let groups = batch.segments.groups();
                    let tokens: Vec<usize> = groups
                        .iter()
                        .flat_map(|group| [group[0], group[1 + side]])
                        .flat_map(|segment| segment.start..segment.start + segment.len)
                        .collect();
                    mean(tokens.into_iter().map(|token| f64::from(means[token])))
                };
                [of_side(0), of_side(1)]
            }
        }
    }
}

impl Task for PreferenceTask {
    fn rows(&self, split: Split) -> usize {
        self.split(split).0.len()
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::preferences(rows.iter().map(|row| &self.split(split).0[*row]))
    }

    /// The mean over the pairs of a micro-batch counts as one micro-batch of the window.
    fn divisor(&self, _: Split, window: &[&[usize]]) -> usize {
        window.len()
    }

    fn measure(&self, split: Split, rows: &[usize], walk: &Walk, divisor: usize) -> Measured {
        let batch = walk.batch();
        let pairs = self.pair_logps(split, rows, batch, walk);
        let outcome = preference_loss(&pairs, &self.settings);
        let share = 1.0 / divisor as f64;
        let of_sequence = |sequence: usize| match sequence % 2 {
            0 => outcome.d_chosen[sequence / 2],
            _ => outcome.d_rejected[sequence / 2],
        };
        Measured {
            loss: mean(outcome.losses.iter().copied()) * share,
            upstream: batch.sequence.iter().map(|s| (of_sequence(*s) * share) as f32).collect(),
            metrics: metrics(&pairs, &outcome, self.mean_logits(batch, walk), batch, walk),
            margin: Some(margin(&outcome)),
        }
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        let pairs = rows.iter().map(|row| &self.split(split).0[*row]);
        pairs.map(|p| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len()).sum()
    }
}

fn margin(outcome: &PreferenceOutcome) -> f64 {
    let rewards = outcome.chosen_rewards.iter().zip(&outcome.rejected_rewards);
    mean(rewards.map(|(chosen, rejected)| chosen - rejected))
}

/// TRL's names and order. A tie counts as a wrong answer.
fn metrics(
    pairs: &PairLogps,
    outcome: &PreferenceOutcome,
    [chosen_logits, rejected_logits]: [f64; 2],
    batch: &RaggedBatch,
    walk: &Walk,
) -> Vec<(&'static str, f64)> {
    let rewards = outcome.chosen_rewards.iter().zip(&outcome.rejected_rewards);
    let of_chosen = batch.sequence.iter().zip(&walk.scores.correct).filter(|(s, _)| *s % 2 == 0);
    vec![
        ("entropy", mean(walk.scores.entropy.iter().map(|x| f64::from(*x)))),
        ("logits/chosen", chosen_logits),
        ("logits/rejected", rejected_logits),
        ("mean_token_accuracy", mean(of_chosen.map(|(_, correct)| f64::from(*correct)))),
        ("rewards/chosen", mean(outcome.chosen_rewards.iter().copied())),
        ("rewards/rejected", mean(outcome.rejected_rewards.iter().copied())),
        ("rewards/accuracies", mean(rewards.map(|(c, r)| if c > r { 1.0 } else { 0.0 }))),
        ("rewards/margins", margin(outcome)),
        ("logps/chosen", mean(pairs.chosen.iter().copied())),
        ("logps/rejected", mean(pairs.rejected.iter().copied())),
    ]
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    sum / count.max(1) as f64
}
