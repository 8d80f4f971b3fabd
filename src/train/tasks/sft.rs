//! Supervised fine-tuning.

use crate::data::ragged::RaggedBatch;
use crate::data::{SftRow, Splits};
use crate::objective::sft::{cross_entropy, cross_entropy_upstream, dynamic_cross_entropy};
use crate::recipe::SftLoss;
use crate::train::layerwise::LayerwisePass;
use crate::train::task::{Measured, Part, Split, Task, mean, of_rows};

/// Cross-entropy, averaged over the labels of the whole accumulation window.
pub struct SftTask<'a> {
    pub rows: &'a Splits<SftRow>,
    pub loss_type: SftLoss,
}

impl SftTask<'_> {
    fn split(&self, split: Split) -> &[SftRow] {
        match split {
            Split::Train => &self.rows.train,
            Split::Test => &self.rows.test,
        }
    }
}

impl Task for SftTask<'_> {
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

    fn known_upstream(&self, batch: &RaggedBatch, divisor: usize) -> Option<Vec<f32>> {
        match self.loss_type {
            SftLoss::Nll => Some(cross_entropy_upstream(batch.targets.len(), divisor)),
            SftLoss::Dft => None,
        }
    }

    fn measure(&self, _: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured {
        let (loss, upstream) = match self.loss_type {
            SftLoss::Nll => cross_entropy(&pass.scores, divisor),
            SftLoss::Dft => dynamic_cross_entropy(&pass.scores, divisor),
        };
        let metrics = [
            ("entropy", mean(pass.scores.entropy.iter().map(|x| f64::from(*x)))),
            ("mean_token_accuracy", mean(pass.scores.correct.iter().map(|x| f64::from(*x)))),
        ];
        let metrics = of_rows(metrics, part.rows.len()).collect();
        Measured { loss, upstream, metrics, margin: None }
    }

    fn computed_tokens(&self, split: Split, row: usize) -> usize {
        self.split(split)[row].tokens()
    }

    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize {
        rows.iter().map(|row| self.split(split)[*row].tokens()).sum()
    }
}
