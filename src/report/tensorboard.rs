//! TensorBoard event files with the tags of transformers' `TensorBoardCallback`: one file per run,
//! each step once.
//!
//! A resumed run writes a new file that starts with the checkpoint's rows, and removes its older
//! files. So points that were logged after the checkpoint do not appear beside those of the second
//! attempt.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use protobuf::Message;
use tensorboard_proto::event::{Event, Event_oneof_what, SessionLog, SessionLog_SessionStatus};
use tensorboard_rs::masked_crc32c::masked_crc32c;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::scalar;

use super::loggers::logger::{Logger, now, tag};
use crate::files::replace::{replace_file, sync_folder};
use crate::train::event::LogRow;

/// The suffix of event files of this program; only such files are ever removed.
const OURS: &str = ".favonius";
const EVENT_FILE: &str = "events.out.tfevents.";
const EPOCH_TAG: &str = "train/epoch";
/// How far below its folder the event files of a run may lie.
const DEEPEST_FOLDER: usize = 16;
/// The bytes before a record (length and its checksum) and after it (checksum of the content).
const HEADER: usize = 12;
const FOOTER: usize = 4;

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

fn ending(run: Option<&str>) -> String {
    run.map_or_else(|| OURS.to_owned(), |run| format!(".{run}{OURS}"))
}

/// A logged value in an event file.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged {
    pub step: u64,
    /// As in `trainer_state.json`: "loss", "eval_loss", "epoch".
    pub name: String,
    pub value: f64,
    /// Seconds since 1970.
    pub wall_time: f64,
}

/// The content of event files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Logs {
    /// In the order of logging.
    pub scalars: Vec<Logged>,
    /// The times of the trainer's starts in seconds since 1970, ascending.
    pub starts: Vec<f64>,
}

/// Reads the event files in `folder` and its sub-folders (transformers uses one per start), older
/// files first; only those of `run` if it is given. The run may be in progress: a
/// file is read up to its first damaged record.
pub fn read_folder(folder: &Path, run: Option<&str>) -> Logs {
    let mut files = event_files(folder);
    if run.is_some() {
        let ending = ending(run);
        files.retain(|path| path.to_string_lossy().ends_with(&ending));
    }
    files.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
    let mut logs = Logs::default();
    for bytes in files.iter().filter_map(|file| fs::read(file).ok()) {
        for event in read_events(&bytes) {
            logs.scalars.extend(scalars_of(&event));
            logs.starts.extend(start_of(&event));
        }
    }
    in_order(&mut logs.starts);
    logs
}

/// The time of a trainer's start, if the event marks one: it is the first event of a file (the
/// version of the format), or a mark for a start whose file was replaced.
fn start_of(event: &Event) -> Option<f64> {
    let is_start = match &event.what {
        Some(Event_oneof_what::file_version(_)) => true,
        Some(Event_oneof_what::session_log(session)) => {
            session.get_status() == SessionLog_SessionStatus::START
        }
        _ => false,
    };
    is_start.then(|| event.get_wall_time())
}

fn in_order(times: &mut Vec<f64>) {
    times.sort_by(f64::total_cmp);
    times.dedup();
}

/// The event files below a folder. Linked folders are followed, each folder once: links may form a
/// circle.
fn event_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let is_new = fs::canonicalize(&folder).is_ok_and(|folder| seen.insert(folder));
        if !is_new {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if depth < DEEPEST_FOLDER {
                    folders.push((path, depth + 1));
                }
            } else if entry.file_name().to_string_lossy().starts_with(EVENT_FILE) {
                files.push(path);
            }
        }
    }
    files
}

fn scalars_of(event: &Event) -> Vec<Logged> {
    let (Some(Event_oneof_what::summary(summary)), Ok(step)) =
        (&event.what, u64::try_from(event.get_step()))
    else {
        return Vec::new();
    };
    let scalars = summary.get_value().iter().filter(|value| value.has_simple_value());
    let logged = scalars.filter_map(|value| {
        Some(Logged {
            step,
            name: name_of_tag(value.get_tag())?,
            value: f64::from(value.get_simple_value()),
            wall_time: event.get_wall_time(),
        })
    });
    logged.collect()
}

