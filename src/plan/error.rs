//! The errors of this module.

use std::io;

use crate::data::{DataError, TokenizerError};
use crate::files::folder_lock::FolderError;
use crate::files::json_object::ObjectError;
use crate::hub::HubError;
use crate::model::adapter::AdapterError;
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
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(
        "`sync_ref_model` cannot be used with an adapter (`{0}`): the reference is the model before \
         training, which does not change; remove `sync_ref_model`, or merge the adapter with \
         `favonius merge` and train all weights"
    )]
    FollowedAdapter(String),
    #[error("the model configuration that is built into the program cannot be used")]
    BuiltInConfig(#[source] ConfigError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    ModelFiles(#[from] ObjectError),
    /// A recipe that was built in code; in a file, such recipes are errors.
    #[error("`streaming` {0}")]
    Streaming(&'static str),
    #[error("the data cannot be used")]
    Data(#[from] DataError),
    /// An observer failed.
    #[error(transparent)]
    Observer(#[from] io::Error),
    #[error(
        "the weights of `{0}` are quantized to 4 bits, so they cannot be trained; set `use_peft: true` \
         to train an adapter on them, or train the 16-bit model without `load_in_4bit`"
    )]
    Quantized(String),
    #[error(
        "float16 training needs loss scaling, which is not implemented; set dtype to bfloat16 or \
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
    #[error("no training row is left; the counts above say why rows were left out")]
    NoTrainingRow,
    #[error(
        "the tokenizer gives id {id}, but the model `{model}` has a vocabulary of {vocab_size} \
         only; is it the model's own tokenizer?"
    )]
    OutsideVocabulary { id: u32, model: String, vocab_size: usize },
    #[error(
        "the recipe evaluates, but it has no held-out row; set eval_strategy: no, or correct the \
         test split"
    )]
    NoHeldOutRow,
    #[error(
        "`dataloader_drop_last: true` leaves out all {rows} {split} row(s), because a batch has \
         {batch}; lower the batch size or set it to false"
    )]
    NoFullBatch { split: &'static str, rows: usize, batch: usize },
    #[error(
        "{split} row {row} (counting from 0, without rows that were left out) has {tokens} \
         tokens, more than max_tokens_per_microbatch: {limit}; raise it, or lower max_length"
    )]
    RowTooLong { split: &'static str, row: usize, tokens: usize, limit: usize },
    #[error(
        "`label_smoothing_factor` cannot be used with a model whose logits have a soft cap \
         (`final_logit_softcapping`); leave it out, or use another model"
    )]
    SmoothedSoftCap,
    #[error(
        "`router_aux_loss_coef` is the weight of a loss over the experts of a model, but `{0}` has \
         no experts; remove the key"
    )]
    NoExperts(String),
    #[error(
        "`max_tokens_per_microbatch` cannot be used with the load-balancing loss of the model's \
         experts, which is computed over a whole micro-batch; lower per_device_train_batch_size, or \
         turn the loss off with `router_aux_loss_coef: 0`"
    )]
    BalanceInParts,
    #[error(
        "`optim: adafactor` cannot train the experts of this model as transformers does, which \
         stacks them to one tensor; choose another optimizer, such as adamw_torch, or `use_peft: \
         true`"
    )]
    FactoredExperts,
    #[error(
        "packing puts several chats into a row, and the lengths of the chats are unknown without \
         the data; give the number of packed rows with --rows"
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
