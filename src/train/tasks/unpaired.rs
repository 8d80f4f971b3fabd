//! Optimization over labelled completions.

use std::cell::Cell;
use std::path::Path;

use super::reference::ReferenceSource;
use super::running_mean::RewardSum;
use crate::data::ragged::RaggedBatch;
use crate::data::{RowList, Splits, TwoResponses, UnpairedRow};
use crate::model::decoder::Decoder;
use crate::model::weights::WeightsError;
use crate::objective::unpaired::{UnpairedLogps, UnpairedOutcome, unpaired_loss};
use crate::recipe::KtoSettings;
use crate::train::layerwise::LayerwisePass;
use crate::train::task::{Counted, Measured, Metric, Part, Split, Task, mean, mean_over, of_rows};

const CHOSEN: &str = "rewards/chosen";
const REJECTED: &str = "rewards/rejected";
const MARGINS: &str = "rewards/margins";

/// KTO, unpaired APO-zero and BCO. Sequence `2 i` of a batch is the completion of row `i`, `2 i +
/// 1` the mismatched one, which shares its prompt and gets no gradient.
pub struct UnpairedTask<'a> {
    pub rows: &'a Splits<UnpairedRow>,
    pub reference: ReferenceSource,
    pub settings: KtoSettings,
    /// BCO: the rewards of all training rows so far.
    pub rewards: Cell<RewardSum>,
    /// BCO: the mean of the rewards up to the micro-batch that this rank measures next.
    pub shift: Cell<f64>,
}

impl<'a> UnpairedTask<'a> {
    /// The task of a run that starts: BCO has seen no rewards.
    pub fn new(
        rows: &'a Splits<UnpairedRow>,
        reference: ReferenceSource,
        settings: KtoSettings,
    ) -> Self {
        let (rewards, shift) = (Cell::default(), Cell::default());
        Self { rows, reference, settings, rewards, shift }
    }

    fn split(&self, split: Split) -> &RowList<UnpairedRow> {
        match split {
            Split::Train => &self.rows.train,
            Split::Test => &self.rows.test,
        }
    }

    fn logps(&self, split: Split, rows: &[usize], pass: &LayerwisePass) -> UnpairedLogps {
        let batch = pass.batch();
        let sums = batch.sum_by_sequence(&pass.scores.logp);
        let [reference, reference_mismatched] = self.reference.logps(split, rows, batch, None);
        UnpairedLogps {
            policy: sums.iter().copied().step_by(2).collect(),
            reference,
            mismatched: sums.iter().copied().skip(1).step_by(2).collect(),
            reference_mismatched,
            labels: rows.iter().map(|row| self.split(split).get(*row).label).collect(),
        }
    }

    /// TRL's metrics. Those of a label describe its rows only, and are missing if the micro-batch
    /// has no row of it.
    fn metrics(
        &self,
        logps: &UnpairedLogps,
        outcome: &UnpairedOutcome,
        shift: f64,
        pass: &LayerwisePass,
    ) -> Vec<Metric> {
        let (batch, scores, rows) = (pass.batch(), &pass.scores, logps.labels.len());
        let is_row = |s: usize| s.is_multiple_of(2);
        let entropy = mean_over(batch, &scores.entropy, is_row);
        let first = match self.settings.loss_type.has_running_mean() {
            true => ("delta", (shift, rows)),
            false => ("kl", (outcome.kl, rows)),
        };
        let of_all = [first, ("entropy", entropy)];
        let mut metrics: Vec<Metric> = of_rows(of_all, rows).collect();
        let names = [
            (true, ["logits/chosen", CHOSEN, "logps/chosen"]),
            (false, ["logits/rejected", REJECTED, "logps/rejected"]),
        ];
        for (label, [logits, rewards, name]) in names {
            let Some(reward) = reward_of(logps, outcome, label) else { continue };
            let of_side = |s: usize| is_row(s) && logps.labels[s / 2] == label;
            let sums = logps.labels.iter().zip(&logps.policy).filter(|(l, _)| **l == label);
            let of_side = [
                (logits, mean_over(batch, &scores.mean_logit, of_side)),
                (rewards, reward),
                (name, mean(sums.map(|(_, logp)| *logp))),
            ];
            metrics.extend(of_rows(of_side, reward.1));
        }
        let margin = margin(logps, outcome).map(|margin| (MARGINS, (margin, rows)));
        metrics.extend(of_rows(margin, rows));
        metrics
    }
}

