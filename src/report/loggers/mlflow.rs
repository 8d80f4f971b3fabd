//! `report_to: mlflow`: a run in MLflow's file store (`mlruns`), with the names of transformers'
//! `MLflowCallback`: metrics without prefix, the recipe's keys as parameters.
//!
//! A store is a folder. `EXPERIMENT/meta.yaml` names an experiment, `EXPERIMENT/RUN/meta.yaml` a
//! run. A file in `metrics/`, `params/` and `tags/` of a run is a metric (a line `time value step`
//! for each value, the time in milliseconds), a parameter, a tag.
//!
//! MLflow 3 reads this store if `MLFLOW_ALLOW_FILE_STORE=true` is set, and
//! `mlflow migrate-filestore` copies it into a database.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::logger::{LoggedRun, Logger, named, times_of};
use crate::files::replace::replace_file;
use crate::train::event::LogRow;

const NAME: &str = "mlflow";
const META: &str = "meta.yaml";
/// The metric that every row has.
const EPOCH: &str = "epoch";
/// MLflow's longest parameter.
const LONGEST_PARAMETER: usize = 6000;
/// Numbers of MLflow's `RunStatus`.
const RUNNING: u8 = 1;
const FINISHED: u8 = 3;
const KILLED: u8 = 5;

/// A run in a file store.
pub struct Mlflow {
    store: PathBuf,
    folder: PathBuf,
    experiment: String,
    id: String,
    name: String,
    started: f64,
}

impl Mlflow {
    /// Writes the run with the rows of `history`. The store is the folder that
    /// `MLFLOW_TRACKING_URI` names, else `mlruns` in `logging_dir` or in the current folder. The
    /// experiment is the recipe's `project`, else `MLFLOW_EXPERIMENT_NAME`, else `Default`.
    ///
    /// # Errors
    /// `MLFLOW_TRACKING_URI` is not a folder, or the store cannot be written.
    pub fn open(run: &LoggedRun, history: &[LogRow]) -> io::Result<Self> {
        let uri = std::env::var("MLFLOW_TRACKING_URI").ok().filter(|uri| !uri.is_empty());
        let store = match (&run.logging_dir, uri) {
            (_, Some(uri)) => folder_of_uri(&uri)?,
            (Some(folder), None) => folder.join("mlruns"),
            (None, None) => PathBuf::from("mlruns"),
        };
        Self::open_in(&std::path::absolute(store)?, run, history)
    }

    fn open_in(store: &Path, run: &LoggedRun, history: &[LogRow]) -> io::Result<Self> {
        let experiment = run.project_or("MLFLOW_EXPERIMENT_NAME", "Default");
        let experiment = experiment_id(store, &experiment, run.now)?;
        let folder = store.join(&experiment).join(&run.identity.id);
        let log = Self {
            store: store.to_path_buf(),
            folder,
            experiment,
            id: run.identity.id.clone(),
            name: run.name.clone(),
            started: run.identity.started,
        };
        let times = times_of(history, &log.stored_rows(), run.now);
        for name in ["metrics", "params", "tags", "artifacts"] {
            let folder = log.folder.join(name);
            if name != "artifacts" && folder.is_dir() {
                fs::remove_dir_all(&folder).map_err(|e| named(NAME, "remove", &folder, &e))?;
            }
            fs::create_dir_all(&folder)
                .map_err(|error| named(NAME, "create the folder", &folder, &error))?;
        }
        let mut metrics: BTreeMap<String, String> = BTreeMap::new();
        for (row, time) in history.iter().zip(times) {
            for (name, line) in metric_lines(row, time) {
                *metrics.entry(name).or_default() += &line;
            }
        }
        for (name, lines) in &metrics {
            log.put("metrics", name, lines)?;
        }
        for (key, value) in &run.config {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if let Some(name) = entity_name(key)
                && value.len() <= LONGEST_PARAMETER
            {
                log.put("params", &name, &value)?;
            }
        }
        let tags = [
            ("mlflow.runName", run.name.as_str()),
            ("mlflow.source.name", "favonius"),
            ("mlflow.source.type", "LOCAL"),
        ];
        for (name, value) in tags {
            log.put("tags", name, value)?;
        }
        log.write_meta(RUNNING, None)?;
        Ok(log)
    }

