//! Reads the record of a run: of this program or of TRL, finished or in progress.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::event_files::{self, Logged, Logs};
use super::loggers::logger::run_id;
use super::run_facts::{Facts, RunFacts};
use super::scores::{self, TaskScore};
use crate::files::json_object::read_object;
use crate::train::event::LogRow;
use crate::train::state::{StateError, TrainerState};

const STATE: &str = "trainer_state.json";
/// The training speed in a row of [`RunRecord::rows`], evaluations excluded.
pub const TOKENS_PER_SECOND: &str = "tokens_per_second";

/// Rewards, and the names of their log-ratios. A sweep over β also shows log-ratios, because
/// rewards of different β cannot be compared.
pub const LOG_RATIOS: [(&str, &str); 3] = [
    ("rewards/margins", "log_ratios/margins"),
    ("rewards/chosen", "log_ratios/chosen"),
    ("rewards/rejected", "log_ratios/rejected"),
];

/// The record of a run.
#[derive(Debug, Clone, Default)]
pub struct RunRecord {
    /// The name in reports.
    pub name: String,
    /// Someone else's run; only its numbers are available.
    pub is_published: bool,
    pub folder: PathBuf,
    /// Optimizer steps done.
    pub step: u64,
    /// Planned steps; 0 if unknown.
    pub max_steps: u64,
    /// The rows of `log_history`. Training rows also have [`TOKENS_PER_SECOND`] if the event files
    /// contain times.
    pub rows: Vec<LogRow>,
    pub facts: Option<RunFacts>,
    /// From the model card, for runs without `plan.json`.
    pub hyperparameters: Facts,
    pub versions: Facts,
    /// Benchmark scores, from the results of its evaluation.
    pub scores: Vec<TaskScore>,
    /// The setting in a sweep; `None` for a single run.
    pub setting: Option<Setting>,
}

/// The setting of a run in a sweep. Runs that only differ in their seeds share a setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setting {
    /// The index among the sweep's settings; it determines the color.
    pub index: usize,
    /// For example "ipo · beta 0.1".
    pub name: String,
    /// The index among the runs of this setting; later ones are paler.
    pub repeat: usize,
    /// The loss as in the recipe ("ipo"); empty if the recipe's stage has only one.
    pub loss: String,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(
        "{} holds no run: no trainer_state.json, no checkpoint-N/trainer_state.json, no event \
         files in {}",
        folder.display(),
        events.display()
    )]
    NoRun { folder: PathBuf, events: PathBuf },
    #[error("{} is neither a folder nor a trainer_state.json", .0.display())]
    NotThere(PathBuf),
    #[error(transparent)]
    State(#[from] StateError),
}

impl RunRecord {
    /// Reads the folder of a run, one of its checkpoints, or a single `trainer_state.json`.
    ///
    /// # Errors
    /// No record exists, or it is damaged.
    pub fn read(path: &Path, name: String) -> Result<Self, RecordError> {
        if path.is_file() {
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let state = TrainerState::read_foreign(path)?;
            return Ok(Self::from_state(state, name, folder, &Logs::default()));
        }
        if !path.is_dir() {
            return Err(RecordError::NotThere(path.to_path_buf()));
        }
        let named = RunFacts::read(path).and_then(|facts| facts.logging_dir(path));
        // A `logging_dir` may also contain files of other runs.
        let run = named.is_some().then(|| run_id(path));
        let events = named.unwrap_or_else(|| path.join("runs"));
        let logs = event_files::read_folder(&events, run.as_deref());
        let folder = path.to_path_buf();
        let state = match newest_state(path) {
            Some(file) => TrainerState::read_foreign(&file)?,
            None if logs.scalars.is_empty() => return Err(RecordError::NoRun { folder, events }),
            None => TrainerState::default(),
        };
        Ok(Self::from_state(state, name, folder, &logs))
    }

