//! Rows of a data set → token ids.
//!
//! The steps: [`source`] streams rows from the files of a split. [`mixture`] chooses the rows and
//! their order. [`template`] and [`tokenizer`] (with [`words`]) turn a chat into token ids;
//! [`assistant_spans`] finds the answers in it.
//! [`preference`] makes pairs, [`triples`] pairs with a gold response, [`unpaired`] labelled
//! responses, and [`sft`] documents. [`packing`] packs documents into rows. [`unfinished`] holds
//! the rows while they are made, [`cache`] stores the result in the form that [`stored`] defines,
//! and [`row_list`] reads it. [`loader`] runs these steps, [`load`] says which columns and rules
//! each objective has, and [`report`] counts unusable rows. [`ragged`] lays rows end to end in a
//! batch.

mod added_tokens;
mod assistant_spans;
mod cache;
mod content;
mod error;
mod load;
mod loader;
mod mersenne_twister;
mod message;
mod mixture;
mod numpy_random;
pub mod packing;
mod preference;
pub mod ragged;
mod report;
mod row;
pub mod row_counts;
mod row_list;
pub mod sampler;
mod set;
mod sft;
mod source;
mod splits;
mod stored;
mod stream;
mod streaming;
mod template;
mod template_json;
mod template_limits;
mod template_message;
mod template_methods;
mod template_namespace;
mod template_percent;
mod template_tags;
mod template_values;
mod tokenizer;
mod torch_random;
mod triples;
mod unfinished;
mod unpaired;
mod words;

pub use assistant_spans::Rendered;
pub(crate) use content::text_of;
pub use error::DataError;
pub use load::{load_preferences, load_sft};
pub(crate) use mersenne_twister::MersenneTwister;
pub use message::Message;
pub(crate) use message::calls_tools;
pub use report::{BadRow, BadRowAt, RowReport};
pub use row_list::RowList;
pub(crate) use source::records;
pub use splits::Splits;
pub use streaming::{Limits, Streaming, stream_pairs, stream_sft};
pub use template::TemplateError;
pub(crate) use template_json::to_json;
pub(crate) use template_limits::{LimitedEnvironments, Stop, check_size};
pub(crate) use template_methods::{call_method, is_space};
pub(crate) use template_namespace::add_namespaces;
pub use template_values::TemplateValues;
pub use tokenizer::{Tokenizer, TokenizerError};
pub use triples::load_triples;
pub use unpaired::load_unpaired;

/// A row of two responses to one prompt, as token ids. Its two sequences are `prompt ++ response`;
/// both are already truncated. A third response may follow, which no other one is compared with.
pub trait TwoResponses: Clone {
    /// The prompt, which both sequences share.
    fn prompt(&self) -> &[u32];

    /// The two responses, in the order of their sequences in a batch.
    fn responses(&self) -> [&[u32]; 2];

    /// The third response; empty if the row has none.
    fn gold(&self) -> &[u32] {
        &[]
    }

    /// Prompt and responses.
    fn parts(&self) -> [&[u32]; 4] {
        let [first, second] = self.responses();
        [self.prompt(), first, second, self.gold()]
    }

    /// Number of tokens that the model computes; the prompt counts once.
    fn tokens(&self) -> usize {
        self.parts().into_iter().map(<[u32]>::len).sum()
    }

    /// Number of tokens of all sequences; the prompt counts in each of them.
    fn unshared_tokens(&self) -> usize {
        let more_prompts = if self.gold().is_empty() { 1 } else { 2 };
        self.tokens() + more_prompts * self.prompt().len()
    }
}

/// A preference pair as token ids. The sequences are `prompt ++ chosen`, `prompt ++ rejected` and,
/// for TPO, `prompt ++ gold`; all are already truncated and share exactly this prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PreferencePair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
    /// The gold response of TPO, from the column `reference`; empty for the other objectives.
    pub gold: Vec<u32>,
}

impl TwoResponses for PreferencePair {
    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn responses(&self) -> [&[u32]; 2] {
        [&self.chosen, &self.rejected]
    }

    fn gold(&self) -> &[u32] {
        &self.gold
    }
}

/// A labelled completion of a data set as token ids. It is not truncated yet, because the
/// completion is also paired with prompts of other rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledCompletion {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    /// Whether the completion is desirable.
    pub label: bool,
}

/// A row of KTO as token ids. Its two sequences are `prompt ++ completion` and `prompt ++
/// mismatched`; both are already truncated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpairedRow {
    pub prompt: Vec<u32>,
    pub completion: Vec<u32>,
    /// The completion of another row, for the estimate of the KL; empty for a loss without it.
    pub mismatched: Vec<u32>,
    /// Whether the completion is desirable.
    pub label: bool,
}

impl TwoResponses for UnpairedRow {
    fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    fn responses(&self) -> [&[u32]; 2] {
        [&self.completion, &self.mismatched]
    }
}

/// A document as token ids, with a label flag for each token. If `labels[i]` is set, token `i` is a
/// target, predicted from the tokens before it. The first token is never a target, since no token
/// comes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftDocument {
    pub ids: Vec<u32>,
    pub labels: Vec<bool>,
}

impl SftDocument {
    /// Number of target tokens.
    pub fn targets(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label).count()
    }
}

/// A row of an SFT batch: documents laid end to end. Attention never crosses from one document into
/// another. Without packing, a row holds one document.
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

/// Receives the progress of work on a data set.
pub trait Progress: Sync {
    /// `done` of `total` rows of `work` (for example "tokenizing train") are finished.
    fn update(&self, work: &str, done: u64, total: u64);
}

/// Ignores progress.
impl Progress for () {
    fn update(&self, _work: &str, _done: u64, _total: u64) {}
}
