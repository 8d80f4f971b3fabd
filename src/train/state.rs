//! `trainer_state.json`, byte for byte as transformers 5 writes it (sorted keys, two spaces,
//! Python's number forms), so that tools for Hugging Face's runs read ours too.

pub mod json;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::event::LogRow;
use crate::files::replace::replace_file;

/// An interval in transformers' form: whole steps, or (in records of other programs) a share of the
/// run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    Whole(u64),
    Real(f64),
}

impl Interval {
    fn to_value(self) -> Value {
        match self {
            Interval::Whole(steps) => Value::from(steps),
            Interval::Real(number) => json::float(number),
        }
    }
}

/// The next actions of the loop when the state was written. transformers keeps them under
/// `stateful_callbacks`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    pub should_epoch_stop: bool,
    pub should_evaluate: bool,
    pub should_log: bool,
    pub should_save: bool,
    pub should_training_stop: bool,
}

/// The training state in a checkpoint: the step of the run and its log.
///
/// As in transformers, `log_history` is written with the keys of each row sorted. So the values of
/// a row that was read back are in alphabetical order; no code may depend on their order.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    pub best_global_step: Option<u64>,
    pub best_metric: Option<f64>,
    pub best_model_checkpoint: Option<String>,
    pub epoch: f64,
    pub eval_steps: Interval,
    pub global_step: u64,
    pub is_hyper_param_search: bool,
    pub is_local_process_zero: bool,
    pub is_world_process_zero: bool,
    pub log_history: Vec<LogRow>,
    pub logging_steps: Interval,
    pub max_steps: u64,
    pub num_input_tokens_seen: u64,
    pub num_train_epochs: u64,
    pub save_steps: Interval,
    pub stateful_callbacks: Map<String, Value>,
    pub total_flos: f64,
    pub train_batch_size: Option<u64>,
    pub trial_name: Option<String>,
    pub trial_params: Option<Value>,
}

impl Default for TrainerState {
    /// transformers' state before a run.
    fn default() -> Self {
        TrainerState {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: Interval::Whole(500),
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: Interval::Whole(500),
            max_steps: 0,
            num_input_tokens_seen: 0,
            num_train_epochs: 0,
            save_steps: Interval::Whole(500),
            stateful_callbacks: Map::new(),
            total_flos: 0.0,
            train_batch_size: None,
            trial_name: None,
            trial_params: None,
        }
    }
}

/// Why a `trainer_state.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not valid JSON: {source}; use an earlier checkpoint", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: {field} should be {wanted}, found {found}; use an earlier checkpoint", path.display())]
    Field { path: PathBuf, field: String, wanted: &'static str, found: String },
}

/// A field with a wrong value, without the file's name.
struct BadField {
    field: String,
    wanted: &'static str,
    found: String,
}

impl TrainerState {
    /// Takes length, intervals and batch size of the run from `planned`. As in transformers, these
    /// are the settings of the newest start, not those of the checkpoint.
    pub fn follow(&mut self, planned: &Self) {
        self.eval_steps = planned.eval_steps;
        self.logging_steps = planned.logging_steps;
        self.save_steps = planned.save_steps;
        self.max_steps = planned.max_steps;
        self.num_train_epochs = planned.num_train_epochs;
        self.train_batch_size = planned.train_batch_size;
    }

    /// Reads a `trainer_state.json`.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON, or a field has the wrong type (the error names the
    /// field).
    pub fn read(path: &Path) -> Result<Self, StateError> {
        Self::read_changed(path, |_| ())
    }

    /// [`read`](Self::read) for a file that another program may have written. In `log_history`,
    /// values that are not numbers and rows without a step are ignored.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), except for rows of `log_history`.
    pub fn read_foreign(path: &Path) -> Result<Self, StateError> {
        Self::read_changed(path, keep_numbers)
    }

