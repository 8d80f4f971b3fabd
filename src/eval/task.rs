//! The interface between the evaluation and a task.

use std::fmt;

use super::error::EvalError;
use super::request::{Answer, Document, Measured};

/// Whose prompts and rules a task follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Definition {
    /// The task files of lm-evaluation-harness 0.4.13.
    LmEval,
    /// The first Open LLM Leaderboard: lm-evaluation-harness at commit b281b09.
    Leaderboard,
}

impl fmt::Display for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LmEval => "lm-eval",
            Self::Leaderboard => "leaderboard",
        })
    }
}

/// How the values of a metric become one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aggregation {
    Mean,
    /// exp(−mean) of log-likelihoods.
    Perplexity,
    Median,
    /// The mean, without a standard error.
    BrierScore,
}

/// A metric of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// `acc`, `exact_match`, …
    pub name: String,
    pub aggregation: Aggregation,
    pub higher_is_better: bool,
}

/// A task with its documents.
pub trait Task: Send + Sync {
    /// The name, for example `mmlu_anatomy`.
    fn name(&self) -> &str;

    /// The name in tables, for example `anatomy`.
    fn alias(&self) -> &str;

    fn definition(&self) -> Definition;

    /// The version of the task's definition, as lm-eval prints it.
    fn version(&self) -> &str;

    /// The number of examples before each question.
    fn num_fewshot(&self) -> usize;

    fn metrics(&self) -> &[Metric];

    /// The number of documents that are evaluated.
    fn documents(&self) -> usize;

    /// The number of rows in the evaluated split, without `--limit`.
    fn rows(&self) -> usize;

    /// Builds document `id` (from 0) with its requests.
    ///
    /// # Errors
    /// The row lacks something that the task needs; the message names file and row.
    fn document(&self, id: usize) -> Result<Document, EvalError>;

    /// Scores the answers to the requests of document `id`, in the order of the requests. One
    /// entry for each filter of the task.
    ///
    /// # Errors
    /// As [`Task::document`].
    fn measure(&self, id: usize, answers: &[Answer]) -> Result<Vec<Measured>, EvalError>;
}
