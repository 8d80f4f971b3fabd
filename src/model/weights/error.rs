//! Errors of weight files, and the names of these files.

use std::path::PathBuf;

use safetensors::Dtype;

use crate::model::adapter::AdapterError;
use crate::model::config::ConfigError;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Why a model folder cannot be loaded or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("{folder}: no model.safetensors and no model.safetensors.index.json here{hint}")]
    NoWeights { folder: PathBuf, hint: &'static str },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{index} names {file}, which does not exist; fetch or copy the missing file")]
    NoShard { index: PathBuf, file: String },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged: {reason}; fetch or copy the file again")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: {reason}; fetch or copy the file again")]
    Index { path: PathBuf, reason: String },
    #[error(
        "{folder}: tensor `{name}` is missing ({} in all: {}){}",
        missing.len(), list(missing), head_help(missing)
    )]
    Missing { folder: PathBuf, name: String, missing: Vec<String> },
    #[error(
        "{folder}: tensor `{name}` belongs to no part of this {architecture} model \
         ({} such: {}); is config.json the one of these weights?", extra.len(), list(extra)
    )]
    Extra { folder: PathBuf, architecture: String, name: String, extra: Vec<String> },
    #[error("{path}: tensor `{name}` has shape {found:?}; config.json makes it {expected:?}")]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "{path}: tensor `{name}` holds NaN or infinite values; the run that wrote it diverged, or the \
         file is damaged"
    )]
    NotFinite { path: PathBuf, name: String },
    #[error(
        "tensor `{name}` holds NaN or infinite values after training, so the model is not saved. \
         A lower learning_rate or a longer warm-up usually helps; checkpoints that were saved \
         before are unchanged"
    )]
    Diverged { name: String },
    #[error(
        "tensor `{name}` holds values that {dtype} cannot hold, so the model is not saved; set \
         save_dtype: bfloat16 or float32. Checkpoints that were saved before are unchanged"
    )]
    Overflow { name: String, dtype: &'static str },
    #[error("{path}: tensor `{name}` has type {found:?}; F32, BF16 and F16 can be read")]
    Type { path: PathBuf, name: String, found: Dtype },
    #[error("{path}: tensor `{name}` is quantized, but it cannot be read: {reason}")]
    Quantized { path: PathBuf, name: String, reason: String },
    #[error(
        "{folder}: `lm_head.weight` is another matrix than `model.embed_tokens.weight`, but config.json \
         ties them; set tie_word_embeddings: false there if the head was trained"
    )]
    Tied { folder: PathBuf },
}

/// Advice if nothing but the head is missing.
fn head_help(missing: &[String]) -> &'static str {
    match missing {
        [only] if only == "lm_head.weight" => {
            "; if the model uses its embedding as the head, set tie_word_embeddings: true in \
             config.json"
        }
        _ => "",
    }
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown}, …") } else { shown }
}
