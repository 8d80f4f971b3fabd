//! `report_to: wandb`: an offline run of Weights & Biases, which `wandb sync` uploads, with the
//! names of transformers' `WandbCallback`.
//!
//! The folder `wandb/offline-run-TIME-ID` holds `run-ID.wandb`, whose records are those that
//! wandb's own client writes: header, run with its configuration, the metric of the x-axis
//! (`train/global_step`), then for each row of the log a summary and a history record, and at the
//! end an exit record.

mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::logger::{LoggedRun, Logger, OF_THE_RUN, json_number, named, step_metrics, times_of};
use crate::files::replace::replace_file;
use crate::train::event::LogRow;
use record::{Message, byte_fields};

const NAME: &str = "wandb";
const GLOBAL_STEP: &str = "train/global_step";

/// Field numbers of wandb's protobuf messages.
mod field {
    /// `Record`.
    pub const NUM: u32 = 1;
    pub const HISTORY: u32 = 2;
    pub const SUMMARY: u32 = 3;
    pub const METRIC: u32 = 12;
    pub const RUN: u32 = 17;
    pub const EXIT: u32 = 18;
    pub const HEADER: u32 = 21;
    /// `ConfigItem`, `HistoryItem` and `SummaryItem`.
    pub const KEY: u32 = 1;
    pub const NESTED_KEY: u32 = 2;
    pub const VALUE_JSON: u32 = 16;
    /// The repeated items of `ConfigRecord`, `HistoryRecord` and `SummaryRecord`.
    pub const ITEM: u32 = 1;
    /// `HistoryRecord`.
    pub const STEP: u32 = 2;
}

/// An offline run.
pub struct Wandb {
    file: File,
    folder: PathBuf,
    path: PathBuf,
    /// Bytes in the file.
    written: u64,
    /// Records in the file.
    records: u64,
    /// Rows in the file.
    rows: u64,
    started: f64,
}

impl Wandb {
    /// Writes the run with the rows of `history`. Its folder is in `wandb/` in `logging_dir`, else
    /// in `WANDB_DIR`, else in the run's folder. The project is the recipe's `project`, else
    /// `WANDB_PROJECT`, else `huggingface`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(run: &LoggedRun, history: &[LogRow]) -> io::Result<Self> {
        let base = run.folder("WANDB_DIR").unwrap_or_else(|| run.output_dir.clone());
        let id = &run.identity.id;
        let started = run.identity.started;
        let folder = base.join("wandb").join(format!("offline-run-{}-{id}", moment(started)));
        let path = folder.join(format!("run-{id}.wandb"));
        let files = folder.join("files");
        fs::create_dir_all(&files)
            .map_err(|error| named(NAME, "create the folder", &files, &error))?;
        let stored = fs::read(&path).map(|bytes| stored_rows(&bytes)).unwrap_or_default();
        let times = times_of(history, &stored, run.now);

        let mut bytes = record::HEADER.to_vec();
        let mut records = 0;
        let rows = history.iter().zip(times).zip(0..);
        let rows = rows.flat_map(|((row, time), n)| row_records(row, time, n, started));
        for content in first_records(run).into_iter().chain(rows) {
            records += 1;
            record::append(&mut bytes, 0, numbered(records, content).encoded());
        }
        replace_file(&path, &bytes).map_err(|error| named(NAME, "write", &path, &error))?;
        // `wandb sync` marks what it has uploaded.
        let _ = fs::remove_file(folder.join(format!("run-{id}.wandb.synced")));
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| named(NAME, "open", &path, &error))?;
        let (written, rows) = (bytes.len() as u64, history.len() as u64);
        Ok(Self { file, folder, path, written, records, rows, started })
    }

    fn append(&mut self, contents: Vec<(u32, Message)>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for content in contents {
            self.records += 1;
            let message = numbered(self.records, content);
            record::append(&mut bytes, self.written, message.encoded());
        }
        let written = self.file.write_all(&bytes);
        written.map_err(|error| named(NAME, "write", &self.path, &error))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

impl Logger for Wandb {
    fn name(&self) -> &'static str {
        NAME
    }

    fn log(&mut self, row: &LogRow, time: f64) -> io::Result<()> {
        self.append(row_records(row, time, self.rows, self.started))?;
        self.rows += 1;
        Ok(())
    }

    fn end(&mut self, is_finished: bool, time: f64) -> io::Result<()> {
        let runtime = (time - self.started).max(0.0) as u64;
        let exit = Message::default().number(1, u64::from(!is_finished)).number(2, runtime);
        self.append(vec![(field::EXIT, exit)])
    }

    fn viewer(&self) -> String {
        format!("wandb sync {}", self.folder.display())
    }
}

