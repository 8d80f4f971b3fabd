//! ARC: science questions of grade schools (Clark et al., "Think you have Solved Question
//! Answering?", 2018).

use serde_json::json;

use crate::eval::row::{Row, text, texts};
use crate::eval::rules::{self, Rules, Shots};

/// lm-eval's ARC-Challenge, which differs from ARC-Easy only in its data.
pub fn challenge() -> String {
    include_str!("arc_easy.yaml").replace("arc_easy", "arc_challenge").replace("Easy", "Challenge")
}

/// The leaderboard's ARC.
pub fn leaderboard(name: &str) -> Rules {
    let set = if name == "arc_easy" { "ARC-Easy" } else { "ARC-Challenge" };
    Rules {
        name: name.to_owned(),
        alias: name.to_owned(),
        version: "0",
        data_path: "allenai/ai2_arc",
        data_name: Some(set.to_owned()),
        split: "test",
        shots: Shots::Drawn("train"),
        num_fewshot: 25,
        description: None,
        prepare,
        question: rules::query,
        answer: rules::right_choice,
        requests: rules::choice_requests,
        own_question: false,
        measure: rules::choice_metrics,
        metrics: &["acc", "acc_norm"],
    }
}

fn prepare(row: &Row) -> Result<Row, String> {
    // Some rows number their answers instead of naming them by letters.
    let key = text(row, "answerKey")?;
    let gold = ["A1", "B2", "C3", "D4", "E5"].iter().position(|names| names.contains(key));
    let gold = gold.filter(|_| key.chars().count() == 1);
    let gold = gold.ok_or_else(|| format!("answerKey `{key}` is none of A to E and 1 to 5"))?;
    Ok(Row::from_iter([
        ("query".to_owned(), format!("Question: {}\nAnswer:", text(row, "question")?).into()),
        ("choices".to_owned(), json!(texts(row, "choices.text")?)),
        ("gold".to_owned(), gold.into()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_named_by_letters_or_numbers() {
        let row = |key: &str| {
            let row = json!({"question": "q", "choices": {"text": ["a", "b"]}, "answerKey": key});
            serde_json::from_value::<Row>(row).unwrap()
        };
        for (key, gold) in [("B", 1), ("2", 1), ("E", 4)] {
            assert_eq!(prepare(&row(key)).unwrap()["gold"], gold);
        }
        for key in ["", "F", "B2", "0"] {
            assert!(prepare(&row(key)).is_err(), "{key}");
        }
    }
}
