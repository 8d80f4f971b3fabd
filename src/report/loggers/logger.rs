//! The interface of a logger, and what loggers have in common: the run as they know it, and the
//! names and forms of metrics.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::identity::RunIdentity;
use crate::train::event::LogRow;

/// Values of the whole run. As in transformers, they belong to the run and not to a step.
pub const OF_THE_RUN: [&str; 5] = [
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
];

/// A receiver of metrics. Times are seconds since 1970.
pub trait Logger: Send {
    /// Its word in `report_to`.
    fn name(&self) -> &'static str;

    /// Logs a row. It is on disk, or with the operating system, when this returns.
    ///
    /// # Errors
    /// The store cannot be written.
    fn log(&mut self, row: &LogRow, time: f64) -> io::Result<()>;

    /// A checkpoint or the final model was written to `path`.
    ///
    /// # Errors
    /// The store cannot be written.
    fn saved(&mut self, _path: &Path, _time: f64) -> io::Result<()> {
        Ok(())
    }

    /// The run ends: all steps are done if `is_finished`, else it stopped before.
    ///
    /// # Errors
    /// The store cannot be written.
    fn end(&mut self, is_finished: bool, time: f64) -> io::Result<()>;

    /// The command that shows the run, or where it is.
    fn viewer(&self) -> String;
}

/// A run as loggers know it.
#[derive(Debug, Clone)]
pub struct LoggedRun {
    pub identity: RunIdentity,
    /// When this process began to log, in seconds since 1970.
    pub now: f64,
    /// The run's name for people.
    pub name: String,
    /// The project that the recipe names, if any.
    pub project: Option<String>,
    pub output_dir: PathBuf,
    /// The recipe's `logging_dir`.
    pub logging_dir: Option<PathBuf>,
    /// The keys of the recipe, with defaults.
    pub config: Vec<(String, Value)>,
}

impl LoggedRun {
    /// The project, else the value of the environment variable, else `default`.
    pub(super) fn project_or(&self, variable: &str, default: &str) -> String {
        let set = std::env::var(variable).ok().filter(|name| !name.is_empty());
        self.project.clone().or(set).unwrap_or_else(|| default.to_owned())
    }

    /// `logging_dir`, else the folder in the environment variable.
    pub(super) fn folder(&self, variable: &str) -> Option<PathBuf> {
        let set = || std::env::var_os(variable).filter(|name| !name.is_empty()).map(PathBuf::from);
        self.logging_dir.clone().or_else(set)
    }
}

/// The id that is part of the names of a run's files, because several runs may log into one folder.
pub fn run_id(output_dir: &Path) -> String {
    let place = fs::canonicalize(output_dir).unwrap_or_else(|_| output_dir.to_path_buf());
    blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned()
}

/// transformers' `rewrite_logs`: `eval_x` → `eval/x`, `test_x` → `test/x`, any other `x` →
/// `train/x`.
pub fn tag(name: &str) -> String {
    for split in ["eval", "test"] {
        if let Some(rest) = name.strip_prefix(split).and_then(|rest| rest.strip_prefix('_')) {
            return format!("{split}/{rest}");
        }
    }
    format!("train/{name}")
}

/// The text of a recipe's value as JSON: a number, true, false, null, a list, or a text.
pub fn config_value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null | Value::Array(_))) => value,
        _ => Value::from(text),
    }
}

/// The time in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A metric as JSON. NaN and infinities, which JSON does not have, are texts with Python's names,
/// as wandb and trackio write them.
pub(super) fn json_number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(
        || {
            Value::from(match value {
                value if value.is_nan() => "NaN",
                value if value > 0.0 => "Infinity",
                _ => "-Infinity",
            })
        },
        Value::Number,
    )
}