/// A time as in the names of wandb's folders.
fn moment(seconds: f64) -> String {
    let format = format_description!("[year][month][day]_[hour][minute][second]");
    let moment = OffsetDateTime::from_unix_timestamp(seconds as i64).ok();
    moment.and_then(|moment| moment.format(format).ok()).unwrap_or_else(|| "0".to_owned())
}

/// A record with its number and content.
fn numbered(number: u64, (field, content): (u32, Message)) -> Message {
    Message::default().number(field::NUM, number).message(field, &content)
}

/// The records before the first row.
fn first_records(run: &LoggedRun) -> Vec<(u32, Message)> {
    let version = Message::default()
        .text(1, concat!("favonius ", env!("CARGO_PKG_VERSION")))
        .text(2, "0.70.0");
    let header = Message::default().message(1, &version);

    let mut config = Message::default();
    let own = [("_wandb".to_owned(), Value::Object(serde_json::Map::new()))];
    for (key, value) in own.iter().chain(&run.config) {
        config = config.message(field::ITEM, &item(field::KEY, key, value));
    }
    let started = run.identity.started;
    let timestamp =
        Message::default().number(1, started as u64).number(2, (started.fract() * 1e9) as u64);
    let run = Message::default()
        .text(1, &run.identity.id)
        .text(3, &run.project_or("WANDB_PROJECT", "huggingface"))
        .message(4, &config)
        .text(8, &run.name)
        .message(17, &timestamp);

    let defined = Message::default().number(3, 1);
    let axis = Message::default().text(1, GLOBAL_STEP).message(6, &defined);
    let synced = Message::default().number(1, 1).number(3, 1);
    let others = Message::default().text(2, "*").text(4, GLOBAL_STEP).message(6, &synced);
    vec![(field::HEADER, header), (field::RUN, run), (field::METRIC, axis), (field::METRIC, others)]
}

/// The records of the row with index `n`: its values as the run's summary, and as its history.
fn row_records(row: &LogRow, time: f64, n: u64, started: f64) -> Vec<(u32, Message)> {
    let mut values = step_metrics(row);
    values.push(("_timestamp".to_owned(), json_number(time)));
    values.push(("_runtime".to_owned(), json_number((time - started).max(0.0))));
    values.push(("_step".to_owned(), Value::from(n)));
    let mut summary = Message::default();
    let of_run = row.values.iter().filter(|(name, _)| OF_THE_RUN.contains(&name.as_str()));
    for (name, value) in of_run {
        summary = summary.message(field::ITEM, &item(field::KEY, name, &json_number(*value)));
    }
    let mut history = Message::default();
    for (name, value) in &values {
        let item = item(field::NESTED_KEY, name, value);
        summary = summary.message(field::ITEM, &item);
        history = history.message(field::ITEM, &item);
    }
    history = history.message(field::STEP, &Message::default().number(1, n));
    vec![(field::SUMMARY, summary), (field::HISTORY, history)]
}

fn item(key_field: u32, key: &str, value: &Value) -> Message {
    Message::default().text(key_field, key).text(field::VALUE_JSON, &value.to_string())
}

