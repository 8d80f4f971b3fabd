//! Winogrande: which of two names a gap stands for (Sakaguchi et al., "WinoGrande: An Adversarial
//! Winograd Schema Challenge at Scale", 2019).
//!
//! Scoring is partial: each option completes the sentence up to the gap, and the log-likelihood of
//! the sentence's ending, which is the same for both, decides.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::eval::python::trimmed;
use crate::eval::request::{Answer, Request};
use crate::eval::row::{Row, argmax, log_likelihoods, text};
use crate::eval::rules::{Rules, Shots};

/// The leaderboard's Winogrande.
pub fn leaderboard() -> Rules {
    Rules {
        name: "winogrande".to_owned(),
        alias: "winogrande".to_owned(),
        version: "0",
        data_path: "allenai/winogrande",
        data_name: Some("winogrande_xl".to_owned()),
        split: "validation",
        shots: Shots::Drawn("train"),
        num_fewshot: 5,
        description: None,
        prepare: |row| Ok(row.clone()),
        question: |row| Ok(options(row)?[place(row)?].clone()),
        answer: |row| Ok(format!(" {}", ending_of(row)?)),
        requests,
        own_question: true,
        measure,
        metrics: &["acc"],
    }
}

fn requests(row: &Row, context: Arc<str>) -> Result<Vec<Request>, String> {
    let continuation = format!(" {}", ending_of(row)?);
    let request = |beginning: String| Request::Loglikelihood {
        context: format!("{context}{beginning}").into(),
        continuation: continuation.clone(),
    };
    Ok(options(row)?.map(request).to_vec())
}

fn measure(row: &Row, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
    let likeliest = argmax(&log_likelihoods(answers)?);
    Ok(vec![("acc".to_owned(), f64::from(likeliest == place(row)?))])
}

/// The place of the right option.
pub fn right_option(row: &Row) -> Result<Value, String> {
    place(row).map(Value::from)
}

/// The sentence behind the gap.
pub fn ending(row: &Row) -> Result<Value, String> {
    ending_of(row).map(Value::from)
}

/// The sentence up to the gap, with each option in it.
pub fn beginnings(row: &Row) -> Result<Value, String> {
    options(row).map(|options| json!(options))
}

fn place(row: &Row) -> Result<usize, String> {
    match text(row, "answer")? {
        "1" => Ok(0),
        "2" => Ok(1),
        other => Err(format!("answer `{other}` is neither 1 nor 2")),
    }
}

fn parts(row: &Row) -> Result<(&str, &str), String> {
    let parts = text(row, "sentence")?.split_once('_');
    parts.ok_or_else(|| "the sentence has no gap `_`".to_owned())
}

fn ending_of(row: &Row) -> Result<&str, String> {
    parts(row).map(|(_, ending)| trimmed(ending))
}

fn options(row: &Row) -> Result<[String; 2], String> {
    let (beginning, _) = parts(row)?;
    let option = |name: &str| Ok::<_, String>(format!("{beginning}{}", text(row, name)?));
    Ok([option("option1")?, option("option2")?])
}
