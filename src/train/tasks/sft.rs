//! Supervised fine-tuning.

use crate::data::DataError;
use crate::data::ragged::RaggedBatch;
use crate::data::{RowList, SftRow, Splits};
use crate::objective::label_smoothing::smoothed_cross_entropy;
use crate::objective::sft::{cross_entropy, cross_entropy_upstream, dynamic_cross_entropy};
use crate::recipe::{Packing, SftLoss, SftSettings};
use crate::train::layerwise::LayerwisePass;
use crate::train::task::{Measured, Part, Split, Task, mean, of_rows};

/// Cross-entropy, averaged over the labels of the whole accumulation window.
pub struct SftTask<'a> {
    pub rows: &'a Splits<SftRow>,
    pub settings: SftSettings,
}

impl SftTask<'_> {
    fn split(&self, split: Split) -> &RowList<SftRow> {
        match split {
            Split::Train => &self.rows.train,
            Split::Test => &self.rows.test,
        }
    }

    /// The ε of label smoothing; `None` if labels are not smoothed.
    fn epsilon(&self) -> Option<f64> {
        let SftSettings { loss_type, label_smoothing_factor: epsilon, .. } = self.settings;
        (loss_type == SftLoss::Nll && epsilon > 0.0).then_some(epsilon)
    }
}

impl Task for SftTask<'_> {
    fn rows(&self, split: Split) -> usize {
        self.split(split).len()
    }

    fn wait(&self, split: Split, window: &[&[usize]]) -> Result<(), DataError> {
        self.split(split).wait(window)
    }

    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch {
        RaggedBatch::sft(self.split(split).select(rows).iter().map(|row| &**row))
    }

    fn divisor(&self, split: Split, window: &[&[usize]]) -> usize {
        let rows = window.iter().copied().flatten();
        let targets = |row: &usize| -> usize {
            let row = self.split(split).get(*row);
            row.documents.iter().map(|document| document.targets()).sum()
        };
        rows.map(targets).sum()
    }

    fn known_upstream(&self, batch: &RaggedBatch, divisor: usize) -> Option<Vec<f32>> {
        match self.settings.loss_type {
            SftLoss::Nll => Some(cross_entropy_upstream(batch.targets.len(), divisor)),
            SftLoss::Dft => None,
        }
    }

    fn smoothing_upstream(&self, divisor: usize) -> Option<f32> {
        self.epsilon().map(|epsilon| (epsilon / divisor.max(1) as f64) as f32)
    }

    fn measure(&self, _: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured {
        let (mut loss, upstream) = match self.settings.loss_type {
            SftLoss::Nll => cross_entropy(&pass.scores, divisor),
            SftLoss::Dft => dynamic_cross_entropy(&pass.scores, divisor),
        };
        if let Some(epsilon) = self.epsilon() {
            loss = smoothed_cross_entropy(&pass.scores, divisor, epsilon);
        }
        let metrics = [
            ("entropy", mean(pass.scores.entropy.iter().map(|x| f64::from(*x)))),
            ("mean_token_accuracy", mean(pass.scores.correct.iter().map(|x| f64::from(*x)))),
        ];
        let metrics = of_rows(metrics, part.rows.len()).collect();
        Measured { loss, upstream, metrics, margin: None }
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split).get(row).tokens()
    }

    /// As in TRL, rows packed by `bfd` are laid end to end instead of padded.
    fn padded_length(&self, rows: &[usize]) -> usize {
        let tokens = rows.iter().map(|row| self.rows.train.get(*row).tokens());
        match self.settings.packing && self.settings.packing_strategy != Packing::Wrapped {
            true => tokens.sum(),
            false => tokens.max().unwrap_or(0),
        }
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        rows.iter().map(|row| self.split(split).get(*row).tokens()).sum()
    }
}