/// Step and time of each history record in a file.
fn stored_rows(bytes: &[u8]) -> Vec<(u64, f64)> {
    let mut rows = Vec::new();
    for record in record::read(bytes) {
        for (number, history) in byte_fields(&record) {
            if number == field::HISTORY {
                let value = |key: &str| {
                    let items = history_items(history);
                    items.into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
                };
                let step = value(GLOBAL_STEP).and_then(|value| value.as_u64());
                let time = value("_timestamp").and_then(|value| value.as_f64());
                rows.extend(step.zip(time));
            }
        }
    }
    rows
}

/// Names and values of a history record.
fn history_items(history: &[u8]) -> Vec<(String, Value)> {
    let items = byte_fields(history).into_iter().filter(|(number, _)| *number == field::ITEM);
    let parse = |(_, item): (u32, &[u8])| {
        let fields = byte_fields(item);
        let of = |wanted: u32| fields.iter().find(|(number, _)| *number == wanted);
        let (_, name) = of(field::NESTED_KEY)?;
        let (_, value) = of(field::VALUE_JSON)?;
        Some((String::from_utf8(name.to_vec()).ok()?, serde_json::from_slice(value).ok()?))
    };
    items.filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::logger::tests::{row, run_in};
    use super::*;

    /// Field and content of each record.
    fn contents(path: &Path) -> Vec<(u32, Vec<u8>)> {
        let records = record::read(&fs::read(path).unwrap());
        let content = |record: &Vec<u8>| {
            let fields = byte_fields(record);
            (fields[0].0, fields[0].1.to_vec())
        };
        records.iter().map(content).collect()
    }

    #[test]
    fn the_records_are_those_of_wandb() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let mut log = Wandb::open(&run, &[]).unwrap();
        let last = row(2, &[("loss", 0.5), ("grad_norm", f64::INFINITY), ("train_runtime", 3.0)]);
        log.log(&last, 1_700_000_002.0).unwrap();
        log.end(true, 1_700_000_004.0).unwrap();
        let name = format!("offline-run-20231114_221320-{}", run.identity.id);
        assert_eq!(log.folder, dir.path().join("logs/wandb").join(name));
        let contents = contents(&log.path);
        let kinds: Vec<u32> = contents.iter().map(|(field, _)| *field).collect();
        assert_eq!(kinds, [21, 17, 12, 12, 3, 2, 18]);
        let fields = byte_fields(&contents[1].1);
        let text = |number: u32| {
            let found = fields.iter().find(|(field, _)| *field == number).unwrap();
            String::from_utf8_lossy(found.1).into_owned()
        };
        assert_eq!([text(1), text(3), text(8)], [&run.identity.id, "a project", "my run"]);
        let expected = [
            ("train/loss", json!(0.5)),
            ("train/grad_norm", json!("Infinity")),
            ("train/epoch", json!(0.5)),
            ("train/global_step", json!(2)),
            ("_timestamp", json!(1_700_000_002.0)),
            ("_runtime", json!(1.75)),
            ("_step", json!(0)),
        ];
        let items = history_items(&contents[5].1);
        let items: Vec<_> = items.iter().map(|(name, value)| (&**name, value.clone())).collect();
        assert_eq!(items, expected);
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
        let mut log = Wandb::open(&run, &[]).unwrap();
        for row in &rows {
            log.log(row, row.step as f64).unwrap();
        }
        let synced = format!("{}.synced", log.path.display());
        fs::write(&synced, "").unwrap();
        let mut log = Wandb::open(&run, &rows[..2]).unwrap();
        log.log(&rows[2], 30.0).unwrap();
        let bytes = fs::read(&log.path).unwrap();
        assert_eq!(stored_rows(&bytes), [(1, 1.0), (2, 2.0), (3, 30.0)]);
        assert_eq!(bytes.len() as u64, log.written);
        assert!(!Path::new(&synced).exists(), "the rest has not been uploaded");
    }
}
