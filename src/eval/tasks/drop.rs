//! DROP: questions about a passage that need counting, sorting and arithmetic (Dua et al., "DROP: A
//! Reading Comprehension Benchmark Requiring Discrete Reasoning Over Paragraphs", 2019).

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use crate::eval::python::without_punctuation;
use crate::eval::python::{Pattern, float, float_text, lower, text_of, trimmed};
use crate::eval::request::{Answer, Request};
use crate::eval::row::{Row, list, only_text, text, value};
use crate::eval::rules::{MAX_TOKENS, Rules, Shots};

static ARTICLES: LazyLock<Pattern> =
    LazyLock::new(|| Pattern::new(r"\b(a|an|the)\b").expect("the pattern is valid"));

/// The leaderboard's DROP. It stops at each full stop, also at those inside numbers.
pub fn leaderboard() -> Rules {
    Rules {
        name: "drop".to_owned(),
        alias: "drop".to_owned(),
        version: "1",
        data_path: "EleutherAI/drop",
        data_name: None,
        split: "validation",
        shots: Shots::Drawn("train"),
        num_fewshot: 3,
        description: None,
        prepare: |row| {
            let mut row = row.clone();
            process_docs(&mut row).map(|()| row)
        },
        question: |row| {
            let (passage, question) = (text(row, "passage")?, text(row, "question")?);
            Ok(format!("Passage: {passage}\nQuestion: {question}\nAnswer:"))
        },
        answer: |row| {
            let first = list(row, "answers")?.first().and_then(Value::as_array);
            let spans: Vec<String> = first.into_iter().flatten().map(text_of).collect();
            Ok(format!(" {}", spans.join(", ")))
        },
        requests,
        own_question: false,
        measure: em_and_f1,
        metrics: &["em", "f1"],
    }
}

fn requests(_row: &Row, context: Arc<str>) -> Result<Vec<Request>, String> {
    Ok(vec![Request::Generate { context, until: vec![".".to_owned()], max_tokens: MAX_TOKENS }])
}

/// Adds `id`, and `answers`: all different right answers, each a list of spans.
pub fn process_docs(row: &mut Row) -> Result<(), String> {
    let mut answers: Vec<Value> = vec![spans_of(value(row, "answer")?)?];
    let validated = value(row, "validated_answers")?;
    let fields = ["number", "date", "spans"];
    let numbers = validated["number"].as_array();
    for at in 0..numbers.ok_or("validated_answers has no list `number`")?.len() {
        let field = |name: &str| (name.to_owned(), validated[name][at].clone());
        let answer = spans_of(&Value::from_iter(fields.map(field)))?;
        if !answers.contains(&answer) {
            answers.push(answer);
        }
    }
    let id = value(row, "query_id")?.clone();
    row.insert("id".to_owned(), id);
    row.insert("answers".to_owned(), Value::Array(answers));
    Ok(())
}

/// A number, else spans, else a date.
fn spans_of(answer: &Value) -> Result<Value, String> {
    let number = answer["number"].as_str().ok_or("an answer has no text `number`")?;
    if !number.is_empty() {
        return Ok(json!([number]));
    }
    let spans = answer["spans"].as_array().ok_or("an answer has no list `spans`")?;
    if !spans.is_empty() {
        return Ok(Value::Array(spans.clone()));
    }
    let part = |name: &str| answer["date"][name].as_str().ok_or("an answer's date is incomplete");
    let date = [part("day")?, part("month")?, part("year")?].join(" ");
    Ok(json!([trimmed(&date)]))
}

/// `em` and `f1` against the right answer that gives most. Both definitions score alike.
pub fn em_and_f1(row: &Row, answers: &[Answer]) -> Result<Vec<(String, f64)>, String> {
    let given = Span::of(only_text(answers)?);
    let (mut best_em, mut best_f1) = (0.0_f64, 0.0_f64);
    for gold in list(row, "answers")? {
        let spans: Vec<String> = gold.as_array().into_iter().flatten().map(text_of).collect();
        if spans.first().is_none_or(|first| trimmed(first).is_empty()) {
            continue;
        }
        let gold: Vec<Span> = spans.iter().map(|span| Span::of(span)).collect();
        let is_exact = matches!(gold.as_slice(), [only] if only.text == given.text);
        best_em = best_em.max(f64::from(is_exact));
        best_f1 = best_f1.max(f1(&given, &gold));
    }
    Ok(vec![("em".to_owned(), best_em), ("f1".to_owned(), best_f1)])
}

/// A normalized span with its words.
struct Span {
    text: String,
    words: BTreeSet<String>,
}

impl Span {
    fn of(text: &str) -> Self {
        let text = normalized(text);
        let words = text.split_whitespace().map(str::to_owned).collect();
        Self { text, words }
    }

    fn numbers(&self) -> BTreeSet<&String> {
        self.words.iter().filter(|word| float(word).is_some()).collect()
    }
}

/// The best F1 of the one given span and a right span, over the number of right spans; rounded to
/// two digits.
fn f1(given: &Span, gold: &[Span]) -> f64 {
    let best = gold.iter().map(|span| word_f1(given, span)).fold(0.0, f64::max);
    (best / gold.len() as f64 * 100.0).round_ties_even() / 100.0
}

/// The F1 of two sets of words; 0 if the right span has numbers and none of them is given.
fn word_f1(given: &Span, gold: &Span) -> f64 {
    let (gold_numbers, given_numbers) = (gold.numbers(), given.numbers());
    if !gold_numbers.is_empty() && gold_numbers.is_disjoint(&given_numbers) {
        return 0.0;
    }
    let common = gold.words.intersection(&given.words).count() as f64;
    let share = |words: &BTreeSet<String>| match words.len() {
        0 => 1.0,
        count => common / count as f64,
    };
    let (precision, recall) = (share(&given.words), share(&gold.words));
    match precision == 0.0 && recall == 0.0 {
        true => 0.0,
        false => (2.0 * precision * recall) / (precision + recall),
    }
}

/// Lower case, without punctuation and articles; numbers in one form.
fn normalized(text: &str) -> String {
    let word = |word: &str| {
        let word = lower(word);
        let word = if float(&word).is_some() { word } else { without_punctuation(&word) };
        let word = float(&word).map_or(word, float_text);
        let word = ARTICLES.replace_with(&word, usize::MAX, |_| " ".to_owned());
        word.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let words: Vec<String> = text.split([' ', '-']).map(word).collect();
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of lm-eval's `process_results`.
    #[test]
    fn scores_are_those_of_lm_eval() {
        for (gold, given, em, f1) in [
            (json!([["3"]]), " 3", 1.0, 1.0),
            (json!([["3"]]), "3.0 yards", 0.0, 0.67),
            (json!([["3"]]), "4 yards", 0.0, 0.0),
            (json!([["the Bears"]]), "Bears!", 1.0, 1.0),
            (json!([["red", "blue dog"]]), "a blue dog", 0.0, 0.5),
            (json!([["x"], ["two-three words"]]), "two three words here", 0.0, 0.86),
            (json!([[""]]), "", 0.0, 0.0),
            (json!([["1,577"]]), "1577.0", 1.0, 1.0),
        ] {
            let row = Row::from_iter([("answers".to_owned(), gold.clone())]);
            let values = em_and_f1(&row, &[Answer::Text(given.to_owned())]).unwrap();
            assert_eq!((values[0].1, values[1].1), (em, f1), "{gold} {given}");
        }
    }
}
