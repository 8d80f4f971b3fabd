//! How large the rows of a run are, and its largest batches: counted where the data is here, else at most.

use super::estimate::BatchSize;
use super::rows::Rows;
use crate::data::Splits;
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::model::config::ModelConfig;
use crate::objective::reference::TOKENS_A_BATCH;
use crate::recipe::{Every, Objective, Recipe, ReferenceKind};
use crate::train::steps::StepSchedule;

/// Sequences of a row, and what is known of their lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSize {
    /// Two of a preference pair.
    pub sequences: usize,
    /// Tokens that no sequence exceeds.
    pub length: usize,
    /// Tokens that the model computes for a training row on average, and how many others each of them sees;
    /// `None` where nobody knows.
    pub mean: Option<(f64, f64)>,
    /// The largest micro-batch of a rank.
    pub largest: BatchSize,
    /// The largest batch of an evaluation, where the run evaluates.
    pub evaluated: Option<BatchSize>,
    /// The largest batch of the pass over a frozen reference, where there is one.
    pub referenced: Option<BatchSize>,
    /// Token ids of all rows, which lie in the host's memory; 0 where they are not counted.
    pub ids: usize,
}

impl RowSize {
    /// Of rows that nobody has seen. `tokens` is the mean of a sequence where it is known.
    pub fn unseen(recipe: &Recipe, config: &ModelConfig, tokens: Option<f64>) -> Self {
        let sequences = sequences(&recipe.objective);
        let length = longest(recipe, config);
        let train = &recipe.train;
        let at_once = |rows: usize| {
            let most = train.max_tokens_per_microbatch;
            let rows = most.map_or(rows, |most| rows.min(most / (sequences * length)));
            BatchSize::padded(rows.max(1) * sequences, length)
        };
        // As many short rows as fit, or one that is longer than that.
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
            largest: at_once(train.per_device_train_batch_size),
            evaluated: evaluates(recipe).then(|| at_once(train.per_device_eval_batch_size)),
            referenced: asks_once(&recipe.objective).then(|| BatchSize {
                tokens: reference_tokens,
                scored: reference_tokens,
                scores: reference_tokens * length,
            }),
            ids: 0,
        }
    }

    /// Of rows that are here.
    pub fn counted(
        recipe: &Recipe,
        config: &ModelConfig,
        rows: &Rows,
        plan: &StepSchedule,
    ) -> Self {
        let with_prompts = matches!(recipe.objective, Objective::Orpo(_));
        let [sizes, held_out] = match rows {
            Rows::Sft(rows) => sizes_of(rows, |row| RaggedBatch::sft([row])),
            Rows::Pairs(pairs) if with_prompts => {
                sizes_of(pairs, |pair| RaggedBatch::preferences_with_prompts([pair]))
            }
            Rows::Pairs(pairs) => sizes_of(pairs, |pair| RaggedBatch::preferences([pair])),
            Rows::Unpaired(rows) => sizes_of(rows, |row| RaggedBatch::unpaired([row])),
        };
        let most = recipe.train.max_tokens_per_microbatch;
        let evaluated = evaluates(recipe).then(|| {
            let batches = held_out.chunks(recipe.train.per_device_eval_batch_size);
            largest(batches.flat_map(|rows| divided(rows, most.unwrap_or(usize::MAX))))
        });
        let referenced = asks_once(&recipe.objective).then(|| {
            let few = plan.few_rows().map(|rows| rows.into_iter().map(|row| sizes[row]).collect());
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
            // A token sees about half of the keys of its score matrix.
            mean: Some((tokens as f64 / count, scores as f64 / tokens.max(1) as f64 / 2.0)),
            largest: largest_part(&sizes, plan, most),
            evaluated,
            referenced,
            ids: tokens,
        }
    }
}

/// Sizes of the rows to train on and of the rows held out, each as a batch of its own.
fn sizes_of<T>(splits: &Splits<T>, batch: impl Fn(&T) -> RaggedBatch) -> [Vec<BatchSize>; 2] {
    let sizes = |rows: &Vec<T>| rows.iter().map(|row| BatchSize::of(&batch(row))).collect();
    [&splits.train, &splits.test].map(sizes)
}

/// Batches of at most `most` tokens, as these rows are divided into them.
fn divided(rows: &[BatchSize], most: usize) -> Vec<&[BatchSize]> {
    within_budget(rows, most, |row| row.tokens)
}

/// The batch with most tokens.
fn largest<'a>(batches: impl Iterator<Item = &'a [BatchSize]>) -> BatchSize {
    let sum = |rows: &[BatchSize]| rows.iter().fold(BatchSize::default(), |sum, row| sum + *row);
    batches.map(sum).max_by_key(|size| size.tokens).unwrap_or_default()
}

/// Whether a run evaluates at any time.
fn evaluates(recipe: &Recipe) -> bool {
    recipe.train.eval != Every::No || recipe.train.do_eval || recipe.train.eval_on_start
}

/// Whether there is a frozen reference: one pass over the rows before training, then it is gone.
pub(super) fn asks_once(objective: &Objective) -> bool {
    matches!(ReferenceKind::of(objective), ReferenceKind::Frozen(_))
}

/// Goes through all steps of the run in their order; a micro-batch beyond the `budget` of tokens is computed in
/// parts.
fn largest_part(sizes: &[BatchSize], plan: &StepSchedule, budget: Option<usize>) -> BatchSize {
    let mut largest = BatchSize::default();
    let mut order = (u64::MAX, Vec::new());
    for done in 0..plan.total {
        let epoch = plan.epoch_of(done);
        if order.0 != epoch {
            order = (epoch, plan.order(epoch));
        }
        let window = plan.window(&order.1, done);
        let most = budget.unwrap_or(usize::MAX);
        let parts =
            window.iter().flat_map(|rows| within_budget(rows, most, |row| sizes[*row].tokens));
        for rows in parts {
            let size = rows.iter().fold(BatchSize::default(), |sum, row| sum + sizes[*row]);
            if size.tokens > largest.tokens {
                largest = size;
            }
        }
    }
    largest
}

/// Sequences of a row: a labelled response comes with a mismatched one where there is a KL to estimate.
fn sequences(objective: &Objective) -> usize {
    match objective {
        Objective::Sft(_) => 1,
        Objective::Kto(kto) if !kto.loss_type.has_kl() => 1,
        _ => 2,
    }
}

fn longest(recipe: &Recipe, config: &ModelConfig) -> usize {
    let limit = match &recipe.objective {
        Objective::Sft(sft) => sft.max_length,
        other => other.lengths().and_then(|lengths| lengths.max_length),
    };
    limit.unwrap_or(config.max_position_embeddings).min(config.max_position_embeddings)
}
