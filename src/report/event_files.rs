//! Reading TensorBoard's event files, of this program and of transformers.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use protobuf::Message;
use tensorboard_proto::event::{Event, Event_oneof_what, SessionLog_SessionStatus};
use tensorboard_rs::masked_crc32c::masked_crc32c;

/// The suffix of event files of this program; only such files are ever removed.
const OURS: &str = ".favonius";
/// The start of the names of event files.
pub(super) const EVENT_FILE: &str = "events.out.tfevents.";
/// How far below its folder the event files of a run may lie.
const DEEPEST_FOLDER: usize = 16;
/// The bytes before a record (length and its checksum) and after it (checksum of the content).
pub(super) const HEADER: usize = 12;
pub(super) const FOOTER: usize = 4;

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
pub(super) fn start_of(event: &Event) -> Option<f64> {
    let is_start = match &event.what {
        Some(Event_oneof_what::file_version(_)) => true,
        Some(Event_oneof_what::session_log(session)) => {
            session.get_status() == SessionLog_SessionStatus::START
        }
        _ => false,
    };
    is_start.then(|| event.get_wall_time())
}

pub(super) fn in_order(times: &mut Vec<f64>) {
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

/// The ending of the names of event files of this program; `run` if several runs share the folder.
pub(super) fn ending(run: Option<&str>) -> String {
    run.map_or_else(|| OURS.to_owned(), |run| format!(".{run}{OURS}"))
}

/// The events of a file up to its end or its first damaged record, which a kill during a write
/// leaves.
pub(super) fn read_events(mut bytes: &[u8]) -> Vec<Event> {
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
pub(super) fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
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
