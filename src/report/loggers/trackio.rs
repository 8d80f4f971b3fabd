//! `report_to: trackio`: a run in trackio's local store, an SQLite database for each project, with
//! the names of transformers' `TrackioCallback`.
//!
//! Table `metrics` has a row for each row of the log: a JSON object and a running number from 0 on
//! as its step. Table `configs` has the recipe's keys. trackio adds tables and columns of its own
//! when it opens the database.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Transaction, params};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

use super::logger::{LoggedRun, Logger, named, step_metrics, times_of};
use crate::train::event::LogRow;

const NAME: &str = "trackio";
/// How long another program may hold the database.
const PATIENCE: Duration = Duration::from_secs(30);

/// The tables that a run needs, as trackio creates them.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS metrics (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL,
        timestamp TEXT NOT NULL,
        run_name TEXT NOT NULL,
        step INTEGER NOT NULL,
        metrics TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS configs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL,
        run_name TEXT NOT NULL,
        config TEXT NOT NULL,
        created_at TEXT NOT NULL,
        UNIQUE(run_id)
    );";

/// A run in a project's database.
pub struct Trackio {
    database: Connection,
    path: PathBuf,
    project: String,
    id: String,
    name: String,
    /// Rows of the run in the database.
    rows: u64,
    /// Whether trackio should look in another folder than its own.
    is_elsewhere: bool,
}

impl Trackio {
    /// Writes the run with the rows of `history`. The database is in `trackio/` in `logging_dir`,
    /// else in trackio's own folder (`TRACKIO_DIR`, else `trackio` in the hub's cache). The project
    /// is the recipe's `project`, else `huggingface`.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn open(run: &LoggedRun, history: &[LogRow]) -> io::Result<Self> {
        let own = std::env::var_os("TRACKIO_DIR").filter(|folder| !folder.is_empty());
        let folder = match &run.logging_dir {
            Some(folder) => folder.join("trackio"),
            None => own.map_or_else(|| hf_hub::hf_home().join("trackio"), PathBuf::from),
        };
        let project = run.project.clone().unwrap_or_else(|| "huggingface".to_owned());
        let path = folder.join(format!("{}.db", file_name(&project)));
        std::fs::create_dir_all(&folder)
            .map_err(|error| named(NAME, "create the folder", &folder, &error))?;
        Self::open_at(&path, project, run, history)
            .map_err(|error| named(NAME, "write", &path, &io::Error::other(error)))
    }

    fn open_at(
        path: &Path,
        project: String,
        run: &LoggedRun,
        history: &[LogRow],
    ) -> rusqlite::Result<Self> {
        let mut database = Connection::open(path)?;
        database.busy_timeout(PATIENCE)?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.execute_batch(TABLES)?;
        let (id, name) = (run.identity.id.clone(), run.name.clone());
        let times = times_of(history, &stored_rows(&database, &id)?, run.now);

        let transaction = database.transaction()?;
        transaction.execute("DELETE FROM metrics WHERE run_id = ?1", [&id])?;
        transaction.execute("DELETE FROM configs WHERE run_id = ?1", [&id])?;
        let created = moment(run.identity.started);
        let own = [
            ("_Username".to_owned(), Value::Null),
            ("_Created".to_owned(), Value::from(created.clone())),
            ("_Group".to_owned(), Value::Null),
        ];
        let config: Map<String, Value> = own.into_iter().chain(run.config.clone()).collect();
        transaction.execute(
            "INSERT INTO configs (run_id, run_name, config, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![id, name, Value::Object(config).to_string(), created],
        )?;
        for ((row, time), n) in history.iter().zip(times).zip(0..) {
            insert(&transaction, (&id, &name), row, time, n)?;
        }
        transaction.commit()?;
        Ok(Self {
            database,
            path: path.to_path_buf(),
            project,
            id,
            name,
            rows: history.len() as u64,
            is_elsewhere: run.logging_dir.is_some(),
        })
    }

    fn insert(&mut self, row: &LogRow, time: f64) -> rusqlite::Result<()> {
        let transaction = self.database.transaction()?;
        insert(&transaction, (&self.id, &self.name), row, time, self.rows)?;
        transaction.commit()
    }
}

impl Logger for Trackio {
    fn name(&self) -> &'static str {
        NAME
    }

    fn log(&mut self, row: &LogRow, time: f64) -> io::Result<()> {
        let inserted = self.insert(row, time);
        inserted.map_err(|error| named(NAME, "write", &self.path, &io::Error::other(error)))?;
        self.rows += 1;
        Ok(())
    }

    fn end(&mut self, _is_finished: bool, _time: f64) -> io::Result<()> {
        Ok(())
    }

    fn viewer(&self) -> String {
        let command = format!("trackio show --project {:?}", self.project);
        match self.path.parent().filter(|_| self.is_elsewhere) {
            Some(folder) => format!("TRACKIO_DIR={} {command}", folder.display()),
            None => command,
        }
    }
}