/// The metrics of a row with the prefixes of transformers (`train/…`, `eval/…`), then
/// `train/epoch` and `train/global_step`, as its callbacks for wandb and trackio log them. Values
/// of the whole run are left out.
pub(super) fn step_metrics(row: &LogRow) -> Vec<(String, Value)> {
    let of_step = row.values.iter().filter(|(name, _)| !OF_THE_RUN.contains(&name.as_str()));
    let mut metrics: Vec<(String, Value)> =
        of_step.map(|(name, value)| (tag(name), json_number(*value))).collect();
    metrics.push(("train/epoch".to_owned(), json_number(row.epoch)));
    metrics.push(("train/global_step".to_owned(), Value::from(row.step)));
    metrics
}

/// The times of `history` in a store that has rows with these `(step, time)`, in the order of
/// logging. Rows that the store does not have get `now`.
pub(super) fn times_of(history: &[LogRow], stored: &[(u64, f64)], now: f64) -> Vec<f64> {
    let time = |(index, row): (usize, &LogRow)| match stored.get(index) {
        Some((step, time)) if *step == row.step => *time,
        _ => now,
    };
    history.iter().enumerate().map(time).collect()
}

/// An error with the logger and the file in its text.
pub(super) fn named(logger: &str, what: &str, path: &Path, error: &io::Error) -> io::Error {
    let text = format!("{logger}: cannot {what} {}: {error}", path.display());
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A run in `output_dir` whose identity is fixed.
    pub fn run_in(output_dir: &Path) -> LoggedRun {
        LoggedRun {
            identity: RunIdentity {
                id: "0123456789abcdef0123456789abcdef".to_owned(),
                started: 1_700_000_000.25,
                is_finished: false,
            },
            now: 1_700_000_001.5,
            name: "my run".to_owned(),
            project: Some("a project".to_owned()),
            output_dir: output_dir.to_path_buf(),
            logging_dir: Some(output_dir.join("logs")),
            config: vec![
                ("beta".to_owned(), json!(0.1)),
                ("dataset_mixer.owner/set: one".to_owned(), json!("a: \"b\"")),
            ],
        }
    }

    pub fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        LogRow { step, epoch: step as f64 / 4.0, values }
    }

    #[test]
    fn tags_are_those_of_transformers() {
        let cases = [
            ("loss", "train/loss"),
            ("rewards/chosen", "train/rewards/chosen"),
            ("eval_loss", "eval/loss"),
            ("eval_rewards/chosen", "eval/rewards/chosen"),
            ("test_loss", "test/loss"),
            ("train_runtime", "train/train_runtime"),
            ("evaluations", "train/evaluations"),
        ];
        for (name, expected) in cases {
            assert_eq!(tag(name), expected);
        }
    }

    #[test]
    fn recipe_values_have_their_types() {
        let shown = ["0.1", "true", "null", "[1, 2]", "cosine", "{a: 1}", "\"quoted\""];
        let expected = [
            json!(0.1),
            json!(true),
            json!(null),
            json!([1, 2]),
            json!("cosine"),
            json!("{a: 1}"),
            json!("\"quoted\""),
        ];
        assert_eq!(shown.map(config_value), expected);
    }

    #[test]
    fn rows_have_the_names_of_transformers_callbacks() {
        let last = row(4, &[("train_loss", 0.5), ("eval_rewards/chosen", f64::NAN)]);
        let expected = [
            ("eval/rewards/chosen".to_owned(), json!("NaN")),
            ("train/epoch".to_owned(), json!(1.0)),
            ("train/global_step".to_owned(), json!(4)),
        ];
        assert_eq!(step_metrics(&last), expected);
        assert_eq!(json_number(f64::NEG_INFINITY), "-Infinity");
    }

    #[test]
    fn times_belong_to_the_rows_of_the_store() {
        let history = [row(1, &[]), row(2, &[]), row(3, &[])];
        assert_eq!(times_of(&history, &[(1, 10.0), (5, 20.0)], 9.0), [10.0, 9.0, 9.0]);
    }
}
