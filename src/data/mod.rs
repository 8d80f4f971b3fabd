//! Rows of a data set → token ids.
//!
//! The way through the files: [`hub`] and [`layout`] find the files of a split, [`source`] streams rows out of them,
//! [`mixture`] decides which rows are used and in what order, [`template`] and [`tokenizer`] (with [`words`]) turn a chat into
//! token ids, [`preference`] makes pairs, [`unpaired`] labelled responses and [`sft`] documents of them, [`packing`] lays documents into rows, [`cache`] keeps
//! the result. [`load`] ties these together and [`report`] counts the rows that could not be used.

mod cache;
mod error;
mod load;
mod mixture;
pub mod packing;
mod preference;
pub mod ragged;
mod report;
mod row;
pub mod row_counts;
pub mod sampler;
mod sft;
mod source;
mod template;
mod tokenizer;
mod unpaired;
mod words;

pub use error::DataError;
pub use load::{Splits, load_preferences, load_sft};
pub use report::{BadRow, BadRowAt, RowReport};
pub use template::{Rendered, TemplateError};
pub use tokenizer::{Tokenizer, TokenizerError};
pub use unpaired::{LabelledPairs, load_unpaired};

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    pub content: String,
}

impl Message {
    /// A message with this role and content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A preference pair as token ids. `prompt ++ chosen` and `prompt ++ rejected` are the two sequences, already truncated; both
/// have exactly this prompt in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

impl PreferencePair {
    /// Tokens that the model computes: the prompt counts once.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// A response as token ids, with whether it is desirable. Nothing is cut yet: a completion meets other rows' prompts too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpairedRow {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    pub label: bool,
}

/// A document as token ids, with a label flag for each: where `labels[i]`, token `i` is a target (predicted from the tokens
/// before it). The first token has none before it and is no target, whatever its flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftDocument {
    pub ids: Vec<u32>,
    pub labels: Vec<bool>,
}

impl SftDocument {
    /// Number of tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label).count()
    }
}

/// A row of an SFT batch: documents laid end to end, attention never crosses from one into another. Without packing, one
/// document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftRow {
    pub documents: Vec<SftDocument>,
}

impl SftRow {
    /// Number of tokens of all documents.
    pub fn tokens(&self) -> usize {
        self.documents.iter().map(|document| document.ids.len()).sum()
    }
}

/// Hears how far the work on a data set is.
pub trait Progress: Sync {
    /// `done` of `total` rows of `work` (as "tokenizing train") are finished.
    fn update(&self, work: &str, done: u64, total: u64);
}

/// Hears nothing.
impl Progress for () {
    fn update(&self, _work: &str, _done: u64, _total: u64) {}
}
