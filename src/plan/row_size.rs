//! The size of a run's rows and of its largest batches.
//!
//! They are counted if the data is on this machine. If not, they are upper bounds.

use super::estimate::BatchSize;
use super::rows::Rows;
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::data::{RowList, Splits};
use crate::model::config::ModelConfig;
use crate::objective::reference::TOKENS_A_BATCH;
use crate::recipe::{Every, Objective, Recipe, ReferenceKind};
use crate::train::steps::StepSchedule;

/// The most rows that are visited to find the largest micro-batch, which takes about a second.
const COUNTED_ROWS: usize = 20_000_000;

/// The size of a run's rows and of its largest batches.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSize {
    /// Sequences of a row: two for a preference pair.
    pub sequences: usize,
    /// The most tokens that a sequence has.
    pub length: usize,
    /// Tokens that the model computes for a training row, and other tokens that each of them
    /// attends to, both on average; `None` if unknown.
    pub mean: Option<(f64, f64)>,
    /// The largest micro-batch of a rank.
    pub largest: BatchSize,
    /// The largest batch of an evaluation; `None` if the run does not evaluate.
    pub evaluated: Option<BatchSize>,
    /// The largest batch of the reference pass; `None` without a frozen reference.
    pub referenced: Option<BatchSize>,
    /// Token ids of the training rows in the host's memory; 0 if they are in a file or not counted.
    pub ids: usize,
}

impl RowSize {
    /// Upper bounds for rows that are not read. `tokens` is the mean length of a sequence, if
    /// known.
    pub fn upper_bound(recipe: &Recipe, config: &ModelConfig, tokens: Option<f64>) -> Self {
        let sequences = sequences(&recipe.objective);
        let length = longest(recipe, config);
        let train = &recipe.train;
        let batch_of = |rows: usize| {
            let limit = train.max_tokens_per_microbatch;
            let rows = limit.map_or(rows, |limit| rows.min(limit / (sequences * length)));
            BatchSize::padded(rows.max(1) * sequences, length)
        };
        // A batch has as many rows as fit, or a single row that is longer than the budget.
        let reference_tokens = TOKENS_A_BATCH.max(sequences * length);
        let packed = matches!(&recipe.objective, Objective::Sft(sft) if sft.packing);
        let tokens = match packed {
            true => Some(length as f64),
            false => tokens.map(|tokens| tokens.min(length as f64)),
        };
        Self {
            sequences,
            length,
            mean: tokens.map(|tokens| (tokens * sequences as f64, tokens / 2.0)),
            largest: batch_of(train.per_device_train_batch_size),
            evaluated: evaluates(recipe).then(|| batch_of(train.per_device_eval_batch_size)),
            referenced: has_frozen_reference(recipe).then(|| BatchSize {
                tokens: reference_tokens,
                scored: reference_tokens,
                scores: reference_tokens.saturating_mul(length),
            }),
            ids: 0,
        }
    }

    /// The sizes of rows that are on this machine. Upper bounds if they are streamed.
    pub fn counted(
        recipe: &Recipe,
        config: &ModelConfig,
        rows: &Rows,
        schedule: &StepSchedule,
    ) -> Self {
        if rows.are_streamed() {
            return Self::upper_bound(recipe, config, None);
        }
        let [sizes, held_out] = match rows {
            Rows::Sft(rows) => sizes_of(rows, |row| RaggedBatch::sft([row])),
            Rows::Pairs(pairs) => match recipe.objective {
                Objective::Orpo(_) => {
                    sizes_of(pairs, |pair| RaggedBatch::preferences_with_prompts([pair]))
                }
                Objective::Tpo(_) => sizes_of(pairs, |pair| RaggedBatch::triples([pair])),
                _ => sizes_of(pairs, |pair| RaggedBatch::preferences([pair])),
            },
            Rows::Unpaired(rows) => sizes_of(rows, |row| RaggedBatch::unpaired([row])),
        };
        let limit = recipe.train.max_tokens_per_microbatch;
        let evaluated = evaluates(recipe).then(|| {
            let batches = held_out.chunks(recipe.train.per_device_eval_batch_size);
            largest(batches.flat_map(|rows| divided(rows, limit.unwrap_or(usize::MAX))))
        });
        let referenced = has_frozen_reference(recipe).then(|| {
            let few =
                schedule.few_rows().map(|rows| rows.into_iter().map(|row| sizes[row]).collect());
            let train: Vec<BatchSize> = few.unwrap_or_else(|| sizes.clone());
            let sets = [train.as_slice(), held_out.as_slice()];
            largest(sets.into_iter().flat_map(|rows| divided(rows, TOKENS_A_BATCH)))
        });
        let tokens: usize = sizes.iter().map(|size| size.tokens).sum();
        let scores: usize = sizes.iter().map(|size| size.scores).sum();
        let count = sizes.len().max(1) as f64;
        Self {
            sequences: sequences(&recipe.objective),
            length: longest(recipe, config).min(rows.longest()),
            // Attention is causal: a token attends to about half of the keys.
            mean: Some((tokens as f64 / count, scores as f64 / tokens.max(1) as f64 / 2.0)),
            largest: largest_micro_batch(&sizes, schedule, limit),
            evaluated,
            referenced,
            ids: if rows.are_in_memory() { tokens } else { 0 },
        }
    }
}