    fn read_changed(path: &Path, change: impl FnOnce(&mut Value)) -> Result<Self, StateError> {
        let own = || path.to_path_buf();
        let text = std::fs::read_to_string(path)
            .map_err(|source| StateError::Read { path: own(), source })?;
        let mut value =
            json::parse(&text).map_err(|source| StateError::Json { path: own(), source })?;
        change(&mut value);
        Self::from_value(&value).map_err(|BadField { field, wanted, found }| StateError::Field {
            path: own(),
            field,
            wanted,
            found,
        })
    }

    /// Replaces the file as a whole, so that a reader sees the old state or the new one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, self.to_text().as_bytes())
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        json::to_text(&self.to_value(), 2) + "\n"
    }

    /// Sets the next actions of the loop, in the form of transformers' `TrainerControl`.
    pub fn set_control(&mut self, control: Control) {
        let flags = [
            ("should_epoch_stop", control.should_epoch_stop),
            ("should_evaluate", control.should_evaluate),
            ("should_log", control.should_log),
            ("should_save", control.should_save),
            ("should_training_stop", control.should_training_stop),
        ];
        let args: Map<String, Value> =
            flags.into_iter().map(|(name, set)| (name.into(), set.into())).collect();
        let mut entry = Map::new();
        entry.insert("args".into(), args.into());
        entry.insert("attributes".into(), Map::new().into());
        self.stateful_callbacks.insert("TrainerControl".into(), entry.into());
    }

    fn to_value(&self) -> Value {
        let optional = |number: Option<u64>| number.map_or(Value::Null, Value::from);
        let text = |text: &Option<String>| text.as_deref().map_or(Value::Null, Value::from);
        let fields = [
            ("best_global_step", optional(self.best_global_step)),
            ("best_metric", self.best_metric.map_or(Value::Null, json::float)),
            ("best_model_checkpoint", text(&self.best_model_checkpoint)),
            ("epoch", json::float(self.epoch)),
            ("eval_steps", self.eval_steps.to_value()),
            ("global_step", self.global_step.into()),
            ("is_hyper_param_search", self.is_hyper_param_search.into()),
            ("is_local_process_zero", self.is_local_process_zero.into()),
            ("is_world_process_zero", self.is_world_process_zero.into()),
            ("log_history", self.log_history.iter().map(row_to_value).collect()),
            ("logging_steps", self.logging_steps.to_value()),
            ("max_steps", self.max_steps.into()),
            ("num_input_tokens_seen", self.num_input_tokens_seen.into()),
            ("num_train_epochs", self.num_train_epochs.into()),
            ("save_steps", self.save_steps.to_value()),
            ("stateful_callbacks", self.stateful_callbacks.clone().into()),
            ("total_flos", json::float(self.total_flos)),
            ("train_batch_size", optional(self.train_batch_size)),
            ("trial_name", text(&self.trial_name)),
            ("trial_params", self.trial_params.clone().unwrap_or(Value::Null)),
        ];
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Missing fields get transformers' defaults (older versions wrote fewer fields). Unknown
    /// fields are ignored.
    fn from_value(value: &Value) -> Result<Self, BadField> {
        let Value::Object(fields) = value else { return Err(bad("the file", "an object", value)) };
        let mut state = TrainerState::default();
        for (name, value) in fields {
            match name.as_str() {
                "best_global_step" => state.best_global_step = optional(name, value, whole)?,
                "best_metric" => state.best_metric = optional(name, value, real)?,
                "best_model_checkpoint" => {
                    state.best_model_checkpoint = optional(name, value, text)?
                }
                "epoch" => state.epoch = real(name, value)?,
                "eval_steps" => state.eval_steps = interval(name, value)?,
                "global_step" => state.global_step = whole(name, value)?,
                "is_hyper_param_search" => state.is_hyper_param_search = flag(name, value)?,
                "is_local_process_zero" => state.is_local_process_zero = flag(name, value)?,
                "is_world_process_zero" => state.is_world_process_zero = flag(name, value)?,
                "log_history" => state.log_history = history(value)?,
                "logging_steps" => state.logging_steps = interval(name, value)?,
                "max_steps" => state.max_steps = whole(name, value)?,
                "num_input_tokens_seen" => state.num_input_tokens_seen = whole(name, value)?,
                "num_train_epochs" => state.num_train_epochs = whole(name, value)?,
                "save_steps" => state.save_steps = interval(name, value)?,
                "stateful_callbacks" => state.stateful_callbacks = object(name, value)?.clone(),
                "total_flos" => state.total_flos = real(name, value)?,
                "train_batch_size" => state.train_batch_size = optional(name, value, whole)?,
                "trial_name" => state.trial_name = optional(name, value, text)?,
                "trial_params" => state.trial_params = (!value.is_null()).then(|| value.clone()),
                _ => {}
            }
        }
        Ok(state)
    }
}