    fn from_state(state: TrainerState, name: String, folder: PathBuf, logs: &Logs) -> Self {
        let facts = RunFacts::read(&folder);
        let card = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
        let planned = facts.as_ref().and_then(|facts| {
            let (_, steps) = facts.facts.iter().find(|(name, _)| name == "steps")?;
            steps.parse().ok()
        });
        let mut run = RunRecord {
            name,
            is_published: false,
            step: last_step(&state.log_history).unwrap_or(0).max(state.global_step),
            max_steps: if state.max_steps > 0 { state.max_steps } else { planned.unwrap_or(0) },
            rows: state.log_history,
            hyperparameters: bullets(&card, "### Training hyperparameters"),
            versions: match &facts {
                Some(facts) => facts.versions.clone(),
                None => bullets(&card, "### Framework versions"),
            },
            facts,
            scores: scores::of_run(&folder),
            folder,
            setting: None,
        };
        // If event files have more rows than the record of a finished run, they belong to another
        // run.
        if !run.is_finished() {
            run.rows.extend(later_rows(&run.rows, run.max_steps, &logs.scalars));
            run.step = run.step.max(last_step(&run.rows).unwrap_or(0));
        }
        add_speeds(&mut run.rows, logs);
        run
    }

    /// Adds [`LOG_RATIOS`] to the rows: rewards divided by `beta`.
    pub fn add_log_ratios(&mut self, beta: f64) {
        for row in &mut self.rows {
            let ratio = |(name, value): &(String, f64)| {
                let (split, reward) = match name.strip_prefix("eval_") {
                    Some(reward) => ("eval_", reward),
                    None => ("", name.as_str()),
                };
                let (_, ratio) = LOG_RATIOS.iter().find(|(of, _)| *of == reward)?;
                Some((format!("{split}{ratio}"), value / beta))
            };
            let ratios: Vec<_> = row.values.iter().filter_map(ratio).collect();
            row.values.extend(ratios);
        }
    }

    /// Whether all planned steps are done. A TRL run that left only checkpoints has no summary row.
    pub fn is_finished(&self) -> bool {
        let has_summary = self.rows.iter().any(|row| row.get("train_runtime").is_some());
        self.is_published || has_summary || (self.max_steps > 0 && self.step >= self.max_steps)
    }

    /// The share of the planned steps that `step` has reached, 0 to 1.
    pub fn share(&self, step: u64) -> f64 {
        step as f64 / self.max_steps.max(self.step).max(1) as f64
    }

    /// The last value with this name, and its step.
    pub fn last(&self, name: &str) -> Option<(u64, f64)> {
        self.rows.iter().rev().find_map(|row| Some((row.step, row.get(name)?)))
    }
}

fn last_step(rows: &[LogRow]) -> Option<u64> {
    rows.iter().map(|row| row.step).max()
}

/// The newest record: the final one, or that of the newest checkpoint if the run is in progress.
fn newest_state(folder: &Path) -> Option<PathBuf> {
    let of_ours = RunFacts::read(folder).is_some();
    let mark = read_object(&folder.join("favonius.json"), |text| serde_json::from_str(text));
    let mark = mark.ok().flatten().filter(|fields| !fields.is_empty());
    let finished = !of_ours || mark.is_some();
    // A finished run that is extended has later checkpoints.
    let finished_at = mark.and_then(|fields| fields.get("global_step")?.as_u64());
    let last = folder.join(STATE);
    let last = (finished && last.is_file()).then_some(last);
    let checkpoints = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let newest = checkpoints
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let step: u64 = name.strip_prefix("checkpoint-")?.parse().ok()?;
            let state = entry.path().join(STATE);
            state.is_file().then_some((step, state))
        })
        .max();
    let is_extended =
        matches!((&newest, finished_at), (Some((newest, _)), Some(last)) if *newest > last);
    let newest = newest.map(|(_, state)| state);
    if is_extended { newest } else { last.or(newest) }
}

