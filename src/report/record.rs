//! Reads the record of a run: of this program or of TRL, finished or in progress.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::run_facts::{Facts, RunFacts};
use super::scores::{self, TaskScore};
use super::tensorboard::{self, Logged, Logs};
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
        let run = named.is_some().then(|| tensorboard::run_id(path));
        let events = named.unwrap_or_else(|| path.join("runs"));
        let logs = tensorboard::read_folder(&events, run.as_deref());
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
mod tests {
    use std::fs;

    use super::*;
    use crate::report::tensorboard::TensorBoard;

    fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        LogRow { step, epoch: step as f64 / 4.0, values }
    }

    fn write_state(folder: &Path, rows: &[LogRow]) {
        fs::create_dir_all(folder).unwrap();
        let global_step = rows.last().unwrap().step;
        let log_history = rows.to_vec();
        let state = TrainerState { global_step, max_steps: 8, log_history, ..Default::default() };
        state.write(&folder.join(STATE)).unwrap();
    }

    fn read(folder: &Path) -> RunRecord {
        RunRecord::read(folder, "run".into()).unwrap()
    }

    #[test]
    fn a_finished_run_is_its_final_state() {
        let folder = tempfile::tempdir().unwrap();
        write_state(&folder.path().join("checkpoint-4"), &[row(4, &[("loss", 0.5)])]);
        write_state(folder.path(), &[row(8, &[("loss", 0.25)]), row(8, &[("train_runtime", 1.0)])]);
        let run = read(folder.path());
        assert_eq!((run.step, run.max_steps, run.last("loss")), (8, 8, Some((8, 0.25))));
        assert!(run.is_finished());
        let file = read(&folder.path().join("checkpoint-4").join(STATE));
        assert_eq!((file.step, file.is_finished()), (4, false));
        let last = folder.path().join("checkpoint-8");
        write_state(&last, &[row(8, &[("loss", 0.25)])]);
        assert!(read(&last).is_finished(), "all steps are done, with a summary or without");
    }

    #[test]
    fn a_run_in_progress_is_its_newest_checkpoint_and_what_was_logged_since() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<LogRow> =
            (1..=6).map(|step| row(step, &[("loss", 1.0 / step as f64)])).collect();
        let mut board = TensorBoard::open(&folder.path().join("runs"), None, &[]).unwrap();
        rows.iter().for_each(|row| board.log(row).unwrap());
        board.log(&row(6, &[("eval_loss", 0.125)])).unwrap();
        assert_eq!(read(folder.path()).rows.len(), 7, "event files alone");

        write_state(&folder.path().join("checkpoint-2"), &rows[..2]);
        write_state(&folder.path().join("checkpoint-10"), &rows[..4]);
        let run = read(folder.path());
        assert_eq!((run.step, run.max_steps, run.is_finished()), (6, 8, false));
        let steps: Vec<u64> = run.rows.iter().map(|row| row.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6, 6]);
        assert_eq!(run.last("eval_loss"), Some((6, 0.125)));
        assert_eq!(run.rows[4].epoch, 1.25);
    }

    /// Writes an event file as TRL does, in a sub-folder for its start, with these losses from step
    /// 1 on.
    fn write_events(folder: &Path, start: u64, losses: &[f64]) {
        let events = folder.join(format!("runs/start{start}"));
        let mut board = TensorBoard::open(&events, None, &[]).unwrap();
        for (index, loss) in losses.iter().enumerate() {
            board.log(&row(index as u64 + 1, &[("loss", *loss)])).unwrap();
        }
        fs::rename(board.path(), events.join(format!("events.out.tfevents.{start:010}.h.1.0")))
            .unwrap();
    }

    /// A longer run was trained into the same folder before.
    #[test]
    fn a_finished_run_has_no_rows_of_its_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        write_events(folder.path(), 1, &[9.0; 12]);
        write_events(folder.path(), 2, &[0.5; 6]);
        let rows = [row(6, &[("loss", 0.5)]), row(6, &[("train_runtime", 1.0)])];
        write_state(folder.path(), &rows);
        let run = read(folder.path());
        assert_eq!((run.step, run.rows.len(), run.last("loss")), (6, 2, Some((6, 0.5))));
        let rows: Vec<LogRow> = (1..=8).map(|step| row(step, &[("loss", 0.5)])).collect();
        write_state(folder.path(), &rows);
        assert_eq!(read(folder.path()).rows.len(), 8, "all planned steps are done");
    }

    #[test]
    fn a_run_in_progress_has_no_rows_of_its_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        write_events(folder.path(), 1, &[9.0; 12]);
        let rows: Vec<LogRow> = (1..=2).map(|step| row(step, &[("loss", 0.5)])).collect();
        write_state(&folder.path().join("checkpoint-2"), &rows);
        let planned = read(folder.path());
        assert_eq!((planned.step, planned.rows.len()), (8, 8), "never beyond the plan");
        write_events(folder.path(), 2, &[0.5; 4]);
        let run = read(folder.path());
        assert_eq!((run.step, run.is_finished(), run.rows.len()), (4, false, 4));
        assert_eq!(run.last("loss"), Some((4, 0.5)));
    }

    #[test]
    fn event_files_are_read_where_the_plan_puts_them() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("out/dpo");
        let fact = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let written = vec![fact("output_dir", "out/dpo"), fact("logging_dir", "logs")];
        RunFacts { stage: "dpo".into(), written, ..RunFacts::default() }.write(&folder).unwrap();
        let error = RunRecord::read(&folder, "a".into()).unwrap_err().to_string();
        assert!(error.contains("holds no run") && error.ends_with("runs"), "{error}");
        let logs = place.path().join("logs");
        for (run, step) in [("another", 4), (&tensorboard::run_id(&folder), 3)] {
            let mut board = TensorBoard::open(&logs, Some(run), &[]).unwrap();
            board.log(&row(step, &[("loss", 0.5)])).unwrap();
        }
        assert_eq!(read(&folder).last("loss"), Some((3, 0.5)));
    }

    /// The final record of an earlier run in the same folder does not belong to the run in
    /// progress.
    #[test]
    fn a_run_that_began_anew_is_not_its_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        write_state(folder.path(), &[row(8, &[("loss", 0.1), ("train_runtime", 1.0)])]);
        RunFacts { stage: "dpo".into(), ..RunFacts::default() }.write(folder.path()).unwrap();
        write_state(&folder.path().join("checkpoint-2"), &[row(2, &[("loss", 0.5)])]);
        assert_eq!(read(folder.path()).step, 2);
        for (mark, step) in [("", 2), ("{}", 2), ("[]", 2), ("{\"stage\": \"DPO\"}", 8)] {
            fs::write(folder.path().join("favonius.json"), mark).unwrap();
            assert_eq!(read(folder.path()).step, step, "{mark}");
        }
    }

    #[test]
    fn speeds_leave_evaluations_out() {
        let logged: Vec<Logged> = [(1, 100.0), (2, 102.0), (3, 110.0)]
            .map(|(step, wall_time)| Logged { step, name: "loss".into(), value: 1.0, wall_time })
            .to_vec();
        let mut rows = vec![
            row(1, &[("loss", 1.0), ("num_tokens", 10.0)]),
            row(2, &[("loss", 1.0), ("num_tokens", 30.0)]),
            row(2, &[("eval_loss", 1.0), ("eval_runtime", 5.0)]),
            row(3, &[("loss", 1.0), ("num_tokens", 60.0)]),
        ];
        add_speeds(&mut rows, &Logs { scalars: logged, starts: vec![99.0] });
        let speeds: Vec<_> = rows.iter().map(|row| row.get(TOKENS_PER_SECOND)).collect();
        assert_eq!(speeds, [None, Some(10.0), None, Some(10.0)]);
    }

    #[test]
    fn speeds_leave_the_time_between_two_starts_out() {
        let scalars: Vec<Logged> = [(1, 100.0), (2, 102.0), (3, 9000.0), (4, 9002.0)]
            .map(|(step, wall_time)| Logged { step, name: "loss".into(), value: 1.0, wall_time })
            .to_vec();
        let mut rows: Vec<LogRow> = (1..=4)
            .map(|step| row(step, &[("loss", 1.0), ("num_tokens", 20.0 * step as f64)]))
            .collect();
        add_speeds(&mut rows, &Logs { scalars, starts: vec![99.0, 8990.0] });
        let speeds: Vec<_> = rows.iter().map(|row| row.get(TOKENS_PER_SECOND)).collect();
        assert_eq!(speeds, [None, Some(10.0), None, Some(10.0)]);
    }

    #[test]
    fn log_ratios_are_rewards_without_their_beta() {
        let rows = vec![row(2, &[("rewards/chosen", -0.5), ("eval_rewards/margins", 1.0)])];
        let mut run = RunRecord { rows, ..RunRecord::default() };
        run.add_log_ratios(0.25);
        assert_eq!(run.last("log_ratios/chosen"), Some((2, -2.0)));
        assert_eq!(run.last("eval_log_ratios/margins"), Some((2, 4.0)));
        assert_eq!(run.last("rewards/chosen"), Some((2, -0.5)));
    }

    #[test]
    fn lists_of_a_card_are_read() {
        let card = "# x\n\n### Training hyperparameters\n\nThe following:\n- seed: 42\n- optimizer: Adam with betas=(0.9)\n\n\
                    ### Framework versions\n\n- Transformers 4.35.0\n- TRL: 1.16.0\n";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            bullets(card, "### Training hyperparameters"),
            [pair("seed", "42"), pair("optimizer", "Adam with betas=(0.9)")]
        );
        assert_eq!(
            bullets(card, "### Framework versions"),
            [pair("Transformers", "4.35.0"), pair("TRL", "1.16.0")]
        );
        assert!(bullets(card, "### Other").is_empty());
    }

    #[test]
    fn what_is_no_run_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = RunRecord::read(folder.path(), "a".into()).unwrap_err().to_string();
        assert!(error.contains("holds no run"), "{error}");
        let missing = folder.path().join("missing");
        let error = RunRecord::read(&missing, "a".into()).unwrap_err().to_string();
        assert!(error.contains("missing is neither"), "{error}");
    }
}
