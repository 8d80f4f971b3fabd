//! The interface between the training loop and an objective: a task builds batches of rows, and
//! turns the log-probs of a micro-batch into the loss, its gradient and the metrics.

use std::path::Path;

use super::layerwise::LayerwisePass;
use crate::data::DataError;
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::model::decoder::Decoder;
use crate::model::weights::WeightsError;

/// Training rows or held-out rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// Rows that are computed together: a micro-batch, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    pub rows: &'a [usize],
    /// Number of rows of the whole micro-batch.
    pub of: usize,
}

impl<'a> Part<'a> {
    /// A micro-batch that is computed in one part.
    pub fn whole(rows: &'a [usize]) -> Self {
        Self { rows, of: rows.len() }
    }

    /// Its share of the rows of the micro-batch.
    pub fn share(self) -> f64 {
        self.rows.len() as f64 / self.of as f64
    }
}

/// Divides micro-batches into parts of at most `most` tokens, in their order. Without `most`, each
/// is one part.
pub fn in_parts<'a>(
    task: &dyn Task,
    split: Split,
    micro_batches: &[&'a [usize]],
    most: Option<usize>,
) -> Vec<Part<'a>> {
    let Some(most) = most else {
        return micro_batches.iter().map(|rows| Part::whole(rows)).collect();
    };
    let tokens = |row: &usize| task.computed_tokens(split, *row);
    let divide = |rows: &&'a [usize]| {
        let of = rows.len();
        within_budget(rows, most, tokens).into_iter().map(move |rows| Part { rows, of })
    };
    micro_batches.iter().flat_map(divide).collect()
}

/// A mean that TRL logs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub value: f64,
    /// The count of numbers, of rows or of tokens, that it is the mean of. This is its weight in
    /// the mean over the parts of a micro-batch.
    pub of: usize,
    /// The count of rows that it describes. This is its weight in the mean over the batches of an
    /// evaluation.
    pub rows: usize,
}

/// The result of a part of a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its share of the step's loss.
    pub loss: f64,
    /// Gradient of that share with respect to each scored log-prob, `[n]`.
    pub upstream: Vec<f32>,
    /// TRL's metrics of the rows, in TRL's order, without `num_tokens`, which the loop adds.
    pub metrics: Vec<Metric>,
    /// Margin for the progress bar.
    pub margin: Option<f64>,
}

/// An objective over rows.
pub trait Task {
    /// Rows of a split.
    fn rows(&self, split: Split) -> usize;

    /// Waits until these rows, those of one step, can be used. Rows before them are not used again.
    ///
    /// # Errors
    /// The rows cannot be read.
    fn wait(&self, _split: Split, _window: &[&[usize]]) -> Result<(), DataError> {
        Ok(())
    }

    /// The rows as a ragged batch.
    fn batch(&self, split: Split, rows: &[usize]) -> RaggedBatch;

    /// The number that the sums of an accumulation window are divided by, given the rows of each of
    /// its micro-batches.
    fn divisor(&self, split: Split, window: &[&[usize]]) -> usize;

    /// The gradient of the loss with respect to each scored log-prob (`[n]`), if it does not depend
    /// on the log-probs. [`Self::measure`] must then return the same gradient.
    fn known_upstream(&self, _batch: &RaggedBatch, _divisor: usize) -> Option<Vec<f32>> {
        None
    }

    /// The gradient of the loss with respect to the logit of each target minus the mean logit, if
    /// labels are smoothed. It is part of the loss that [`Self::measure`] returns.
    fn smoothing_upstream(&self, _divisor: usize) -> Option<f32> {
        None
    }

    /// Whether a micro-batch is measured with numbers of those before it, see [`Self::share`]. Each
    /// micro-batch must be one part then.
    fn shares(&self) -> bool {
        false
    }

    /// What this training micro-batch tells the others, from its forward pass. Only called if
    /// [`Self::shares`].
    fn share(&self, _part: Part, _pass: &LayerwisePass) -> [f64; 2] {
        [0.0; 2]
    }

    /// Takes the shares of the micro-batches of a round, in their order. `own` is the index of the
    /// one that this rank measures next; it is beyond the end if the rank has none. Every rank gets
    /// the same shares.
    fn receive(&self, _shares: &[[f64; 2]], _own: usize) {}

    /// Loss, gradient and metrics of a part of a micro-batch whose window has this `divisor`.
    fn measure(&self, split: Split, part: Part, pass: &LayerwisePass, divisor: usize) -> Measured;

    /// The metrics of a whole evaluation, given their means over the rows. A task corrects the
    /// metrics that are not such a mean.
    fn complete(&self, metrics: Vec<(String, f64)>) -> Vec<(String, f64)> {
        metrics
    }

    /// Tokens of a row that the model computes. A shared prompt counts once.
    fn computed_tokens(&self, split: Split, row: usize) -> usize;

    /// How often each token of a batch counts in the load-balancing loss of sparse experts, in the
    /// order of the batch: as often as it occurs in TRL's padded micro-batch.
    fn occurrences(&self, split: Split, rows: &[usize]) -> Vec<f32> {
        let tokens = rows.iter().map(|row| self.computed_tokens(split, *row));
        vec![1.0; tokens.sum()]
    }

    /// The tokens to which TRL would pad the training rows of a micro-batch. The scale of NEFTune's
    /// noise depends on it.
    fn padded_length(&self, rows: &[usize]) -> usize {
        let tokens = rows.iter().map(|row| self.computed_tokens(Split::Train, *row));
        tokens.max().unwrap_or(0)
    }

    /// Tokens of a batch as TRL counts them. In pairs the prompt counts twice, once for each
    /// response.
    fn num_tokens(&self, split: Split, rows: &[usize]) -> usize;

    /// Called after each update. `step` updates are done; `policy` is the model after them.
    fn after_update(&self, _step: u64, _policy: &Decoder) {}

    /// Writes into a checkpoint what the task needs to resume, besides model and optimizer.
    ///
    /// # Errors
    /// `checkpoint` cannot be written.
    fn save(&self, _checkpoint: &Path) -> Result<(), WeightsError> {
        Ok(())
    }
}

/// A mean, and the count of numbers that it is the mean of.
pub(super) type Counted = (f64, usize);

/// Metrics that describe `rows` rows.
pub(super) fn of_rows(
    metrics: impl IntoIterator<Item = (&'static str, Counted)>,
    rows: usize,
) -> impl Iterator<Item = Metric> {
    metrics.into_iter().map(move |(name, (value, of))| Metric { name, value, of, rows })
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> Counted {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    (sum / count.max(1) as f64, count)
}

/// Mean of `values` (`[n]`) over the scored tokens whose sequence `wanted` accepts; 0 if it accepts
/// none.
pub(super) fn mean_over(
    batch: &RaggedBatch,
    values: &[f32],
    wanted: impl Fn(usize) -> bool,
) -> Counted {
    let of_sequences = batch.sequence.iter().zip(values).filter(|(s, _)| wanted(**s));
    mean(of_sequences.map(|(_, value)| f64::from(*value)))
}
