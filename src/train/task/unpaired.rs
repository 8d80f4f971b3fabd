//! Optimization over labelled responses.

use std::path::Path;

use super::{Measured, Part, ReferenceSource, Split, Task, mean, mean_over};
use crate::data::ragged::RaggedBatch;
use crate::data::{LabelledPairs, PreferencePair};
use crate::model::decoder::Decoder;
use crate::model::weights::WeightsError;
use crate::objective::unpaired::{UnpairedLogps, UnpairedOutcome, unpaired_loss};
use crate::recipe::KtoSettings;
use crate::train::walk::Walk;

/// KTO and unpaired APO-zero. Sequence `2 i` of a batch is the response of row `i`, `2 i + 1` the mismatched
/// one, which shares its prompt and gets no gradient.
pub struct UnpairedTask {
    pub rows: LabelledPairs,
    pub reference: ReferenceSource,
    pub settings: KtoSettings,
}

impl UnpairedTask {
    fn split(&self, split: Split) -> (&[PreferencePair], &[bool]) {
        match split {
            Split::Train => (&self.rows.pairs.train, &self.rows.train_labels),
            Split::Test => (&self.rows.pairs.test, &self.rows.test_labels),
        }
    }

    fn logps(&self, split: Split, rows: &[usize], walk: &Walk) -> UnpairedLogps {
        let batch = walk.batch();
        let sums = batch.sum_by_sequence(&walk.scores.logp);
        let [reference, reference_mismatched] = self.reference.logps(split, rows, batch, None);
        let labels = self.split(split).1;
        UnpairedLogps {
            policy: sums.iter().copied().step_by(2).collect(),
            reference,
            mismatched: sums.iter().copied().skip(1).step_by(2).collect(),
            reference_mismatched,
            labels: rows.iter().map(|row| labels[*row]).collect(),
        }
    }

    /// TRL's names; those of a side are absent where the micro-batch has no row of it.
    fn metrics(
        &self,
        logps: &UnpairedLogps,
        outcome: &UnpairedOutcome,
        walk: &Walk,
    ) -> Vec<(&'static str, f64)> {
        let (batch, scores) = (walk.batch(), &walk.scores);
        let is_row = |s: usize| s.is_multiple_of(2);
        let mut metrics =
            vec![("kl", outcome.kl), ("entropy", mean_over(batch, &scores.entropy, is_row))];
        let names = [
            (true, ["logits/chosen", "rewards/chosen", "logps/chosen"]),
            (false, ["logits/rejected", "rewards/rejected", "logps/rejected"]),
        ];
        for (label, [logits, rewards, name]) in names {
            let Some(reward) = reward_of(logps, outcome, label) else { continue };
            let of_side = |s: usize| is_row(s) && logps.labels[s / 2] == label;
            let sums = logps.labels.iter().zip(&logps.policy).filter(|(l, _)| **l == label);
            metrics.extend([
                (logits, mean_over(batch, &scores.mean_logit, of_side)),
                (rewards, reward),
                (name, mean(sums.map(|(_, logp)| *logp))),
            ]);
        }
        metrics.extend(margin(logps, outcome).map(|margin| ("rewards/margins", margin)));
        metrics
    }
}

impl Task for UnpairedTask {
    fn rows(&self, split: Split) -> usize {
        self.split(split).0.len()
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::preferences(rows.iter().map(|row| &self.split(split).0[*row]))
    }

    /// The mean over the rows of a micro-batch counts as one micro-batch of the window.
    fn divisor(&self, _: Split, window: &[&[usize]]) -> usize {
        window.len()
    }

    fn measure(&self, split: Split, part: Part, walk: &Walk, divisor: usize) -> Measured {
        let logps = self.logps(split, part.rows, walk);
        let outcome = unpaired_loss(&logps, &self.settings);
        let share = part.share() / divisor as f64;
        let gradient = |sequence: &usize| match sequence % 2 {
            0 => (outcome.d_policy[sequence / 2] * share) as f32,
            _ => 0.0,
        };
        Measured {
            loss: outcome.loss * share,
            upstream: walk.batch().sequence.iter().map(gradient).collect(),
            metrics: self.metrics(&logps, &outcome, walk),
            margin: margin(&logps, &outcome),
        }
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split).0[row].tokens()
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        let rows = rows.iter().map(|row| &self.split(split).0[*row]);
        rows.map(|row| row.prompt.len() + row.chosen.len()).sum()
    }

    fn after_update(&self, step: u64, policy: &Decoder) {
        self.reference.follow(step, policy);
    }

    fn save(&self, checkpoint: &Path) -> Result<(), WeightsError> {
        self.reference.save(checkpoint)
    }
}

/// Mean reward of the rows with this label; none where there are no such rows.
fn reward_of(logps: &UnpairedLogps, outcome: &UnpairedOutcome, label: bool) -> Option<f64> {
    let of_side = logps.labels.iter().zip(&outcome.rewards).filter(|(l, _)| **l == label);
    of_side.clone().next()?;
    Some(mean(of_side.map(|(_, reward)| *reward)))
}

fn margin(logps: &UnpairedLogps, outcome: &UnpairedOutcome) -> Option<f64> {
    Some(reward_of(logps, outcome, true)? - reward_of(logps, outcome, false)?)
}
