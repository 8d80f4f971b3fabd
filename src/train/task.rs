//! What is trained: rows in, and from the log-probs of a micro-batch the loss, its gradient, and
//! the metrics. The loop knows nothing else of SFT, pairs or labelled responses.

mod pairs;
mod reference;
mod sft;
mod unpaired;

use std::path::Path;

use super::walk::Walk;
use crate::data::ragged::RaggedBatch;
use crate::model::decoder::Decoder;
use crate::model::weights::WeightsError;
pub use pairs::PreferenceTask;
pub use reference::ReferenceSource;
pub use sft::SftTask;
pub use unpaired::UnpairedTask;

/// Training rows or held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// Rows that are computed at once: a micro-batch, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    pub rows: &'a [usize],
    /// Rows of the micro-batch that they are a part of.
    pub of: usize,
}

impl<'a> Part<'a> {
    /// A micro-batch that is computed as one.
    pub fn whole(rows: &'a [usize]) -> Self {
        Self { rows, of: rows.len() }
    }

    /// Its share of the micro-batch, by rows.
    pub fn share(self) -> f64 {
        self.rows.len() as f64 / self.of as f64
    }
}

/// What a part of a micro-batch gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its share of the step's loss.
    pub loss: f64,
    /// Gradient of that share with respect to each scored log-prob, `[n]`.
    pub upstream: Vec<f32>,
    /// TRL's metrics of the rows, in TRL's order. `num_tokens` is the loop's.
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

    /// The gradient of the loss with respect to each scored log-prob (`[n]`) where it does not depend on what the
    /// model says: [`Self::measure`] then gives the same.
    fn known_upstream(&self, _batch: &RaggedBatch, _divisor: usize) -> Option<Vec<f32>> {
        None
    }

    /// Loss, gradient and metrics of a part of a micro-batch whose window has this `divisor`.
    fn measure(&self, split: Split, part: Part, walk: &Walk, divisor: usize) -> Measured;

    /// Tokens of a row that the model computes: a shared prompt once.
    fn computed_tokens(&self, split: Split, row: usize) -> usize;

    /// Tokens of a batch as TRL counts them: a shared prompt twice.
    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize;

    /// Told of each update: `step` are done, and `policy` is what came of them.
    fn after_update(&self, _step: u64, _policy: &Decoder) {}

    /// Writes what a resumed run needs besides model and optimizer into a checkpoint.
    ///
    /// # Errors
    /// Where `checkpoint` cannot be written.
    fn save(&self, _checkpoint: &Path) -> Result<(), WeightsError> {
        Ok(())
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    sum / count.max(1) as f64
}

/// Mean of `values` (`[n]`) over the scored tokens whose sequence `wanted` says; 0 where there are none.
fn mean_over(batch: &RaggedBatch, values: &[f32], wanted: impl Fn(usize) -> bool) -> f64 {
    let of_sequences = batch.sequence.iter().zip(values).filter(|(s, _)| wanted(**s));
    mean(of_sequences.map(|(_, value)| f64::from(*value)))
}
