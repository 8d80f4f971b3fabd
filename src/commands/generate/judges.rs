//! Answers in the formats that AlpacaEval and MT-Bench judge.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::infer::prompts::{PromptRow, Question};

/// The answer to `row` as a judge reads it: FastChat's format for turns, else the row itself with
/// `output` and `generator`.
pub fn answer_row(row: &PromptRow, turns: &[String], name: &str) -> Value {
    match &row.question {
        Question::Turns(_) => {
            let question = row.fields.get("question_id").cloned().unwrap_or(Value::Null);
            let id = blake3::hash(format!("{name} {question} {turns:?}").as_bytes());
            let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            json!({
                "question_id": question,
                "answer_id": id.to_hex()[..22],
                "model_id": name,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": seconds.map_or(0.0, |seconds| seconds.as_secs_f64()),
            })
        }
        Question::Chat(_) => {
            let mut fields: Map<String, Value> = row.fields.clone();
            fields.insert("output".into(), turns.concat().into());
            fields.insert("generator".into(), name.into());
            Value::Object(fields)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::infer::prompts;

    /// The only row of a file.
    pub fn row(value: Value) -> PromptRow {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, value.to_string()).unwrap();
        prompts::read(&path).unwrap().remove(0)
    }

    #[test]
    fn answers_have_the_formats_of_the_judges() {
        let alpaca = row(json!({"instruction": "a", "dataset": "koala"}));
        assert_eq!(
            answer_row(&alpaca, &["b".into()], "m"),
            json!({"instruction": "a", "dataset": "koala", "output": "b", "generator": "m"})
        );
        let bench = row(json!({"question_id": 81, "category": "stem", "turns": ["a", "b"]}));
        let answer = answer_row(&bench, &["c".into(), "d".into()], "m");
        assert_eq!(answer["question_id"], 81);
        assert_eq!(answer["model_id"], "m");
        assert_eq!(answer["choices"], json!([{"index": 0, "turns": ["c", "d"]}]));
        assert_eq!(answer["answer_id"].as_str().unwrap().len(), 22);
        assert!(answer["tstamp"].as_f64().unwrap() > 1e9);
    }
}
