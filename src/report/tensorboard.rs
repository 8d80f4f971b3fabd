//! TensorBoard event files with the tags of transformers' `TensorBoardCallback`: one file per run,
//! each step once.
//!
//! A resumed run writes a new file that starts with the checkpoint's rows, and removes its older
//! files. So points that were logged after the checkpoint do not appear beside those of the second
//! attempt.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use protobuf::Message;
use tensorboard_proto::event::{Event, Event_oneof_what, SessionLog, SessionLog_SessionStatus};
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::scalar;

use super::event_files::{EVENT_FILE, ending, in_order, read_events, start_of};
use super::loggers::logger::{Logger, now, tag};
use crate::files::replace::{replace_file, sync_folder};
use crate::train::event::LogRow;

const EPOCH_TAG: &str = "train/epoch";

/// The time at which a value was logged, by tag and step.
type WallTimes = HashMap<(String, i64), f64>;

/// The event file of a run.
pub struct TensorBoard {
    file: File,
    path: PathBuf,
    /// The last step whose epoch was written: train and evaluation rows of a step both carry it.
    epoch_step: Option<u64>,
}

impl TensorBoard {
    /// Starts the event file of a run in `folder` with `history`, the rows logged before (empty for
    /// a fresh run, the checkpoint's for a resumed one), and removes its older event files. Rows
    /// keep the times they have there. `run` (a [`run_id`](super::loggers::logger::run_id)) is
    /// needed if several runs share the folder.
    ///
    /// # Errors
    /// The folder or a file in it cannot be written.
    pub fn open(folder: &Path, run: Option<&str>, history: &[LogRow]) -> io::Result<Self> {
        fs::create_dir_all(folder).map_err(|error| named("create the folder", folder, &error))?;
        let older = files_of(folder, run)?;
        let (times, mut starts) = times_and_starts(&older);
        let now = now();
        if history.is_empty() {
            starts.clear();
        }
        starts.push(now);
        let process = std::process::id();
        let name = format!("{EVENT_FILE}{:010}.{process}{}", now as u64, ending(run));
        let path = folder.join(name);
        let mut bytes = preamble(now, &starts)?;
        let mut epoch_step = None;
        for row in history {
            bytes.extend(row_records(row, &mut epoch_step, &times, now)?);
        }
        replace_file(&path, &bytes)?;
        for file in older.iter().filter(|file| **file != path) {
            fs::remove_file(file).map_err(|error| named("remove", file, &error))?;
        }
        sync_folder(folder)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| named("open", &path, &error))?;
        Ok(TensorBoard { file, path, epoch_step })
    }

    /// Writes the values of a row and flushes them, so that TensorBoard sees them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn log(&mut self, row: &LogRow) -> io::Result<()> {
        let records = row_records(row, &mut self.epoch_step, &WallTimes::new(), now())?;
        self.file.write_all(&records).map_err(|error| named("write", &self.path, &error))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Logger for TensorBoard {
    fn name(&self) -> &'static str {
        "TensorBoard"
    }

    fn log(&mut self, row: &LogRow, _time: f64) -> io::Result<()> {
        TensorBoard::log(self, row)
    }

    fn end(&mut self, _is_finished: bool, _time: f64) -> io::Result<()> {
        Ok(())
    }

    fn viewer(&self) -> String {
        let folder = self.path.parent().unwrap_or(&self.path);
        format!("tensorboard --logdir {}", folder.display())
    }
}

/// The version of the format, and a mark at step 0 for each start of the run. A TensorBoard that
/// watches the folder then drops what it read from older files.
fn preamble(now: f64, starts: &[f64]) -> io::Result<Vec<u8>> {
    let mut version = Event::new();
    version.set_wall_time(now);
    version.set_file_version("brain.Event:2".to_owned());
    let mut bytes = record(&version)?;
    for time in starts {
        let mut session = SessionLog::new();
        session.set_status(SessionLog_SessionStatus::START);
        let mut start = Event::new();
        start.set_wall_time(*time);
        start.set_session_log(session);
        bytes.extend(record(&start)?);
    }
    Ok(bytes)
}

/// `now` is the time of values that are not in `times`.
fn row_records(
    row: &LogRow,
    epoch_step: &mut Option<u64>,
    times: &WallTimes,
    now: f64,
) -> io::Result<Vec<u8>> {
    let mut values: Vec<(String, f64)> =
        row.values.iter().map(|(name, value)| (tag(name), *value)).collect();
    if *epoch_step != Some(row.step) {
        *epoch_step = Some(row.step);
        values.push((EPOCH_TAG.to_owned(), row.epoch));
    }
    let step = i64::try_from(row.step).unwrap_or(i64::MAX);
    let mut records = Vec::new();
    for (tag, value) in values {
        let mut event = Event::new();
        // TensorBoard's own scalars are float32.
        event.set_summary(scalar(&tag, value as f32));
        event.set_wall_time(times.get(&(tag, step)).copied().unwrap_or(now));
        event.set_step(step);
        records.extend(record(&event)?);
    }
    Ok(records)
}

fn record(event: &Event) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    RecordWriter::new(&mut bytes).write(&event.write_to_bytes().map_err(io::Error::other)?)?;
    Ok(bytes)
}

/// The event files of earlier starts of a run, complete or not.
fn files_of(folder: &Path, run: Option<&str>) -> io::Result<Vec<PathBuf>> {
    let ending = ending(run);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| named("list", folder, &error))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of_a_killed_start =
            name.starts_with(&format!(".{EVENT_FILE}")) && name.ends_with(&format!("{ending}.tmp"));
        if of_a_killed_start || name.starts_with(EVENT_FILE) && name.ends_with(&ending) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The times of the values in `files`, and the times of earlier starts. Damaged parts are skipped,
/// because the values themselves come from the trainer state.
fn times_and_starts(files: &[PathBuf]) -> (WallTimes, Vec<f64>) {
    let (mut times, mut starts) = (WallTimes::new(), Vec::new());
    for bytes in files.iter().filter_map(|file| fs::read(file).ok()) {
        for event in read_events(&bytes) {
            starts.extend(start_of(&event));
            if let Some(Event_oneof_what::summary(summary)) = &event.what {
                let keys = summary
                    .get_value()
                    .iter()
                    .map(|value| (value.get_tag().to_owned(), event.get_step()));
                times.extend(keys.map(|key| (key, event.get_wall_time())));
            }
        }
    }
    in_order(&mut starts);
    (times, starts)
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("TensorBoard: cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
