//! Rows of data sets and functions of them.

use serde_json::{Map, Value};

use super::request::Answer;

/// A row of a data set: column → value.
pub type Row = Map<String, Value>;

/// Adds columns to a row. The error says what the row lacks.
pub type ProcessFn = fn(&mut Row) -> Result<(), String>;

/// A value of a row.
pub type ValueFn = fn(&Row) -> Result<Value, String>;

/// The metrics of a row's answers.
pub type ResultsFn = fn(&Row, &[Answer]) -> Result<Vec<(String, f64)>, String>;

/// A text in a row; nested fields are separated by a point.
///
/// # Errors
/// The row lacks the field, or it is not a text.
pub fn text<'r>(row: &'r Row, field: &str) -> Result<&'r str, String> {
    value(row, field)?.as_str().ok_or_else(|| format!("`{field}` is not a text"))
}

/// The texts of a list in a row.
///
/// # Errors
/// As [`text`].
pub fn texts<'r>(row: &'r Row, field: &str) -> Result<Vec<&'r str>, String> {
    let items = list(row, field)?.iter();
    items.map(|item| item.as_str().ok_or_else(|| format!("`{field}` has a null"))).collect()
}

/// A list in a row.
///
/// # Errors
/// As [`text`].
pub fn list<'r>(row: &'r Row, field: &str) -> Result<&'r Vec<Value>, String> {
    value(row, field)?.as_array().ok_or_else(|| format!("`{field}` is not a list"))
}

/// A value in a row.
///
/// # Errors
/// The row lacks the field.
pub fn value<'r>(row: &'r Row, field: &str) -> Result<&'r Value, String> {
    let mut parts = field.split('.');
    let first = parts.next().unwrap_or_default();
    let missing = || format!("the row has no `{field}`");
    let start = row.get(first).ok_or_else(missing)?;
    parts.try_fold(start, |value, part| value.get(part)).ok_or_else(missing)
}

/// The log-likelihoods among the answers.
///
/// # Errors
/// An answer is a text.
pub fn log_likelihoods(answers: &[Answer]) -> Result<Vec<f64>, String> {
    let logp = |answer: &Answer| match answer {
        Answer::Loglikelihood { logp, .. } => Ok(*logp),
        Answer::Text(_) => Err("a log-likelihood was asked for, and a text was given".to_owned()),
    };
    answers.iter().map(logp).collect()
}

/// The text that is the only answer.
///
/// # Errors
/// The answer is a log-likelihood, or more than one answer is given.
pub fn only_text(answers: &[Answer]) -> Result<&str, String> {
    match answers {
        [Answer::Text(text)] => Ok(text),
        _ => Err("one text was asked for, and something else was given".to_owned()),
    }
}

/// `numpy.argmax`: the first of the largest values; the first NaN if any is NaN.
pub fn argmax(values: &[f64]) -> usize {
    let nan = values.iter().position(|value| value.is_nan());
    nan.unwrap_or_else(|| {
        let better = |best: usize, at: usize| if values[at] > values[best] { at } else { best };
        (0..values.len()).fold(0, better)
    })
}
