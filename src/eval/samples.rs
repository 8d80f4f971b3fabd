//! The answers to each document in the form of lm-evaluation-harness: the rows of
//! `samples_TASK.jsonl`.

use serde_json::{Map, Value, json};

use super::error::EvalError;
use super::request::{Answer, Document, Measured, Request};
use super::task::Task;
use crate::train::state::json::float_repr;

/// The rows of document `id`, one for each filter, and its scores.
///
/// # Errors
/// The document cannot be built or scored.
pub fn sample(
    task: &dyn Task,
    id: usize,
    answers: &[Answer],
) -> Result<(Vec<Value>, Vec<Measured>), EvalError> {
    let document = task.document(id)?;
    let measured = task.measure(id, answers)?;
    let rows = measured.iter().map(|measured| row(&document, answers, measured)).collect();
    Ok((rows, measured))
}

fn row(document: &Document, answers: &[Answer], measured: &Measured) -> Value {
    let requests = document.requests.iter().enumerate();
    let arguments = requests.map(|(index, r)| (format!("gen_args_{index}"), argument(r)));
    let mut row = Map::new();
    row.insert("doc_id".into(), json!(document.id));
    row.insert("doc".into(), document.row.clone());
    row.insert("target".into(), document.target.clone());
    row.insert("arguments".into(), Value::Object(arguments.collect()));
    // A list for each request: lm-eval may ask a request several times.
    let responses: Vec<Value> = answers.iter().map(|answer| json!([response(answer)])).collect();
    row.insert("resps".into(), json!(responses));
    let filtered: Vec<Value> = measured.answers.iter().map(response).collect();
    row.insert("filtered_resps".into(), json!(filtered));
    row.insert("filter".into(), json!(measured.filter));
    let metrics: Vec<&str> = measured.values.iter().map(|(name, _)| name.as_str()).collect();
    row.insert("metrics".into(), json!(metrics));
    for (name, value) in &measured.values {
        row.insert(name.clone(), json!(value));
    }
    Value::Object(row)
}

fn argument(request: &Request) -> Value {
    match request {
        Request::Loglikelihood { context, continuation } => {
            json!({"arg_0": &**context, "arg_1": continuation})
        }
        Request::Generate { context, until, max_tokens } => json!({
            "arg_0": &**context,
            "arg_1": {
                "until": until,
                "max_gen_toks": max_tokens,
                "do_sample": false,
                "temperature": 0.0,
            },
        }),
    }
}

/// lm-eval writes numbers and truth values as Python's texts.
fn response(answer: &Answer) -> Value {
    match answer {
        Answer::Loglikelihood { logp, is_greedy } => {
            let is_greedy = if *is_greedy { "True" } else { "False" };
            json!([float_repr(*logp), is_greedy])
        }
        Answer::Text(text) => json!(text),
    }
}
