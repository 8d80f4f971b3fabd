//! The metrics of lm-eval for one document.

use serde_json::Value as Json;

use crate::eval::config::metrics::{Matching, MetricConfig};
use crate::eval::python::{lower, text_of, without_punctuation};
use crate::eval::request::Answer;
use crate::eval::row::{argmax, log_likelihoods};

/// A document of multiple choice with its answers.
pub struct Choices<'a> {
    pub choices: &'a [String],
    /// The right choice: its place, its text, or a list of places.
    pub gold: &'a Json,
    /// First one answer for each choice; then, for `acc_mutual_info`, one for each choice without a
    /// context.
    pub answers: &'a [Answer],
}

impl Choices<'_> {
    /// The values of the metrics.
    ///
    /// # Errors
    /// The number of answers is wrong.
    pub fn values(&self, metrics: &[MetricConfig]) -> Result<Vec<(String, f64)>, String> {
        let all = log_likelihoods(self.answers)?;
        let count = self.choices.len();
        if all.len() != count && all.len() != 2 * count {
            return Err(format!("{} answers were given for {count} choices", all.len()));
        }
        let (logps, alone) = all.split_at(count);
        let by_length = |length: fn(&str) -> usize| {
            let norm = |(logp, choice): (&f64, &String)| logp / length(choice) as f64;
            logps.iter().zip(self.choices).map(norm).collect::<Vec<_>>()
        };
        let value = |config: &MetricConfig| {
            let name = config.metric.name.as_str();
            let value = match name {
                "acc" => self.is_right(logps),
                "acc_norm" => self.is_right(&by_length(|text| text.chars().count())),
                "acc_bytes" => self.is_right(&by_length(str::len)),
                "acc_mutual_info" => {
                    let gains: Vec<f64> = logps.iter().zip(alone).map(|(a, b)| a - b).collect();
                    self.is_right(&gains)
                }
                "exact_match" => f64::from(self.places().into_iter().any(|at| self.is_greedy(at))),
                "brier_score" => self.brier_score(logps)?,
                other => return Err(format!("no metric `{other}` of choices")),
            };
            Ok((name.to_owned(), value))
        };
        metrics.iter().map(value).collect()
    }

    fn is_right(&self, values: &[f64]) -> f64 {
        f64::from(self.places().contains(&argmax(values)))
    }

    fn is_greedy(&self, at: usize) -> bool {
        matches!(self.answers.get(at), Some(Answer::Loglikelihood { is_greedy: true, .. }))
    }

    /// The places of the right choices.
    fn places(&self) -> Vec<usize> {
        let place = |value: &Json| match value {
            Json::String(text) => self.choices.iter().position(|choice| choice == text),
            other => other.as_u64().and_then(|at| usize::try_from(at).ok()),
        };
        let places = match self.gold {
            Json::Array(items) => items.iter().filter_map(place).collect(),
            other => Vec::from_iter(place(other)),
        };
        places.into_iter().filter(|at| *at < self.choices.len()).collect()
    }

    /// The squared distance of the choices' probabilities from the right choice.
    fn brier_score(&self, logps: &[f64]) -> Result<f64, String> {
        let [gold] = self.places()[..] else {
            return Err("brier_score needs exactly one right choice".to_owned());
        };
        let most = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = logps.iter().map(|logp| (logp - most).exp()).collect();
        let total: f64 = shares.iter().sum();
        let distance = |(at, share): (usize, &f64)| {
            let distance = share / total - f64::from(at == gold);
            distance * distance
        };
        Ok(shares.iter().enumerate().map(distance).sum())
    }
}

/// `exact_match` of a text: 1 if it equals the right one, or one of several.
pub fn exact_match(matching: &Matching, text: &str, gold: &Json) -> f64 {
    let text = matching.simplified(text);
    let is_match = |gold: &Json| matching.simplified(&text_of(gold)) == text;
    f64::from(match gold {
        Json::Array(golds) => golds.iter().any(is_match),
        gold => is_match(gold),
    })
}

impl Matching {
    fn simplified(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for pattern in &self.regexes_to_ignore {
            text = pattern.removed_from(&text);
        }
        if self.ignore_case {
            text = lower(&text);
        }
        if self.ignore_punctuation {
            text = without_punctuation(&text);
        }
        if self.ignore_numbers {
            text.retain(|character| !character.is_ascii_digit());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answers(logps: &[f64]) -> Vec<Answer> {
        let answer = |logp: &f64| Answer::Loglikelihood { logp: *logp, is_greedy: *logp > -1.0 };
        logps.iter().map(answer).collect()
    }

    fn values(choices: &[&str], gold: Json, logps: &[f64], metrics: &[&str]) -> Vec<f64> {
        let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
        let metrics: Vec<MetricConfig> =
            metrics.iter().map(|name| MetricConfig::of(name)).collect();
        let choices = Choices { choices: &choices, gold: &gold, answers: &answers(logps) };
        choices.values(&metrics).unwrap().into_iter().map(|(_, value)| value).collect()
    }

    #[test]
    fn norms_count_characters_and_bytes() {
        let metrics = ["acc", "acc_norm", "acc_bytes"];
        assert_eq!(values(&["a", "ééé"], json!(1), &[-1.5, -4.0], &metrics), [0.0, 1.0, 1.0]);
        assert_eq!(values(&["aaaa", "ééé"], json!(1), &[-4.1, -3.0], &metrics), [1.0, 1.0, 1.0]);
        assert_eq!(values(&["aaaa", "ééé"], json!(1), &[-3.2, -3.0], &metrics), [1.0, 0.0, 1.0]);
        assert_eq!(values(&["a", "b"], json!(7), &[-1.0, -2.0], &metrics), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_right_choice_may_be_a_text_or_one_of_several() {
        assert_eq!(
            values(&["a", "b"], json!("b"), &[-2.0, -0.5], &["acc", "exact_match"]),
            [1.0, 1.0]
        );
        assert_eq!(values(&["a", "b", "c"], json!([0, 2]), &[-3.0, -2.0, -1.5], &["acc"]), [1.0]);
        assert_eq!(
            values(&["a", "b"], json!(0), &[-2.0, -1.0, -3.0, -1.0], &["acc", "acc_mutual_info"]),
            [0.0, 1.0]
        );
    }

    #[test]
    fn the_brier_score_is_a_squared_distance() {
        let [score] =
            values(&["a", "b"], json!(0), &[0.75_f64.ln(), 0.25_f64.ln()], &["brier_score"])[..]
        else {
            unreachable!()
        };
        assert!((score - 0.125).abs() < 1e-15, "{score}");
    }

    #[test]
    fn texts_match_after_the_ignored_parts_are_removed() {
        let pattern =
            |source: &str| std::sync::Arc::new(crate::eval::python::Pattern::new(source).unwrap());
        let matching = Matching {
            ignore_case: true,
            regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"].map(pattern).to_vec(),
            ..Matching::default()
        };
        let gold = json!("He has 3.\n#### 1,800");
        assert_eq!(exact_match(&matching, "$1800.", &gold), 1.0);
        assert_eq!(exact_match(&matching, "180", &gold), 0.0);
        assert_eq!(exact_match(&Matching::default(), "b", &json!(["a", "b"])), 1.0);
    }
}
