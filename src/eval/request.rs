//! Requests of a task to a model, and the answers. Both are texts, not token ids.

use std::sync::Arc;

use serde_json::Value;

/// One question to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// log p(continuation | context), and whether the continuation is the greedy one.
    Loglikelihood {
        /// Shared by the requests of a document if it is the same for all of them.
        context: Arc<str>,
        continuation: String,
    },
    /// The greedy text after `context`. It ends before the first occurrence of a text of `until`,
    /// before the end-of-sequence token, or after `max_tokens` tokens.
    Generate { context: Arc<str>, until: Vec<String>, max_tokens: usize },
}

impl Request {
    /// The text before the answer.
    pub fn context(&self) -> &str {
        match self {
            Self::Loglikelihood { context, .. } | Self::Generate { context, .. } => context,
        }
    }
}

/// The model's answer to one [`Request`] of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Loglikelihood {
        /// The sum of the log-probs of the continuation's tokens, in nats.
        logp: f64,
        /// Whether each token of the continuation has the largest log-prob at its position.
        is_greedy: bool,
    },
    Text(String),
}

/// A document of a task with its requests. The contexts of consecutive documents often begin with
/// the same few-shot examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The place of the document in its task, from 0.
    pub id: usize,
    /// At least one request.
    pub requests: Vec<Request>,
    /// The row of the data set, with the columns that the task adds.
    pub row: Value,
    /// The right answer, as the task's definition writes it.
    pub target: Value,
}

/// The scores of one document after one filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The filter's name; `none` if the answers are scored as they are.
    pub filter: String,
    /// The answers after the filter.
    pub answers: Vec<Answer>,
    /// The value of each metric.
    pub values: Vec<(String, f64)>,
}
