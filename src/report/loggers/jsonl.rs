//! `report_to: jsonl`: a text file with one line of JSON for each event of a run.
//!
//! ```json
//! {"event":"start","time":1700000000.0,"run":"dpo","config":{"beta":0.1}}
//! {"event":"log","time":1700000004.5,"step":10,"epoch":0.5,"train/loss":0.69}
//! {"event":"saved","time":1700000009.0,"path":"out/checkpoint-10"}
//! {"event":"end","time":1700000010.0,"finished":true}
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::logger::{LoggedRun, Logger, json_number, named, run_id, tag};
use crate::files::replace::replace_file;
use crate::train::event::LogRow;

const NAME: &str = "jsonl";

/// The file of a run: `metrics.jsonl` in the run's folder, or in `logging_dir` with the run's id
/// in its name.
pub struct Jsonl {
    file: File,
    path: PathBuf,
}

impl Jsonl {
    /// Opens the file. Lines of a start before are kept up to the last row of `history`; rows that
    /// the file does not have are written anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn open(run: &LoggedRun, history: &[LogRow]) -> io::Result<Self> {
        let path = match &run.logging_dir {
            Some(folder) => folder.join(format!("metrics-{}.jsonl", run_id(&run.output_dir))),
            None => run.output_dir.join("metrics.jsonl"),
        };
        let before = fs::read_to_string(&path).unwrap_or_default();
        let mut text = kept_lines(&before, history).unwrap_or_else(|| {
            history.iter().map(|row| row_line(row, run.now)).collect::<String>()
        });
        let config: Map<String, Value> = run.config.iter().cloned().collect();
        text += &line(json!({
            "event": "start", "time": run.now, "run": run.name, "config": config,
        }));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| named(NAME, "create the folder", folder, &e))?;
        }
        replace_file(&path, text.as_bytes()).map_err(|e| named(NAME, "write", &path, &e))?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|error| named(NAME, "open", &path, &error))?;
        Ok(Self { file, path })
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| named(NAME, "write", &self.path, &error))
    }
}

impl Logger for Jsonl {
    fn name(&self) -> &'static str {
        NAME
    }

    fn log(&mut self, row: &LogRow, time: f64) -> io::Result<()> {
        self.write(&row_line(row, time))
    }

    fn saved(&mut self, path: &Path, time: f64) -> io::Result<()> {
        let path = path.display().to_string();
        self.write(&line(json!({"event": "saved", "time": time, "path": path})))
    }

    fn end(&mut self, is_finished: bool, time: f64) -> io::Result<()> {
        self.write(&line(json!({"event": "end", "time": time, "finished": is_finished})))
    }

    fn viewer(&self) -> String {
        self.path.display().to_string()
    }
}

fn line(event: Value) -> String {
    format!("{event}\n")
}

fn row_line(row: &LogRow, time: f64) -> String {
    let mut event = Map::new();
    event.insert("event".to_owned(), Value::from("log"));
    event.insert("time".to_owned(), json_number(time));
    event.insert("step".to_owned(), Value::from(row.step));
    event.insert("epoch".to_owned(), json_number(row.epoch));
    event.extend(row.values.iter().map(|(name, value)| (tag(name), json_number(*value))));
    line(Value::Object(event))
}

/// The lines of `text` up to the last row of `history` and what was saved after it. `None` if the
/// rows in `text` do not begin with those of `history`. A fresh run (an empty `history`) keeps no
/// line.
fn kept_lines(text: &str, history: &[LogRow]) -> Option<String> {
    if history.is_empty() {
        return Some(String::new());
    }
    let mut rows = history.iter().peekable();
    let mut kept = String::new();
    // The last line may be cut by a kill.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let event: Value = serde_json::from_str(line).ok()?;
        let step = event.get("step").and_then(Value::as_u64);
        match (event.get("event").and_then(Value::as_str)?, rows.peek()) {
            ("log", None) => return Some(kept),
            ("log", Some(row)) if step == Some(row.step) => rows.next(),
            ("log", Some(_)) => return None,
            _ => None,
        };
        kept += line;
    }
    rows.peek().is_none().then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::super::logger::tests::{row, run_in};
    use super::*;

    fn events(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_event_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let run = LoggedRun { logging_dir: None, ..run_in(folder.path()) };
        let mut log = Jsonl::open(&run, &[]).unwrap();
        log.log(&row(2, &[("loss", 0.5), ("grad_norm", f64::INFINITY)]), 3.0).unwrap();
        log.saved(Path::new("out/checkpoint-2"), 4.0).unwrap();
        log.end(true, 5.0).unwrap();
        let expected = [
            json!({"event": "start", "time": 1_700_000_001.5, "run": "my run", "config":
                {"beta": 0.1, "dataset_mixer.owner/set: one": "a: \"b\""}}),
            json!({"event": "log", "time": 3.0, "step": 2, "epoch": 0.5, "train/loss": 0.5,
                "train/grad_norm": "Infinity"}),
            json!({"event": "saved", "time": 4.0, "path": "out/checkpoint-2"}),
            json!({"event": "end", "time": 5.0, "finished": true}),
        ];
        assert_eq!(events(&folder.path().join("metrics.jsonl")), expected);
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = run_in(folder.path());
        let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
        let mut log = Jsonl::open(&run, &[]).unwrap();
        log.log(&rows[0], 1.0).unwrap();
        log.log(&rows[1], 2.0).unwrap();
        log.saved(Path::new("checkpoint-2"), 2.5).unwrap();
        log.log(&rows[2], 3.0).unwrap();
        log.write("{\"event\":\"lo").unwrap();
        let mut log = Jsonl::open(&run, &rows[..2]).unwrap();
        log.log(&rows[2], 30.0).unwrap();
        let events = events(&log.path);
        let of = |name: &str| -> Vec<Option<f64>> {
            let named = events.iter().filter(|event| event["event"] == name);
            named.map(|event| event["time"].as_f64()).collect()
        };
        assert_eq!(of("log"), [Some(1.0), Some(2.0), Some(30.0)]);
        assert_eq!((of("start").len(), of("saved").len()), (2, 1));
        // Without the earlier file the rows are written anew.
        fs::remove_file(&log.path).unwrap();
        let log = Jsonl::open(&run, &rows).unwrap();
        let events = self::events(&log.path);
        assert_eq!(events.iter().filter(|event| event["event"] == "log").count(), 3);
        assert_eq!(events[0]["time"], 1_700_000_001.5);
    }
}
