//! Runs as child processes, several at a time: each writes into a log file in its folder, and a signal to the
//! sweep is passed on to them, once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::Run;
use super::record::StartRecord;
use crate::commands::signals::PARENT;
use crate::report::progress::Screen;

/// A run's output.
pub const LOG: &str = "run.log";
/// How often children are looked after.
const LOOK: Duration = Duration::from_millis(50);

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
    /// What is known of a run that nobody starts now: its mark, else the error that its last start left, in the record or
    /// (as a task of a job array, which nobody waited for) at the end of its log.
    pub fn known(run: &Run) -> Self {
        if run.is_finished() {
            return Self::Finished;
        }
        let recorded = StartRecord::read(run).and_then(|record| record.error);
        let logged = || failure(&read_from(&run.log(), 0).ok()?);
        recorded.or_else(logged).map_or(Self::NotDone, Self::Failed)
    }

    /// With what the run failed.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Failed(error) => Some(error.clone()),
            Self::Finished | Self::NotDone => None,
        }
    }
}

/// A run at work.
struct Working<'a> {
    index: usize,
    run: &'a Run,
    child: Child,
    started: Instant,
    /// Where this start's output begins in the log.
    log_start: u64,
}

/// Starts all `runs` in their order, `at_once` at a time. A failing one does not keep the others; after a signal no
/// further one begins.
pub fn run_all(
    runs: &[&Run],
    at_once: usize,
    stop: &AtomicBool,
    screen: &Screen,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::NotDone; runs.len()];
    let mut waiting = runs.iter().enumerate();
    let mut working: Vec<Working> = Vec::new();
    let mut told = false;
    loop {
        let is_stopping = stop.load(Ordering::Relaxed);
        if is_stopping && !told {
            working.iter().for_each(Working::ask_to_stop);
            told = true;
        }
        while !is_stopping && working.len() < at_once {
            let Some((index, run)) = waiting.next() else { break };
            screen.line(&format!("run {} of {}: {}", index + 1, runs.len(), run.name))?;
            working.push(Working::start(index, run, at_once)?);
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
                    StartRecord::end(work.run.folder(), seconds, outcome.error())?;
                    outcomes[work.index] = outcome;
                }
            }
        }
        working = still;
        std::thread::sleep(LOOK);
    }
}

impl<'a> Working<'a> {
    fn start(index: usize, run: &'a Run, at_once: usize) -> anyhow::Result<Self> {
        StartRecord::begin(run)?;
        let failed = || format!("cannot start {}", run.name);
        let log = File::options().create(true).append(true).open(run.log()).with_context(failed)?;
        let log_start = log.metadata().with_context(failed)?.len();
        let program = std::env::current_exe().with_context(failed)?;
        let mut command = Command::new(program);
        command.args(&run.arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().with_context(failed)?).stderr(log);
        // In a group of its own it does not hear the terminal's Ctrl-C: it gets one signal, from here.
        command.process_group(0);
        command.env(PARENT, std::process::id().to_string());
        if let Some(token) = &run.token {
            command.env("HF_TOKEN", token);
        }
        if at_once > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / at_once).max(1).to_string());
        }
        let child = command.spawn().with_context(failed)?;
        Ok(Self { index, run, child, started: Instant::now(), log_start })
    }

    /// It finishes its step and saves.
    fn ask_to_stop(&self) {
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            tracing::warn!("{}: cannot be told to stop: {error}", self.run.name);
        }
    }

    fn outcome(&self, status: ExitStatus, is_stopping: bool) -> Outcome {
        if status.success() && self.run.is_trained() {
            return Outcome::Finished;
        }
        if is_stopping {
            return Outcome::NotDone;
        }
        if let Some(signal) = status.signal() {
            return Outcome::Failed(format!("killed by signal {signal}"));
        }
        let text = read_from(&self.run.log(), self.log_start).unwrap_or_default();
        let last_line = || text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let error = failure(&text).or_else(|| last_line().map(ToOwned::to_owned));
        Outcome::Failed(error.unwrap_or_else(|| format!("ended with {status}")))
    }

    fn told(&self, outcome: &Outcome) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        match outcome {
            Outcome::Finished => format!("finished {} in {seconds:.1} s", self.run.name),
            Outcome::NotDone => format!("interrupted {}", self.run.name),
            Outcome::Failed(error) => {
                format!("FAILED {}: {error} (see {})", self.run.name, self.run.log().display())
            }
        }
    }
}

/// A log from the byte `start` on.
fn read_from(log: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The error with which a log ends: nothing but its causes and its advice follows. Of a panic it is what is said, which
/// stands behind the place.
fn failure(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let is_error = |line: &&str| line.starts_with("error") || line.contains("panicked at");
    let at = lines.iter().rposition(is_error)?;
    let is_panic = !lines[at].starts_with("error");
    let said = if is_panic { *lines.get(at + 1)? } else { lines[at] };
    let belongs = |line: &&str| line.starts_with([' ', '\t']) || is_advice(line);
    let mut behind = lines.iter().skip(at + 1 + usize::from(is_panic));
    behind.all(belongs).then(|| said.trim().trim_start_matches("error: ").to_owned())
}

fn is_advice(line: &str) -> bool {
    ["help:", "note:", "="].iter().any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_ends_with_an_error_tells_it() {
        let error = "step 1\nerror: no room\n  because: full\nhelp: make room\n\n";
        assert_eq!(failure(error).as_deref(), Some("no room"));
        let panic = "step 1\n\nthread 'main' (7) panicked at src/a.rs:3:5:\nindex out of bounds\nnote: run with …\n";
        assert_eq!(failure(panic).as_deref(), Some("index out of bounds"));
        assert_eq!(failure(&format!("{error}resuming at step 1\n")), None, "it went on");
        assert_eq!(failure("step 1\nstep 2\n"), None);
    }

    #[test]
    fn a_log_is_read_from_where_a_start_begins() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(LOG);
        let earlier = "error: of an earlier start\n";
        std::fs::write(&log, format!("{earlier}step 1\n")).unwrap();
        assert_eq!(read_from(&log, earlier.len() as u64).unwrap(), "step 1\n");
    }
}