/// The name of a project's database, as trackio derives it.
fn file_name(project: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || ['-', '_'].contains(letter);
    let name: String = project.chars().filter(kept).collect();
    if name.is_empty() { "default".to_owned() } else { name }
}

/// A time in the form of Python's `datetime.isoformat`.
fn moment(seconds: f64) -> String {
    let format = format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00"
    );
    let nanoseconds = (seconds * 1e6).round() as i128 * 1000;
    let moment = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok();
    moment.and_then(|moment| moment.format(format).ok()).unwrap_or_default()
}

fn insert(
    transaction: &Transaction,
    (id, name): (&str, &str),
    row: &LogRow,
    time: f64,
    n: u64,
) -> rusqlite::Result<()> {
    let metrics: Map<String, Value> = step_metrics(row).into_iter().collect();
    let mut statement = transaction.prepare(
        "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    statement.execute(params![id, moment(time), name, n, Value::Object(metrics).to_string()])?;
    Ok(())
}

/// Step and time of each row of a run.
fn stored_rows(database: &Connection, id: &str) -> rusqlite::Result<Vec<(u64, f64)>> {
    let mut statement = database.prepare(
        "SELECT json_extract(metrics, '$.\"train/global_step\"'), \
         CAST(strftime('%s', timestamp) AS INTEGER), CAST(substr(timestamp, 21, 6) AS INTEGER) \
         FROM metrics WHERE run_id = ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([id], |row| {
        let (step, seconds): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
        let microseconds: Option<i64> = row.get(2)?;
        let time = seconds.map(|seconds| seconds as f64 + microseconds.unwrap_or(0) as f64 / 1e6);
        Ok((step.and_then(|step| u64::try_from(step).ok()), time))
    })?;
    let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
    Ok(rows.into_iter().map_while(|(step, time)| step.zip(time)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::logger::tests::{row, run_in};
    use super::*;

    fn rows(log: &Trackio) -> Vec<(i64, String, Value)> {
        let mut statement = log
            .database
            .prepare("SELECT step, timestamp, metrics FROM metrics ORDER BY id")
            .unwrap();
        let rows = statement.query_map([], |row| {
            let metrics: String = row.get(2)?;
            Ok((row.get(0)?, row.get(1)?, serde_json::from_str(&metrics).unwrap()))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn rows_are_those_of_trackio() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let mut log = Trackio::open(&run, &[]).unwrap();
        assert_eq!(log.path, dir.path().join("logs/trackio/aproject.db"));
        let last = row(2, &[("loss", 0.5), ("grad_norm", f64::NAN), ("train_runtime", 3.0)]);
        log.log(&last, 1_700_000_002.25).unwrap();
        let expected = json!({"train/loss": 0.5, "train/grad_norm": "NaN", "train/epoch": 0.5,
            "train/global_step": 2});
        let time = "2023-11-14T22:13:22.250000+00:00".to_owned();
        assert_eq!(rows(&log), [(0, time, expected)]);
        let query = "SELECT config FROM configs WHERE run_name = 'my run'";
        let config: String = log.database.query_row(query, [], |row| row.get(0)).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["beta"], 0.1);
        assert_eq!(config["_Created"], "2023-11-14T22:13:20.250000+00:00");
    }

    #[test]
    fn a_resumed_run_has_each_step_once_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        let mut other = run_in(dir.path());
        other.identity.id = "f".repeat(32);
        let history: Vec<LogRow> = (1..=3).map(|step| row(step, &[("loss", 1.0)])).collect();
        let mut foreign = Trackio::open(&other, &[]).unwrap();
        foreign.log(&history[0], 5.0).unwrap();
        let mut log = Trackio::open(&run, &[]).unwrap();
        for row in &history {
            log.log(row, row.step as f64 * 100.5).unwrap();
        }
        let mut log = Trackio::open(&run, &history[..2]).unwrap();
        log.log(&history[2], 1000.0).unwrap();
        let stored = stored_rows(&log.database, &run.identity.id).unwrap();
        assert_eq!(stored, [(1, 100.5), (2, 201.0), (3, 1000.0)]);
        assert_eq!(stored_rows(&log.database, &other.identity.id).unwrap().len(), 1);
        assert_eq!(rows(&log).last().unwrap().0, 2, "steps count from 0");
    }

    #[test]
    fn databases_have_the_names_of_trackio() {
        assert_eq!(
            ["my.model", "a b/c", "..", "é-1_"].map(file_name),
            ["mymodel", "abc", "default", "é-1_"]
        );
    }
}