/// The values in the event files after the last row of the record, up to the last planned step (0:
/// unknown).
fn later_rows(rows: &[LogRow], max_steps: u64, logged: &[Logged]) -> Vec<LogRow> {
    let known = last_step(rows);
    let is_later = |value: &&Logged| {
        let is_planned = max_steps == 0 || value.step <= max_steps;
        is_planned && known.is_none_or(|known| value.step > known)
    };
    let mut later: Vec<LogRow> = Vec::new();
    // The index of a row by its step and by whether it is an evaluation.
    let mut places: HashMap<(u64, bool), usize> = HashMap::new();
    let mut epochs = HashMap::new();
    for value in in_force(logged).into_iter().filter(is_later) {
        if value.name == "epoch" {
            epochs.insert(value.step, value.value);
            continue;
        }
        let is_eval = value.name.starts_with("eval_");
        let place = *places.entry((value.step, is_eval)).or_insert_with(|| {
            later.push(LogRow { step: value.step, epoch: 0.0, values: Vec::new() });
            later.len() - 1
        });
        later[place].values.push((value.name.clone(), value.value));
    }
    for row in &mut later {
        keep_last_values(&mut row.values);
        row.epoch = epochs.get(&row.step).copied().unwrap_or(0.0);
    }
    later.sort_by_key(|row| row.step);
    later
}

/// Keeps the last value of each name. A restarted run logs its steps again; the later value counts.
fn keep_last_values(values: &mut Vec<(String, f64)>) {
    let mut names = HashSet::new();
    let mut kept: Vec<(String, f64)> = std::mem::take(values)
        .into_iter()
        .rev()
        .filter(|(name, _)| names.insert(name.clone()))
        .collect();
    kept.reverse();
    *values = kept;
}

/// The values that no later start has superseded. A start supersedes all values of later steps that
/// were logged before its first training row, even those of another run in the same folder.
fn in_force(logged: &[Logged]) -> Vec<&Logged> {
    let mut first_after = u64::MAX;
    let mut kept: Vec<&Logged> = Vec::new();
    for value in logged.iter().rev() {
        if value.step > first_after {
            continue;
        }
        if value.name == "loss" {
            first_after = value.step;
        }
        kept.push(value);
    }
    kept.reverse();
    kept
}

/// Adds tokens per second between consecutive training rows, from the times in the event files.
/// Unknown if the run was restarted between the two rows.
fn add_speeds(rows: &mut [LogRow], logs: &Logs) {
    let times: HashMap<u64, f64> = logs
        .scalars
        .iter()
        .filter(|value| value.name == "loss")
        .map(|value| (value.step, value.wall_time))
        .collect();
    let mut before: Option<(f64, f64)> = None;
    let mut evaluating = 0.0;
    for row in rows {
        if let Some(seconds) = row.get("eval_runtime") {
            evaluating += seconds;
            continue;
        }
        let (Some(tokens), Some(time)) = (row.get("num_tokens"), times.get(&row.step)) else {
            continue;
        };
        if row.get("loss").is_none() || row.get(TOKENS_PER_SECOND).is_some() {
            continue;
        }
        if let Some((tokens_before, time_before)) = before {
            let seconds = time - time_before - evaluating;
            let is_unbroken = !logs.starts.iter().any(|start| (time_before..*time).contains(start));
            if is_unbroken && seconds > 0.0 && tokens > tokens_before {
                let speed = (tokens - tokens_before) / seconds;
                row.values.push((TOKENS_PER_SECOND.to_owned(), speed));
            }
        }
        before = Some((tokens, *time));
        evaluating = 0.0;
    }
}

/// The list under a heading of a model card: `- name: value`, or `- Name 1.2` for versions.
fn bullets(card: &str, heading: &str) -> Facts {
    let mut lines = card.lines().skip_while(|line| line.trim() != heading).skip(1);
    let list = lines.by_ref().skip_while(|line| !line.starts_with("- "));
    let list = list.take_while(|line| line.starts_with("- "));
    let facts = list.filter_map(|line| {
        let text = line.trim_start_matches("- ");
        let (name, value) = text.split_once(": ").or_else(|| text.split_once(' '))?;
        Some((name.to_owned(), value.trim().to_owned()))
    });
    facts.collect()
}

#[cfg(test)]
mod tests;
