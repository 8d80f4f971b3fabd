//! GSM8K: word problems of grade-school mathematics (Cobbe et al., "Training Verifiers to Solve
//! Math Word Problems", 2021).

use std::sync::{Arc, LazyLock};

use crate::eval::python::{Pattern, trimmed};
use crate::eval::request::{Answer, Request};
use crate::eval::row::{Row, only_text, text};
use crate::eval::rules::{MAX_TOKENS, Rules, Shots};

/// The number behind the mark of the final answer.
static NUMBER: LazyLock<Pattern> =
    LazyLock::new(|| Pattern::new(r"#### (\-?[0-9\.\,]+)").expect("the pattern is valid"));

/// The leaderboard's GSM8K. It stops at each colon.
pub fn leaderboard() -> Rules {
    Rules {
        name: "gsm8k".to_owned(),
        alias: "gsm8k".to_owned(),
        version: "0",
        data_path: "openai/gsm8k",
        data_name: Some("main".to_owned()),
        split: "test",
        shots: Shots::Drawn("train"),
        num_fewshot: 5,
        description: None,
        prepare: |row| Ok(row.clone()),
        question: |row| Ok(format!("Question: {}\nAnswer:", text(row, "question")?)),
        answer: |row| Ok(format!(" {}", text(row, "answer")?)),
        requests,
        own_question: false,
        measure,
        metrics: &["acc"],
    }
}

fn requests(_row: &Row, context: Arc<str>) -> Result<Vec<Request>, String> {
    let until = [":", "Question:", "Question"].map(str::to_owned).to_vec();
    Ok(vec![Request::Generate { context, until, max_tokens: MAX_TOKENS }])
}

fn measure(row: &Row, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
    let gold = number(text(row, "answer")?).ok_or("the row's answer has no number behind ####")?;
    let given = number(only_text(answers)?);
    Ok(vec![("acc".to_owned(), f64::from(given == Some(gold)))])
}

fn number(text: &str) -> Option<String> {
    let groups = NUMBER.search(text)?;
    groups.get(1).copied().flatten().map(|number| trimmed(number).replace(',', ""))
}
