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
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::record::StartRecord;
use super::run::Run;
use crate::commands::signals::PARENT;
use crate::files::folder_lock;
use crate::report::progress::Screen;

/// How often children are looked after.
const LOOK: Duration = Duration::from_millis(50);
/// Signals that ask a run to stop.
const ASKING: [i32; 4] = [SIGTERM, SIGUSR1, SIGINT, SIGHUP];

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
    pub fn of_earlier(run: &Run) -> Self {
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
/// further one begins. A run whose folder another process has lets the others pass: that of a killed sweep saves before it
/// ends.
pub fn run_all(
    runs: &[&Run],
    at_once: usize,
    stop: &AtomicBool,
    screen: &Screen,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::NotDone; runs.len()];
    let mut waiting: Vec<(usize, &Run)> = runs.iter().copied().enumerate().collect();
    let mut working: Vec<Working> = Vec::new();
    let mut told = false;
    // The run of which the screen tells that it waits for its folder.
    let mut held_up = None;
    loop {
        let is_stopping = stop.load(Ordering::Relaxed);
        if is_stopping && !told {
            working.iter().for_each(Working::ask_to_stop);
            told = true;
        }
        while !is_stopping && working.len() < at_once {
            let is_free = |(_, run): &(usize, &Run)| !folder_lock::is_taken(run.folder());
            let Some(next) = waiting.iter().position(is_free) else {
                if let Some((index, run)) = waiting.first()
                    && held_up.replace(*index) != Some(*index)
                {
                    screen.tell(&held_up_by(run));
                }
                break;
            };
            let (index, run) = waiting.remove(next);
            screen.tell(&format!("run {} of {}: {}", index + 1, runs.len(), run.name));
            match Working::start(index, run, at_once) {
                Ok(work) => working.push(work),
                Err(error) => {
                    outcomes[index] = Outcome::Failed(format!("{error:#}"));
                    screen.tell(&outcome_line(run, 0.0, &outcomes[index]));
                }
            }
        }
        if working.is_empty() && (is_stopping || waiting.is_empty()) {
            return Ok(outcomes);
        }
        let mut still = Vec::new();
        for mut work in working {
            match work.child.try_wait().context("cannot wait for a run")? {
                None => still.push(work),
                Some(status) => {
                    let outcome = work.outcome(status, told);
                    end(work.run, work.started.elapsed().as_secs_f64(), &outcome, screen);
                    outcomes[work.index] = outcome;
                }
            }
        }
        working = still;
        std::thread::sleep(LOOK);
    }
}

fn held_up_by(run: &Run) -> String {
    format!("waiting for another process that trains into {}", run.folder().display())
}

/// Tells and notes what became of a run.
fn end(run: &Run, seconds: f64, outcome: &Outcome, screen: &Screen) {
    screen.tell(&outcome_line(run, seconds, outcome));
    // A folder that cannot be written is no reason to end the other runs.
    if let Err(error) = StartRecord::end(run.folder(), seconds, outcome.error()) {
        tracing::warn!("{}: its time cannot be noted: {error:#}", run.name);
    }
}

fn outcome_line(run: &Run, seconds: f64, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Finished => format!("finished {} in {seconds:.1} s", run.name),
        Outcome::NotDone => format!("interrupted {}", run.name),
        Outcome::Failed(error) => {
            format!("FAILED {}: {error} (see {})", run.name, run.log().display())
        }
    }
}

impl<'a> Working<'a> {
    fn start(index: usize, run: &'a Run, at_once: usize) -> anyhow::Result<Self> {
        // The process that had the folder may have left something of other settings.
        StartRecord::check([run])?;
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
        let text = read_from(&self.run.log(), self.log_start).unwrap_or_default();
        unfinished(status, is_stopping, &text)
    }
}

/// What became of a run that ended with `status` before it was finished; `log` is what this start wrote. While the sweep is
/// stopping that is no failure, unless the run tells of one.
fn unfinished(status: ExitStatus, is_stopping: bool, log: &str) -> Outcome {
    let was_asked = status.signal().is_none_or(|signal| ASKING.contains(&signal));
    let failure = failure(log);
    if is_stopping && was_asked && failure.is_none() {
        return Outcome::NotDone;
    }
    if let Some(signal) = status.signal() {
        return Outcome::Failed(format!("killed by signal {signal}"));
    }
    let last_line = || log.lines().map(str::trim).rfind(|line| !line.is_empty());
    let error = failure.or_else(|| last_line().map(ToOwned::to_owned));
    Outcome::Failed(error.unwrap_or_else(|| format!("ended with {status}")))
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
    use crate::recipe::{Recipe, Stage};

    fn run(folder: &Path) -> Run {
        let text =
            format!("model_name_or_path: m\ndataset_name: d\noutput_dir: {}\n", folder.display());
        let recipe = Recipe::parse(&text, Path::new("r.yaml"), Stage::Dpo, &[]).unwrap();
        let (settings, arguments) = (Vec::new(), Vec::new());
        Run { name: "beta-0.1".into(), settings, recipe, arguments, token: None }
    }

    fn nobody() -> Screen {
        Screen::new(false, true, Box::new(io::sink()))
    }

    #[test]
    fn a_run_waits_for_its_folder_until_a_signal_comes() {
        let folder = tempfile::tempdir().unwrap();
        let locked = File::open(folder.path()).unwrap();
        locked.try_lock().unwrap();
        let run = run(folder.path());
        let stop = AtomicBool::new(false);
        let outcomes = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(4 * LOOK);
                stop.store(true, Ordering::Relaxed);
            });
            run_all(&[&run], 1, &stop, &nobody()).unwrap()
        });
        assert_eq!(outcomes, [Outcome::NotDone]);
        assert!(!run.log().exists(), "it was started");
    }

    #[test]
    fn a_run_that_cannot_start_is_one_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scan");
        std::fs::write(&file, "a file in the folder's place").unwrap();
        let run = run(&file.join("beta-0.1"));
        let outcomes = run_all(&[&run, &run], 1, &AtomicBool::new(false), &nobody()).unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(_))));
        assert!(outcomes[0].error().unwrap().contains("cannot write"), "{outcomes:?}");
    }

    #[test]
    fn a_failure_while_the_sweep_stops_is_one() {
        let stopping = |raw: i32, log: &str| unfinished(ExitStatus::from_raw(raw), true, log);
        let (exit_1, stopped) = (1 << 8, "stopped by a signal after step 2\n");
        assert_eq!(stopping(exit_1, stopped), Outcome::NotDone);
        assert_eq!(stopping(SIGTERM, stopped), Outcome::NotDone);
        assert_eq!(stopping(exit_1, "error: no room\n"), Outcome::Failed("no room".into()));
        let killed = Outcome::Failed("killed by signal 9".into());
        assert_eq!(stopping(9, stopped), killed);
        assert_eq!(unfinished(ExitStatus::from_raw(9), false, stopped), killed);
    }

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
        let log = folder.path().join("run.log");
        let earlier = "error: of an earlier start\n";
        std::fs::write(&log, format!("{earlier}step 1\n")).unwrap();
        assert_eq!(read_from(&log, earlier.len() as u64).unwrap(), "step 1\n");
    }
}