fn row_to_value(row: &LogRow) -> Value {
    let mut fields: Map<String, Value> =
        row.values.iter().map(|(name, value)| (name.clone(), json::float(*value))).collect();
    fields.insert("epoch".into(), json::float(row.epoch));
    fields.insert("step".into(), row.step.into());
    fields.into()
}

/// Removes values that are not numbers from `log_history`, and rows without a step.
fn keep_numbers(state: &mut Value) {
    let Some(Value::Array(rows)) = state.get_mut("log_history") else { return };
    rows.retain_mut(|row| {
        let Value::Object(fields) = row else { return false };
        fields.retain(|_, value| json::as_float(value).is_some());
        fields.get("step").is_some_and(Value::is_u64)
    });
}

fn history(value: &Value) -> Result<Vec<LogRow>, BadField> {
    let Value::Array(rows) = value else { return Err(bad("log_history", "a list", value)) };
    rows.iter().enumerate().map(|(index, row)| history_row(index, row)).collect()
}

fn history_row(index: usize, value: &Value) -> Result<LogRow, BadField> {
    let place = format!("log_history[{index}]");
    let mut row = LogRow { step: 0, epoch: 0.0, values: Vec::new() };
    for (name, value) in object(&place, value)? {
        let field = format!("{place}.{name}");
        match name.as_str() {
            "step" => row.step = whole(&field, value)?,
            "epoch" => row.epoch = real(&field, value)?,
            _ => row.values.push((name.clone(), real(&field, value)?)),
        }
    }
    Ok(row)
}

fn bad(field: &str, wanted: &'static str, found: &Value) -> BadField {
    let mut found = json::to_text(found, 0).replace('\n', "");
    if let Some((cut, _)) = found.char_indices().nth(60) {
        found.truncate(cut);
        found.push('…');
    }
    BadField { field: field.to_owned(), wanted, found }
}

fn optional<T>(
    field: &str,
    value: &Value,
    read: fn(&str, &Value) -> Result<T, BadField>,
) -> Result<Option<T>, BadField> {
    if value.is_null() { Ok(None) } else { read(field, value).map(Some) }
}

fn whole(field: &str, value: &Value) -> Result<u64, BadField> {
    value.as_u64().ok_or_else(|| bad(field, "a whole number", value))
}

fn real(field: &str, value: &Value) -> Result<f64, BadField> {
    json::as_float(value).ok_or_else(|| bad(field, "a number", value))
}

fn flag(field: &str, value: &Value) -> Result<bool, BadField> {
    value.as_bool().ok_or_else(|| bad(field, "true or false", value))
}

fn text(field: &str, value: &Value) -> Result<String, BadField> {
    value.as_str().map(str::to_owned).ok_or_else(|| bad(field, "a text", value))
}

fn object<'a>(field: &str, value: &'a Value) -> Result<&'a Map<String, Value>, BadField> {
    value.as_object().ok_or_else(|| bad(field, "an object", value))
}

fn interval(field: &str, value: &Value) -> Result<Interval, BadField> {
    match value.as_u64() {
        Some(steps) => Ok(Interval::Whole(steps)),
        None => real(field, value).map(Interval::Real),
    }
}

#[cfg(test)]
mod tests;