    /// Step and time of each row that the store has.
    fn stored_rows(&self) -> Vec<(u64, f64)> {
        let text = fs::read_to_string(self.folder.join("metrics").join(EPOCH)).unwrap_or_default();
        let parse = |line: &str| {
            let mut parts = line.split(' ');
            let time: f64 = parts.next()?.parse().ok()?;
            let step = parts.nth(1)?.parse().ok()?;
            Some((step, time / 1000.0))
        };
        text.lines().map_while(parse).collect()
    }

    fn put(&self, kind: &str, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join(kind).join(name);
        let folder = path.parent().unwrap_or(&self.folder);
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
        written.map_err(|error| named(NAME, "write", &path, &error))
    }

    fn write_meta(&self, status: u8, ended: Option<f64>) -> io::Result<()> {
        let artifacts = uri_of(&self.folder.join("artifacts"));
        let ended = ended.map_or_else(|| "null".to_owned(), |time| milliseconds(time).to_string());
        let text = format!(
            "artifact_uri: {}\nend_time: {ended}\nentry_point_name: ''\nexperiment_id: '{}'\n\
             lifecycle_stage: active\nrun_id: {}\nrun_name: {}\nsource_name: ''\nsource_type: 4\n\
             source_version: ''\nstart_time: {}\nstatus: {status}\ntags: []\nuser_id: {}\n",
            quoted(&artifacts),
            self.experiment,
            quoted(&self.id),
            quoted(&self.name),
            milliseconds(self.started),
            quoted(&std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned())),
        );
        let path = self.folder.join(META);
        replace_file(&path, text.as_bytes()).map_err(|e| named(NAME, "write", &path, &e))
    }
}

impl Logger for Mlflow {
    fn name(&self) -> &'static str {
        NAME
    }

    fn log(&mut self, row: &LogRow, time: f64) -> io::Result<()> {
        for (name, line) in metric_lines(row, time) {
            let path = self.folder.join("metrics").join(name);
            let folder = path.parent().unwrap_or(&self.folder);
            let mut options = OpenOptions::new();
            let opened = fs::create_dir_all(folder)
                .and_then(|()| options.create(true).append(true).open(&path));
            let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
            written.map_err(|error| named(NAME, "write", &path, &error))?;
        }
        Ok(())
    }

    fn end(&mut self, is_finished: bool, time: f64) -> io::Result<()> {
        self.write_meta(if is_finished { FINISHED } else { KILLED }, Some(time))
    }

    fn viewer(&self) -> String {
        let store = self.store.display();
        format!("MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {store}")
    }
}

fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

/// The lines of a row: name and text of each metric. As in transformers, names have no prefix.
fn metric_lines(row: &LogRow, time: f64) -> Vec<(String, String)> {
    let epoch = (EPOCH, row.epoch);
    let values = row.values.iter().map(|(name, value)| (name.as_str(), *value));
    let named = values.chain([epoch]).filter_map(|(name, value)| {
        // Python's names of what is not finite: nan, inf, -inf.
        let value = match value.is_nan() {
            true => "nan".to_owned(),
            false => format!("{value:?}"),
        };
        Some((entity_name(name)?, format!("{} {value} {}\n", milliseconds(time), row.step)))
    });
    named.collect()
}

/// The name of a metric or parameter with MLflow's characters. It becomes a path; `None` if the
/// path would leave its folder.
fn entity_name(name: &str) -> Option<String> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_-. :/".contains(letter);
    let name: String =
        name.chars().map(|letter| if allowed(letter) { letter } else { '_' }).collect();
    let is_plain = |part: &str| !["", ".", ".."].contains(&part);
    name.split('/').all(is_plain).then_some(name)
}

/// The folder that a tracking URI names.
fn folder_of_uri(uri: &str) -> io::Result<PathBuf> {
    match uri.split_once(':') {
        Some(("file", rest)) => Ok(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))),
        Some((scheme, _)) if scheme.len() > 1 => Err(io::Error::other(format!(
            "{NAME}: MLFLOW_TRACKING_URI is {scheme}:…, but only a folder can be written; unset \
             it, or name a folder"
        ))),
        _ => Ok(PathBuf::from(uri)),
    }
}

/// A path as a `file:` URI.
fn uri_of(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                uri.push(char::from(*byte));
            }
            other => uri += &format!("%{other:02X}"),
        }
    }
    uri
}

/// A text as a YAML scalar in double quotes. YAML reads JSON's texts.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[derive(Deserialize)]
struct Experiment {
    name: String,
}

