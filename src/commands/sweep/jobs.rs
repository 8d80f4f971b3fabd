//! Runs as child processes, several at a time: each writes into a log file in its folder, and a signal to the
//! sweep is passed on to them, once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::Run;
use super::record::StartRecord;
use crate::commands::outputs;
use crate::report::progress::Screen;

/// A run's output.
pub const LOG: &str = "run.log";
/// How often children are looked after.
const LOOK: Duration = Duration::from_millis(50);

/// A run that is to be started.
pub struct Job {
    pub name: String,
    pub folder: PathBuf,
    pub log: PathBuf,
    pub arguments: Vec<String>,
}

impl Job {
    pub fn new(run: &Run) -> Self {
        Self {
            name: run.name.clone(),
            folder: run.folder().into(),
            log: run.log(),
            arguments: run.arguments.clone(),
        }
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Finished,
    /// With the last error that it wrote.
    Failed(String),
    /// A signal came before it was finished, or before it began.
    NotDone,
}

impl Outcome {
    /// What is known of a run that nobody starts now: its mark, else the error that its last start left.
    pub fn known(run: &Run) -> Self {
        match StartRecord::read(run).and_then(|record| record.error) {
            _ if run.is_finished() => Self::Finished,
            Some(error) => Self::Failed(error),
            None => Self::NotDone,
        }
    }

    /// With what the run failed.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Failed(error) => Some(error.clone()),
            Self::Finished | Self::NotDone => None,
        }
    }
}

/// A job at work.
struct Working<'a> {
    index: usize,
    job: &'a Job,
    child: Child,
    started: Instant,
    /// Where this start's output begins in the log.
    log_start: u64,
}

/// Runs all jobs in their order, `at_once` at a time. A failing one does not keep the others; after a signal no
/// further one begins.
pub fn run_all(
    jobs: &[Job],
    at_once: usize,
    stop: &AtomicBool,
    screen: &Screen,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::NotDone; jobs.len()];
    let mut waiting = jobs.iter().enumerate();
    let mut working: Vec<Working> = Vec::new();
    let mut told = false;
    loop {
        let is_stopping = stop.load(Ordering::Relaxed);
        if is_stopping && !told {
            working.iter().for_each(Working::ask_to_stop);
            told = true;
        }
        while !is_stopping && working.len() < at_once {
            let Some((index, job)) = waiting.next() else { break };
            screen.line(&format!("run {} of {}: {}", index + 1, jobs.len(), job.name))?;
            working.push(Working::start(index, job, at_once)?);
        }
        if working.is_empty() {
            return Ok(outcomes);
        }
        let mut still = Vec::new();
        for mut work in working {
            match work.child.try_wait().context("cannot wait for a run")? {
                None => still.push(work),
                Some(status) => {
                    let outcome = work.outcome(status, told);
                    screen.line(&work.told(&outcome))?;
                    let seconds = work.started.elapsed().as_secs_f64();
                    StartRecord::end(&work.job.folder, seconds, outcome.error())?;
                    outcomes[work.index] = outcome;
                }
            }
        }
        working = still;
        std::thread::sleep(LOOK);
    }
}

impl<'a> Working<'a> {
    fn start(index: usize, job: &'a Job, at_once: usize) -> anyhow::Result<Self> {
        let failed = || format!("cannot start {}", job.name);
        let log = File::options().create(true).append(true).open(&job.log).with_context(failed)?;
        let log_start = log.metadata().with_context(failed)?.len();
        let program = std::env::current_exe().with_context(failed)?;
        let mut command = Command::new(program);
        command.args(&job.arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().with_context(failed)?).stderr(log);
        // In a group of its own it does not hear the terminal's Ctrl-C: it gets one signal, from here.
        command.process_group(0);
        if at_once > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / at_once).max(1).to_string());
        }
        let child = command.spawn().with_context(failed)?;
        Ok(Self { index, job, child, started: Instant::now(), log_start })
    }

    /// It finishes its step and saves.
    fn ask_to_stop(&self) {
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            tracing::warn!("{}: cannot be told to stop: {error}", self.job.name);
        }
    }

    fn outcome(&self, status: ExitStatus, is_stopping: bool) -> Outcome {
        if status.success() && outputs::is_finished(&self.job.folder) {
            return Outcome::Finished;
        }
        if is_stopping {
            return Outcome::NotDone;
        }
        if let Some(signal) = status.signal() {
            return Outcome::Failed(format!("killed by signal {signal}"));
        }
        let error = last_error(&self.job.log, self.log_start).unwrap_or_default();
        Outcome::Failed(error.unwrap_or_else(|| format!("ended with {status}")))
    }

    fn told(&self, outcome: &Outcome) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        match outcome {
            Outcome::Finished => format!("finished {} in {seconds:.1} s", self.job.name),
            Outcome::NotDone => format!("interrupted {}", self.job.name),
            Outcome::Failed(error) => {
                format!("FAILED {}: {error} (see {})", self.job.name, self.job.log.display())
            }
        }
    }
}

/// The last line of a log, from `start` on, that is an error; the last line of all where none is.
fn last_error(log: &Path, start: u64) -> io::Result<Option<String>> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_error = |line: &&&str| line.starts_with("error") || line.contains("panicked at");
    let found = lines.iter().rfind(is_error).or(lines.last());
    Ok(found.map(|line| line.trim_start_matches("error: ").to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_this_start_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(LOG);
        let earlier = "error: of an earlier start\n";
        std::fs::write(&log, format!("{earlier}step 1\nerror: no room\n  because: full\n\n"))
            .unwrap();
        let start = earlier.len() as u64;
        assert_eq!(last_error(&log, start).unwrap().as_deref(), Some("no room"));
        std::fs::write(&log, format!("{earlier}step 1\nstep 2\n")).unwrap();
        assert_eq!(last_error(&log, start).unwrap().as_deref(), Some("step 2"));
        std::fs::write(&log, earlier).unwrap();
        assert_eq!(last_error(&log, start).unwrap(), None);
    }
}