/// The inverse of [`tag`]; `None` for tags that no trainer logs.
fn name_of_tag(tag: &str) -> Option<String> {
    match tag.split_once('/')? {
        ("train", name) => Some(name.to_owned()),
        ("eval", name) => Some(format!("eval_{name}")),
        _ => None,
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

/// The events of a file up to its end or its first damaged record, which a kill during a write
/// leaves.
fn read_events(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((data, rest)) = split_record(bytes) {
        let Ok(event) = Event::parse_from_bytes(data) else { break };
        events.push(event);
        bytes = rest;
    }
    events
}

/// A record is its length (u64, little-endian), the masked CRC-32C of the length, the content, and
/// the content's masked CRC-32C.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length_bytes: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let checksum =
        |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if checksum(8)? != masked_crc32c(&length_bytes) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(length_bytes)).ok()?;
    let end = HEADER.checked_add(length)?;
    let data = bytes.get(HEADER..end)?;
    (checksum(end)? == masked_crc32c(data)).then(|| (data, &bytes[end + FOOTER..]))
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("TensorBoard: cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Option<&str> = Some("0123abcd");

    fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
        let values = values.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        LogRow { step, epoch: step as f64 / 4.0, values }
    }

    /// Tag, step, value and time of all scalars in the folder's only event file.
    fn scalars(folder: &Path) -> Vec<(String, i64, f32, f64)> {
        let files = files_of(folder, RUN).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        let bytes = fs::read(&files[0]).unwrap();
        let mut all = Vec::new();
        for event in read_events(&bytes) {
            if let Some(Event_oneof_what::summary(summary)) = &event.what {
                let value = &summary.get_value()[0];
                all.push((
                    value.get_tag().to_owned(),
                    event.get_step(),
                    value.get_simple_value(),
                    event.get_wall_time(),
                ));
            }
        }
        all
    }

    fn without_times(all: &[(String, i64, f32, f64)]) -> Vec<(&str, i64, f32)> {
        all.iter().map(|(tag, step, value, _)| (tag.as_str(), *step, *value)).collect()
    }

    #[test]
    fn the_framing_is_tensorboards() {
        // The CRC-32C of 32 zero bytes is 0x8a9136aa (RFC 3720); TensorBoard rotates it and adds a
        // constant.
        assert_eq!(
            masked_crc32c(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
        let folder = tempfile::tempdir().unwrap();
        let board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
        let bytes = fs::read(board.path()).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let (data, rest) = split_record(&bytes).unwrap();
        assert_eq!(
            (data.len() as u64, bytes.len() - rest.len()),
            (length, HEADER + data.len() + FOOTER)
        );
        assert!(data.ends_with(b"brain.Event:2"));
        let events = read_events(&bytes);
        assert_eq!(events.len(), 2);
        assert_eq!(events[1].get_session_log().get_status(), SessionLog_SessionStatus::START);
    }

    #[test]
    fn values_and_steps_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
        board.log(&row(2, &[("loss", 0.5), ("grad_norm", f64::INFINITY)])).unwrap();
        board.log(&row(2, &[("eval_rewards/chosen", -0.25)])).unwrap();
        let expected = [
            ("train/loss", 2, 0.5),
            ("train/grad_norm", 2, f32::INFINITY),
            ("train/epoch", 2, 0.5),
            ("eval/rewards/chosen", 2, -0.25),
        ];
        assert_eq!(without_times(&scalars(folder.path())), expected);
    }

    #[test]
    fn a_resumed_run_supersedes_what_came_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("events.out.tfevents.0000000001.other.1.0");
        fs::write(&foreign, b"not ours").unwrap();
        let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
        let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
        rows.iter().for_each(|row| board.log(row).unwrap());
        let before = scalars(folder.path());
        // A kill during a write; the first start had another clock.
        let first = folder.path().join("events.out.tfevents.0000000002.7.0123abcd.favonius");
        let mut bytes = fs::read(board.path()).unwrap();
        bytes.truncate(bytes.len() - 5);
        fs::write(&first, bytes).unwrap();
        fs::remove_file(board.path()).unwrap();
        fs::write(
            folder.path().join(".events.out.tfevents.0000000003.8.0123abcd.favonius.tmp"),
            b"half",
        )
        .unwrap();

        let mut resumed = TensorBoard::open(folder.path(), RUN, &rows[..2]).unwrap();
        resumed.log(&row(3, &[("loss", 30.0)])).unwrap();
        let after = scalars(folder.path());
        assert_eq!(after[..4], before[..4], "the rows of the checkpoint keep values and times");
        assert_eq!(without_times(&after[4..]), [("train/loss", 3, 30.0), ("train/epoch", 3, 0.75)]);
        assert!(foreign.exists());
    }

    #[test]
    fn a_folder_is_read_with_its_sub_folders() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::open(&folder.path().join("runs/Nov01"), RUN, &[]).unwrap();
        board.log(&row(2, &[("loss", 0.5)])).unwrap();
        board.log(&row(4, &[("eval_rewards/chosen", 0.25)])).unwrap();
        let logged = read_folder(folder.path(), None).scalars;
        let plain: Vec<_> = logged.iter().map(|l| (l.step, l.name.as_str(), l.value)).collect();
        let expected = [
            (2, "loss", 0.5),
            (2, "epoch", 0.5),
            (4, "eval_rewards/chosen", 0.25),
            (4, "epoch", 1.0),
        ];
        assert_eq!(plain, expected);
        assert!(logged.iter().all(|logged| logged.wall_time > 1e9));
        assert_eq!(read_folder(&folder.path().join("no-such"), None), Logs::default());
    }

    #[cfg(unix)]
    #[test]
    fn links_in_a_circle_are_followed_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("runs");
        let mut board = TensorBoard::open(&folder, None, &[]).unwrap();
        board.log(&row(1, &[("loss", 0.5)])).unwrap();
        for name in ["a", "b", "c"] {
            std::os::unix::fs::symlink(".", folder.join(name)).unwrap();
            std::os::unix::fs::symlink("..", folder.join(format!("{name}-up"))).unwrap();
        }
        let logged = read_folder(&folder, None).scalars;
        let losses = logged.iter().filter(|value| value.name == "loss").count();
        assert_eq!(losses, 1);
    }

    #[test]
    fn every_start_of_a_run_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
        for (done, next) in rows.iter().enumerate() {
            let mut board = TensorBoard::open(folder.path(), RUN, &rows[..done]).unwrap();
            board.log(next).unwrap();
        }
        let Logs { scalars, starts } = read_folder(folder.path(), None);
        let losses = scalars.iter().filter(|logged| logged.name == "loss");
        let times: Vec<f64> = losses.map(|logged| logged.wall_time).collect();
        assert_eq!((starts.len(), times.len()), (3, 3));
        assert!(starts.iter().zip(&times).all(|(start, time)| start < time));
        assert!(times.iter().zip(&starts[1..]).all(|(time, next)| time < next));
        TensorBoard::open(folder.path(), RUN, &[]).unwrap();
        assert_eq!(read_folder(folder.path(), None).starts.len(), 1, "the run began anew");
    }

    /// Rows whose times are unknown (the older files are gone) get the time of the start.
    #[test]
    fn rows_without_times_have_that_of_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [row(1, &[("loss", 1.0)]), row(2, &[("loss", 0.5)])];
        TensorBoard::open(folder.path(), RUN, &rows).unwrap();
        let Logs { scalars, starts } = read_folder(folder.path(), None);
        assert_eq!((scalars.len(), starts.len()), (4, 1));
        assert!(scalars.iter().all(|logged| logged.wall_time == starts[0]));
    }

    #[test]
    fn a_damaged_record_ends_the_reading() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::open(folder.path(), RUN, &[]).unwrap();
        board.log(&row(1, &[("loss", 1.0)])).unwrap();
        let mut bytes = fs::read(board.path()).unwrap();
        let last = bytes.len() - 20;
        bytes[last] ^= 1;
        assert_eq!(read_events(&bytes).len(), 3);
        assert!(read_events(&[0xff; 64]).is_empty());
        assert!(split_record(&u64::MAX.to_le_bytes()).is_none());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("runs"), b"a file").unwrap();
        let error =
            TensorBoard::open(&folder.path().join("runs"), RUN, &[]).err().unwrap().to_string();
        assert!(
            error.contains("TensorBoard: cannot create the folder") && error.contains("runs"),
            "{error}"
        );
    }
}