/// The id of the experiment called `name`, which is created if the store does not have it.
fn experiment_id(store: &Path, name: &str, now: f64) -> io::Result<String> {
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path().join(META)).unwrap_or_default();
        let read: Option<Experiment> = serde_yaml::from_str(&text).ok();
        if read.is_some_and(|experiment| experiment.name == name) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // MLflow's own experiment has the id 0, others have 18 digits.
    let id = match name {
        "Default" => "0".to_owned(),
        _ => {
            let hash = blake3::hash(name.as_bytes());
            let number = u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default());
            format!("{:018}", 10_u64.pow(17) + number % (9 * 10_u64.pow(17)))
        }
    };
    let folder = store.join(&id);
    let time = milliseconds(now);
    let text = format!(
        "artifact_location: {}\ncreation_time: {time}\nexperiment_id: '{id}'\n\
         last_update_time: {time}\nlifecycle_stage: active\nname: {}\n",
        quoted(&uri_of(&folder)),
        quoted(name),
    );
    let written = fs::create_dir_all(&folder)
        .and_then(|()| replace_file(&folder.join(META), text.as_bytes()));
    written.map_err(|error| named(NAME, "create the experiment", &folder, &error))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::super::logger::tests::{row, run_in};
    use super::*;

    fn metric(log: &Mlflow, name: &str) -> String {
        fs::read_to_string(log.folder.join("metrics").join(name)).unwrap()
    }

    #[test]
    fn the_files_are_those_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let mut log = Mlflow::open_in(dir.path(), &run, &[]).unwrap();
        log.log(&row(2, &[("loss", 0.5), ("rewards/chosen", f64::NAN)]), 1_700_000_002.0).unwrap();
        log.log(&row(4, &[("eval_loss", f64::NEG_INFINITY)]), 1_700_000_003.25).unwrap();
        assert_eq!(metric(&log, "loss"), "1700000002000 0.5 2\n");
        assert_eq!(metric(&log, "rewards/chosen"), "1700000002000 nan 2\n");
        assert_eq!(metric(&log, "eval_loss"), "1700000003250 -inf 4\n");
        assert_eq!(metric(&log, "epoch"), "1700000002000 0.5 2\n1700000003250 1.0 4\n");
        let read = |name: &str| fs::read_to_string(log.folder.join(name)).unwrap();
        assert_eq!(read("params/beta"), "0.1");
        assert_eq!(read("params/dataset_mixer.owner/set: one"), "a: \"b\"");
        assert_eq!(read("tags/mlflow.runName"), "my run");
        assert!(read(META).contains("\nstatus: 1\n") && read(META).contains("end_time: null"));
        log.end(true, 1_700_000_004.0).unwrap();
        let meta = fs::read_to_string(log.folder.join(META)).unwrap();
        assert!(meta.contains("\nstatus: 3\n") && meta.contains("end_time: 1700000004000"));
        let experiment = fs::read_to_string(dir.path().join(&log.experiment).join(META)).unwrap();
        assert!(experiment.contains("name: \"a project\""), "{experiment}");
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let rows: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", step as f64)])).collect();
        let mut log = Mlflow::open_in(dir.path(), &run, &[]).unwrap();
        for row in &rows {
            log.log(row, row.step as f64).unwrap();
        }
        let mut log = Mlflow::open_in(dir.path(), &run, &rows[..2]).unwrap();
        log.log(&rows[2], 30.0).unwrap();
        assert_eq!(metric(&log, "loss"), "1000 1.0 1\n2000 2.0 2\n30000 3.0 3\n");
        let experiments = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(experiments, 1, "the experiment was found again");
    }

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(entity_name("rewards/chosen (x)").as_deref(), Some("rewards/chosen _x_"));
        for name in ["../x", "/x", "a//b", "a/./b", ""] {
            assert_eq!(entity_name(name), None, "{name}");
        }
        assert_eq!(folder_of_uri("file:///a/b").unwrap(), Path::new("/a/b"));
        assert_eq!(folder_of_uri("./runs").unwrap(), Path::new("./runs"));
        let error = folder_of_uri("http://localhost:5000").unwrap_err().to_string();
        assert!(error.contains("MLFLOW_TRACKING_URI is http"), "{error}");
        assert_eq!(uri_of(Path::new("/a b/c")), "file:///a%20b/c");
    }
}
