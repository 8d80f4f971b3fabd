//! The errors of the chat model.

use std::path::PathBuf;

use serde_json::Value;

use crate::data::{TemplateError, TokenizerError};
use crate::hub::HubError;
use crate::model::device::DeviceError;
use crate::model::weights::WeightsError;

/// Why a chat model cannot be loaded, or why it cannot answer a prompt.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file of the model folder cannot be read.
    #[error(transparent)]
    ModelFile(Box<dyn std::error::Error + Send + Sync>),
    #[error("{}: `repetition_penalty` must be a number above 0, not {value}", path.display())]
    RepetitionPenalty { path: PathBuf, value: Value },
    /// The prompt fills all positions of the model, so that no answer fits behind it.
    #[error("the prompt has {tokens} tokens; the model was made for {longest}")]
    TooLong { tokens: usize, longest: usize },
    #[error("the prompt has no tokens")]
    NoTokens,
    /// The tokenizer belongs to another model.
    #[error("the tokenizer gives id {id}, but the model has only {vocab_size} token embeddings")]
    NotInVocabulary { id: u32, vocab_size: usize },
}

impl InferError {
    /// Whether a shorter prompt would succeed.
    pub fn is_too_long(&self) -> bool {
        matches!(self, Self::TooLong { .. })
    }
}