/// Sizes of the rows to train on and of the rows held out, each as a batch of its own.
fn sizes_of<T: Clone>(
    splits: &Splits<T>,
    batch: impl Fn(&T) -> RaggedBatch,
) -> [Vec<BatchSize>; 2] {
    let sizes = |rows: &RowList<T>| rows.iter().map(|row| BatchSize::of(&batch(&row))).collect();
    [&splits.train, &splits.test].map(sizes)
}

/// Divides rows into batches of at most `limit` tokens.
fn divided(rows: &[BatchSize], limit: usize) -> Vec<&[BatchSize]> {
    within_budget(rows, limit, |row| row.tokens)
}

/// The size of the batch that has the most tokens.
fn largest<'a>(batches: impl Iterator<Item = &'a [BatchSize]>) -> BatchSize {
    let sum = |rows: &[BatchSize]| rows.iter().fold(BatchSize::default(), |sum, row| sum + *row);
    batches.map(sum).max_by_key(|size| size.tokens).unwrap_or_default()
}

/// Whether the run evaluates at all.
fn evaluates(recipe: &Recipe) -> bool {
    recipe.train.eval != Every::No || recipe.train.do_eval || recipe.train.eval_on_start
}

/// Whether the objective has a frozen reference. It makes one pass over the rows before training
/// and is not in memory afterwards.
pub(super) fn has_frozen_reference(recipe: &Recipe) -> bool {
    matches!(recipe.reference_kind(), ReferenceKind::Frozen(_))
}

/// An upper bound of [`largest_micro_batch`]: the longest rows meet in one micro-batch.
fn bound_of_micro_batch(sizes: &[BatchSize], rows: usize, limit: usize) -> BatchSize {
    let mut sorted: Vec<BatchSize> = sizes.to_vec();
    sorted.sort_unstable_by_key(|size| std::cmp::Reverse(size.tokens));
    let longest = sorted.first().map_or(0, |size| size.tokens);
    let all = sorted.iter().take(rows).fold(BatchSize::default(), |sum, size| sum + *size);
    let tokens = all.tokens.min(limit.max(longest));
    BatchSize { tokens, scored: all.scored.min(tokens), ..all }
}

/// The largest micro-batch over all steps of the run. With a `limit` of tokens a micro-batch is
/// computed in parts, and the largest part counts. Of a run that visits more than [`COUNTED_ROWS`],
/// an upper bound.
fn largest_micro_batch(
    sizes: &[BatchSize],
    schedule: &StepSchedule,
    limit: Option<usize>,
) -> BatchSize {
    let limit = limit.unwrap_or(usize::MAX);
    // All epochs of rows in the order of the file are alike.
    let steps = match schedule.has_one_order() {
        true => schedule.total.min(schedule.steps_per_epoch),
        false => schedule.total,
    };
    let rows_a_step = schedule.rows_a_step().min(sizes.len()).max(1);
    if steps > (COUNTED_ROWS / rows_a_step) as u64 {
        return bound_of_micro_batch(sizes, schedule.micro_batch, limit);
    }
    let mut largest = BatchSize::default();
    let mut order = (u64::MAX, Vec::new());
    for done in 0..steps {
        let epoch = schedule.epoch_of(done);
        if order.0 != epoch {
            order = (epoch, schedule.order(epoch));
        }
        let window = schedule.window(&order.1, done);
        let parts =
            window.iter().flat_map(|rows| within_budget(rows, limit, |row| sizes[*row].tokens));
        for rows in parts {
            let size = rows.iter().fold(BatchSize::default(), |sum, row| sum + sizes[*row]);
            if size.tokens > largest.tokens {
                largest = size;
            }
        }
    }
    largest
}

/// Sequences of a row. A row of TPO has a gold response if the loss has its NLL. A row of KTO has a
/// second, mismatched response if the loss estimates a KL.
fn sequences(objective: &Objective) -> usize {
    match objective {
        Objective::Sft(_) => 1,
        Objective::Kto(kto) if !kto.loss_type.has_kl() => 1,
        Objective::Tpo(tpo) if tpo.has_nll() => 3,
        _ => 2,
    }
}

/// The most tokens of a sequence that the recipe and the model allow.
fn longest(recipe: &Recipe, config: &ModelConfig) -> usize {
    let limit = match &recipe.objective {
        Objective::Sft(sft) => sft.max_length,
        other => other.lengths().and_then(|lengths| lengths.max_length),
    };
    limit.unwrap_or(usize::MAX).min(config.max_position_embeddings)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Stage;

    fn schedule(rows: usize, max_steps: u64) -> StepSchedule {
        let text = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\n";
        let overrides = [format!("--max_steps={max_steps}")];
        let recipe = Recipe::parse(text, Path::new("r.yaml"), Stage::Sft, &overrides).unwrap();
        StepSchedule::new(&recipe.train, rows, 1)
    }

    #[test]
    fn the_largest_micro_batch_of_a_long_run_is_bounded() {
        let size = |tokens| BatchSize { tokens, scored: tokens, scores: tokens * tokens };
        let sizes: Vec<BatchSize> = (1..=1000).map(size).collect();
        let counted = largest_micro_batch(&sizes, &schedule(1000, 2000), None);
        let bound = largest_micro_batch(&sizes, &schedule(1000, 1_000_000_000), None);
        assert_eq!(bound.tokens, (993..=1000).sum::<usize>(), "the eight longest rows");
        assert!(counted.tokens < bound.tokens && counted.scores < bound.scores);
        let parts = largest_micro_batch(&sizes, &schedule(1000, 1_000_000_000), Some(2000));
        assert_eq!((parts.tokens, parts.scored), (2000, 2000));
    }
}
