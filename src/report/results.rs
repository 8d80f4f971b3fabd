//! `train_results.json`, `eval_results.json` and `all_results.json`, as transformers'
//! `save_metrics` writes them.

use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::files::json_object::{ObjectError, read_object};
use crate::files::replace::replace_file;
use crate::train::event::LogRow;
use crate::train::state::json;

/// A measurement or a count; counts are written without a decimal point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measure {
    Real(f64),
    Count(u64),
}

impl From<f64> for Measure {
    fn from(number: f64) -> Self {
        Measure::Real(number)
    }
}

impl From<u64> for Measure {
    fn from(count: u64) -> Self {
        Measure::Count(count)
    }
}

/// The metrics of a row as transformers passes them to `save_metrics`: its values and its epoch.
pub fn row_metrics(row: &LogRow) -> Vec<(String, Measure)> {
    let values = row.values.iter().map(|(name, value)| (name.clone(), Measure::Real(*value)));
    values.chain([("epoch".to_owned(), Measure::Real(row.epoch))]).collect()
}

/// Writes `{split}_results.json` into `output_dir` and merges the same metrics into
/// `all_results.json`. Keys are sorted and indented by four spaces.
///
/// # Errors
/// A file cannot be written, or the existing `all_results.json` is not a JSON object.
pub fn save_metrics(
    output_dir: &Path,
    split: &str,
    metrics: &[(String, Measure)],
) -> io::Result<()> {
    let metrics: Map<String, Value> =
        metrics.iter().map(|(name, measure)| (name.clone(), value(*measure))).collect();
    let all_path = output_dir.join("all_results.json");
    let mut all = metrics_so_far(&all_path)?;
    all.extend(metrics.clone());
    write(&output_dir.join(format!("{split}_results.json")), metrics)?;
    write(&all_path, all)
}

fn value(measure: Measure) -> Value {
    match measure {
        Measure::Real(number) => json::float(number),
        Measure::Count(count) => Value::from(count),
    }
}

/// The metrics in `all_results.json`; empty if the file does not exist.
fn metrics_so_far(path: &Path) -> io::Result<Map<String, Value>> {
    match read_object(path, json::parse) {
        Ok(fields) => Ok(fields.unwrap_or_default()),
        Err(ObjectError::Read { source, .. }) => {
            let message = format!("cannot read {}: {source}", path.display());
            Err(io::Error::new(source.kind(), message))
        }
        Err(error) => {
            let message = format!("{error}; move it away, a new one will be written");
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }
}

fn write(path: &Path, fields: Map<String, Value>) -> io::Result<()> {
    replace_file(path, json::to_text(&Value::Object(fields), 4).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_of_transformers() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let train = LogRow {
            step: 4,
            epoch: 2.0,
            values: vec![("train_loss".into(), 0.5), ("total_flos".into(), 0.0)],
        };
        save_metrics(folder.path(), "train", &row_metrics(&train)).unwrap();
        let mut eval = row_metrics(&LogRow {
            step: 4,
            epoch: 3.0,
            values: vec![("eval_rewards/chosen".into(), f64::NAN)],
        });
        eval.push(("eval_samples".into(), 2000.into()));
        save_metrics(folder.path(), "eval", &eval).unwrap();

        assert_eq!(
            read("train_results.json"),
            "{\n    \"epoch\": 2.0,\n    \"total_flos\": 0.0,\n    \"train_loss\": 0.5\n}"
        );
        assert_eq!(
            read("eval_results.json"),
            "{\n    \"epoch\": 3.0,\n    \"eval_rewards/chosen\": NaN,\n    \"eval_samples\": 2000\n}"
        );
        assert_eq!(
            read("all_results.json"),
            "{\n    \"epoch\": 3.0,\n    \"eval_rewards/chosen\": NaN,\n    \"eval_samples\": 2000,\n    \
             \"total_flos\": 0.0,\n    \"train_loss\": 0.5\n}"
        );
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all_results.json"), "{").unwrap();
        let error = save_metrics(folder.path(), "eval", &[]).unwrap_err().to_string();
        assert!(error.contains("all_results.json is not a JSON object"), "{error}");
    }
}
