//! Why an evaluation ends without results.

use std::io;

use super::encoding::EncodingError;
use super::error::EvalError;
use super::kept::KeptError;
use crate::data::TokenizerError;
use crate::infer::InferError;

/// An evaluation that cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A task, its data or a row of it.
    #[error(transparent)]
    Task(#[from] EvalError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] InferError),
    #[error("task `{task}`, document {document}: {source}")]
    Document { task: String, document: usize, source: EncodingError },
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(
        "task `{task}`, document {document}: a log-likelihood is NaN or infinite\nhelp: the \
         weights of the model are damaged, or training diverged; check the losses of its run"
    )]
    NotANumber { task: String, document: usize },
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The progress cannot be shown, or a result file cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}
