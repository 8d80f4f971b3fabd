//! HellaSwag: endings of everyday scenes (Zellers et al., "HellaSwag: Can a Machine Really Finish
//! Your Sentence?", 2019).

use std::sync::LazyLock;

use serde_json::json;

use crate::eval::python::{Pattern, capitalized, float, trimmed};
use crate::eval::row::{Row, text, texts};
use crate::eval::rules::{self, Rules, Shots};

/// The marks in brackets that WikiHow's texts have.
static BRACKETS: LazyLock<Pattern> =
    LazyLock::new(|| Pattern::new(r"\[.*?\]").expect("the pattern is valid"));

/// The leaderboard's HellaSwag.
pub fn leaderboard() -> Rules {
    Rules {
        name: "hellaswag".to_owned(),
        alias: "hellaswag".to_owned(),
        version: "0",
        data_path: "Rowan/hellaswag",
        data_name: None,
        split: "validation",
        shots: Shots::Drawn("train"),
        num_fewshot: 10,
        description: None,
        prepare: |row| {
            let mut row = row.clone();
            process_docs(&mut row).map(|()| row)
        },
        question: rules::query,
        answer: rules::right_choice,
        requests: rules::choice_requests,
        own_question: false,
        measure: rules::choice_metrics,
        metrics: &["acc", "acc_norm"],
    }
}

/// Adds `query`, `choices` and `gold`, which both definitions use.
pub fn process_docs(row: &mut Row) -> Result<(), String> {
    let scene = format!("{} {}", text(row, "ctx_a")?, capitalized(text(row, "ctx_b")?));
    let query = cleaned(&format!("{}: {scene}", text(row, "activity_label")?));
    let choices: Vec<String> = texts(row, "endings")?.into_iter().map(cleaned).collect();
    let label = text(row, "label")?;
    let gold = float(label).filter(|gold| gold.fract() == 0.0 && *gold >= 0.0);
    let gold = gold.ok_or_else(|| format!("label `{label}` is not a number"))? as u64;
    row.insert("query".to_owned(), query.into());
    row.insert("choices".to_owned(), json!(choices));
    row.insert("gold".to_owned(), gold.into());
    Ok(())
}

fn cleaned(text: &str) -> String {
    let text = trimmed(text).replace(" [title]", ". ");
    BRACKETS.removed_from(&text).replace("  ", " ")
}
