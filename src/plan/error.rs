//! Why a recipe cannot become a plan.

use std::io;

use crate::data::{DataError, TokenizerError};
use crate::files::folder_lock::FolderError;
use crate::files::json_object::ObjectError;
use crate::hub::resolve::HubError;
use crate::model::config::ConfigError;

/// Why a recipe cannot become a plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the configuration that comes with the program")]
    KnownConfig(#[source] ConfigError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    ModelFiles(#[from] ObjectError),
    #[error("the data cannot be used")]
    Data(#[from] DataError),
    /// An observer failed.
    #[error(transparent)]
    Observer(#[from] io::Error),
    #[error(
        "float16 training needs loss scaling, which does not exist here; set dtype to bfloat16 or \
         float32"
    )]
    Float16,
    #[error("warm-up takes {warmup} steps, but the run has only {total}")]
    WarmupTooLong { warmup: u64, total: u64 },
    #[error(
        "{rows} training rows make {micro_batches} micro-batch(es) of {micro_batch}, too few for \
         {ranks} ranks: start at most {micro_batches}{}",
        smaller_batch(*rows, *ranks)
    )]
    TooFewRows { rows: usize, micro_batches: usize, micro_batch: usize, ranks: usize },
    #[error("no training row is left; see the counts above")]
    NoTrainingRow,
    #[error(
        "the tokenizer gives id {id}, but the model `{model}` has only {pieces} pieces; is it the \
         model's own tokenizer?"
    )]
    OutsideVocabulary { id: u32, model: String, pieces: usize },
    #[error(
        "the recipe evaluates, but it has no held-out row; set eval_strategy: no, or correct the \
         test split"
    )]
    NoHeldOutRow,
    #[error(
        "{split} row {row} (counted among the rows that are kept) has {tokens} tokens, more than \
         max_tokens_per_microbatch: {most}; raise it, or lower max_length"
    )]
    RowTooLong { split: &'static str, row: usize, tokens: usize, most: usize },
    #[error(
        "packing puts several chats into a row, and the lengths of the chats are not known \
         without the data; give --rows"
    )]
    LengthsUnknown,
}

/// The end of [`PlanError::TooFewRows`]: a batch size with which every rank gets a row.
fn smaller_batch(rows: usize, ranks: usize) -> String {
    match rows / ranks {
        0 => String::new(),
        smaller => format!(", or set per_device_train_batch_size to {smaller} or less"),
    }
}
