//! The differences between the tasks of the first Open LLM Leaderboard.

use std::sync::Arc;

use super::request::{Answer, Request};
use super::row::{ResultsFn, Row, argmax, log_likelihoods, text, texts};

/// The source of the examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shots {
    /// Drawn from this split.
    Drawn(&'static str),
    /// The first rows of this split.
    First(&'static str),
    /// The task has none.
    None,
}

/// The tokens that are generated at most.
pub const MAX_TOKENS: usize = 256;

/// The requests of a row behind a context.
pub type RequestsFn = fn(&Row, Arc<str>) -> Result<Vec<Request>, String>;

/// The rules of a task.
#[derive(Debug, Clone)]
pub struct Rules {
    pub name: String,
    pub alias: String,
    pub version: &'static str,
    pub data_path: &'static str,
    pub data_name: Option<String>,
    pub split: &'static str,
    pub shots: Shots,
    /// The examples of the leaderboard.
    pub num_fewshot: usize,
    /// A text before the examples.
    pub description: Option<String>,
    /// The row that the following functions see.
    pub prepare: fn(&Row) -> Result<Row, String>,
    pub question: fn(&Row) -> Result<String, String>,
    /// The answer in an example.
    pub answer: fn(&Row) -> Result<String, String>,
    pub requests: RequestsFn,
    /// Whether the requests repeat the document's question in a form of their own, so that their
    /// context ends before it.
    pub own_question: bool,
    pub measure: ResultsFn,
    pub metrics: &'static [&'static str],
}

/// The question of rows with `query`.
///
/// # Errors
/// The row has none.
pub fn query(row: &Row) -> Result<String, String> {
    text(row, "query").map(str::to_owned)
}

/// The right one of `choices` behind a blank.
///
/// # Errors
/// The row has no right choice.
pub fn right_choice(row: &Row) -> Result<String, String> {
    let choices = texts(row, "choices")?;
    Ok(format!(" {}", choices[gold(row, choices.len())?]))
}

/// One log-likelihood for each of `choices`, behind a blank.
///
/// # Errors
/// The row has no choices.
pub fn choice_requests(row: &Row, context: Arc<str>) -> Result<Vec<Request>, String> {
    let request = |choice: &str| Request::Loglikelihood {
        context: Arc::clone(&context),
        continuation: format!(" {choice}"),
    };
    Ok(texts(row, "choices")?.into_iter().map(request).collect())
}

/// `acc` and `acc_norm`: whether the right choice is the likeliest, as it is and by its number of
/// characters.
///
/// # Errors
/// The row has no right choice.
pub fn choice_metrics(row: &Row, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
    let choices = texts(row, "choices")?;
    let logps = log_likelihoods(answers)?;
    let gold = gold(row, choices.len())?;
    let lengths = choices.iter().map(|choice| choice.chars().count() as f64);
    let norms: Vec<f64> = logps.iter().zip(lengths).map(|(logp, length)| logp / length).collect();
    let is_right = |values: &[f64]| f64::from(argmax(values) == gold);
    Ok(vec![("acc".to_owned(), is_right(&logps)), ("acc_norm".to_owned(), is_right(&norms))])
}

fn gold(row: &Row, choices: usize) -> Result<usize, String> {
    let gold = row.get("gold").and_then(serde_json::Value::as_u64);
    let gold = gold.and_then(|gold| usize::try_from(gold).ok()).filter(|gold| *gold < choices);
    gold.ok_or_else(|| "the right answer is not among the choices".to_owned())
}