impl Task for UnpairedTask<'_> {
    fn rows(&self, split: Split) -> usize {
        self.split(split).len()
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::unpaired(self.split(split).select(rows).iter().map(|row| &**row))
    }

    /// The number of micro-batches: the loss is the mean over their means.
    fn divisor(&self, _: Split, window: &[&[usize]]) -> usize {
        window.len()
    }

    fn shares(&self) -> bool {
        self.settings.loss_type.has_running_mean()
    }

    /// The sum and the number of the rewards.
    fn share(&self, part: Part, pass: &LayerwisePass) -> [f64; 2] {
        let logps = self.logps(Split::Train, part.rows, pass);
        let ratios = logps.policy.iter().zip(&logps.reference).map(|(p, r)| p - r);
        let RewardSum { sum, rows } = RewardSum::of(ratios.map(|ratio| ratio * self.settings.beta));
        [sum, rows]
    }

    /// As in TRL, the mean of a micro-batch includes its own rewards.
    fn receive(&self, shares: &[[f64; 2]], own: usize) {
        let mut total = self.rewards.get();
        for (index, [sum, rows]) in shares.iter().enumerate() {
            total = total.plus(RewardSum { sum: *sum, rows: *rows });
            if index == own {
                self.shift.set(total.mean());
            }
        }
        self.rewards.set(total);
    }

    fn measure(&self, split: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured {
        let logps = self.logps(split, part.rows, pass);
        let shift = match split {
            Split::Train => self.shift.get(),
            Split::Test => self.rewards.get().mean(),
        };
        let outcome = unpaired_loss(&logps, &self.settings, shift);
        let share = part.share() / divisor as f64;
        let gradient = |sequence: &usize| match sequence % 2 {
            0 => (outcome.d_policy[sequence / 2] * share) as f32,
            _ => 0.0,
        };
        Measured {
            loss: outcome.loss * share,
            upstream: pass.batch().sequence.iter().map(gradient).collect(),
            metrics: self.metrics(&logps, &outcome, shift, pass),
            margin: margin(&logps, &outcome),
        }
    }

    /// The margin of an evaluation is the difference of the mean rewards of all rows of each label.
    fn complete(&self, mut metrics: Vec<(String, f64)>) -> Vec<(String, f64)> {
        let reward =
            |name: &str| metrics.iter().find(|(key, _)| key == name).map(|metric| metric.1);
        if let (Some(chosen), Some(rejected)) = (reward(CHOSEN), reward(REJECTED)) {
            metrics.retain(|(name, _)| name != MARGINS);
            metrics.push((MARGINS.to_string(), chosen - rejected));
        }
        metrics
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split).get(row).tokens()
    }

    /// The mismatched completions are not part of the batch that TRL differentiates.
    fn occurrences(&self, split: Split, rows: &[usize]) -> Vec<f32> {
        let of_row = |row: &usize| {
            let row = self.split(split).get(*row);
            let own = row.prompt.len() + row.completion.len();
            [vec![1.0; own], vec![0.0; row.tokens() - own]].concat()
        };
        rows.iter().flat_map(of_row).collect()
    }

    fn padded_length(&self, rows: &[usize]) -> usize {
        let rows = rows.iter().map(|row| self.rows.train.get(*row));
        rows.map(|row| row.prompt.len() + row.completion.len()).max().unwrap_or(0)
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        let rows = rows.iter().map(|row| self.split(split).get(*row));
        rows.map(|row| row.prompt.len() + row.completion.len()).sum()
    }

    fn after_update(&self, step: u64, policy: &Decoder) {
        self.reference.follow(step, policy);
    }

    fn save(&self, checkpoint: &Path) -> Result<(), WeightsError> {
        if self.shares() {
            let path = checkpoint.join(RewardSum::FILE);
            let failed = |source| WeightsError::Write { path, source };
            self.rewards.get().save(checkpoint).map_err(failed)?;
        }
        self.reference.save(checkpoint)
    }
}

/// Mean reward of the rows with this label; `None` if no row has it.
fn reward_of(logps: &UnpairedLogps, outcome: &UnpairedOutcome, label: bool) -> Option<Counted> {
    let of_side = logps.labels.iter().zip(&outcome.rewards).filter(|(l, _)| **l == label);
    let reward = mean(of_side.map(|(_, reward)| *reward));
    (reward.1 > 0).then_some(reward)
}

fn margin(logps: &UnpairedLogps, outcome: &UnpairedOutcome) -> Option<f64> {
    Some(reward_of(logps, outcome, true)?.0 - reward_of(logps, outcome, false)?.0)
}
