//! Runs as child processes, several at a time. Each writes its output into a log file in its
//! folder, and its error into another file. The sweep passes a signal on to them once.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::record::StartRecord;
use super::run::Run;
use crate::commands::error_file::{self, RunError};
use crate::commands::signals::PARENT;
use crate::files::folder_lock;
use crate::report::screen::Screen;

/// Time between two looks at the child processes.
const LOOK: Duration = Duration::from_millis(50);
/// Signals that ask a run to stop.
const ASKING: [i32; 4] = [SIGTERM, SIGUSR1, SIGINT, SIGHUP];

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Finished,
    /// With the first line of its error.
    Failed(String),
    /// A signal stopped it, or came before its start.
    NotDone,
}

impl Outcome {
    /// The outcome of earlier starts of a run. Its error is in the record, or in its error file if
    /// it was a task of a job array, for which no sweep wrote the record.
    pub fn of_earlier(run: &Run) -> Self {
        if run.is_finished() {
            return Self::Finished;
        }
        let recorded = StartRecord::read(run).and_then(|record| record.error);
        let left = || Some(RunError::read(&run.error_file())?.first_line().to_owned());
        recorded.or_else(left).map_or(Self::NotDone, Self::Failed)
    }

    /// The error of a failed run.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Failed(error) => Some(error.clone()),
            Self::Finished | Self::NotDone => None,
        }
    }
}

/// A run whose process was started.
struct Working<'a> {
    index: usize,
    run: &'a Run,
    child: Child,
    started: Instant,
}

/// Starts all `runs` in their order, `at_once` at a time. The others continue after one fails; no
/// run starts after a signal. If another process still trains into a run's folder, later runs start
/// first: a run of a killed sweep saves before it ends.
pub fn run_all(
    runs: &[&Run],
    at_once: usize,
    stop: &AtomicBool,
    screen: &Screen,
) -> anyhow::Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::NotDone; runs.len()];
    let mut waiting: Vec<(usize, &Run)> = runs.iter().copied().enumerate().collect();
    let mut working: Vec<Working> = Vec::new();
    let mut asked = false;
    // The run that the screen says is waiting for its folder.
    let mut held_up = None;
    loop {
        let is_stopping = stop.load(Ordering::Relaxed);
        if is_stopping && !asked {
            working.iter().for_each(Working::ask_to_stop);
            asked = true;
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
                    let outcome = work.outcome(status, asked);
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

/// Prints and records the outcome of a run.
fn end(run: &Run, seconds: f64, outcome: &Outcome, screen: &Screen) {
    screen.tell(&outcome_line(run, seconds, outcome));
    // The other runs continue even if this folder cannot be written.
    if let Err(error) = StartRecord::end(run.folder(), seconds, outcome.error()) {
        tracing::warn!("{}: cannot write its record: {error:#}", run.name);
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
        // Another process may have trained into the folder with other settings since the first
        // check.
        StartRecord::check([run])?;
        StartRecord::begin(run)?;
        remove_error(run)?;
        let failed = || format!("cannot start {}", run.name);
        let log = File::options().create(true).append(true).open(run.log()).with_context(failed)?;
        let program = std::env::current_exe().with_context(failed)?;
        let mut command = Command::new(program);
        command.args(&run.arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().with_context(failed)?).stderr(log);
        // In its own process group it gets no Ctrl-C from the terminal, only the sweep's signal.
        command.process_group(0);
        command.env(PARENT, std::process::id().to_string());
        command.env(error_file::VARIABLE, run.error_file());
        if let Some(token) = &run.token {
            command.env("HF_TOKEN", token);
        }
        if at_once > 1 && std::env::var_os("RAYON_NUM_THREADS").is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", (cores / at_once).max(1).to_string());
        }
        let child = command.spawn().with_context(failed)?;
        Ok(Self { index, run, child, started: Instant::now() })
    }

    /// Asks the run to finish its step, save and end.
    fn ask_to_stop(&self) {
        if let Err(error) = kill_process(Pid::from_child(&self.child), Signal::TERM) {
            tracing::warn!("{}: cannot be asked to stop: {error}", self.run.name);
        }
    }

    fn outcome(&self, status: ExitStatus, is_stopping: bool) -> Outcome {
        if status.success() && self.run.is_trained() {
            return Outcome::Finished;
        }
        unfinished(status, is_stopping, RunError::read(&self.run.error_file()))
    }
}

/// Removes the error of an earlier start: a run that is killed at once could not remove it.
fn remove_error(run: &Run) -> anyhow::Result<()> {
    let path = run.error_file();
    if RunError::read(&path).is_none() {
        return Ok(());
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The outcome of a run that ended with `status` before it was finished. `error` is what it left in
/// its error file. A run that the sweep asked to stop has not failed unless it left an error.
fn unfinished(status: ExitStatus, is_stopping: bool, error: Option<RunError>) -> Outcome {
    let was_asked = status.signal().is_none_or(|signal| ASKING.contains(&signal));
    if is_stopping && was_asked && error.is_none() {
        return Outcome::NotDone;
    }
    Outcome::Failed(match (status.signal(), error) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(error)) => error.first_line().to_owned(),
        (None, None) => format!("ended with {status}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::recipe::{Recipe, Stage};

    fn run(folder: &Path) -> Run {
        let text =
            format!("model_name_or_path: m\ndataset_name: d\noutput_dir: {}\n", folder.display());
        let recipe = Recipe::parse(&text, Path::new("r.yaml"), Stage::Dpo, &[]).unwrap();
        let (settings, arguments) = (Vec::new(), Vec::new());
        Run { name: "beta-0.1".into(), settings, recipe, arguments, token: None }
    }

    fn silent() -> Screen {
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
            run_all(&[&run], 1, &stop, &silent()).unwrap()
        });
        assert_eq!(outcomes, [Outcome::NotDone]);
        assert!(!run.log().exists(), "it was started");
    }

    #[test]
    fn a_run_that_cannot_start_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scan");
        std::fs::write(&file, "a file in the folder's place").unwrap();
        let run = run(&file.join("beta-0.1"));
        let outcomes = run_all(&[&run, &run], 1, &AtomicBool::new(false), &silent()).unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(_))));
        assert!(outcomes[0].error().unwrap().contains("cannot write"), "{outcomes:?}");
    }

    #[test]
    fn a_failure_while_the_sweep_stops_is_a_failure() {
        let unfinished = |raw: i32, is_stopping: bool, message: Option<&str>| {
            let error = message.map(|text| RunError { message: text.into(), exit_code: 1 });
            unfinished(ExitStatus::from_raw(raw), is_stopping, error)
        };
        let (exit_1, said) = (1 << 8, Some("no room\n  because: full\nhelp: make room"));
        assert_eq!(unfinished(exit_1, true, None), Outcome::NotDone);
        assert_eq!(unfinished(SIGTERM, true, None), Outcome::NotDone);
        assert_eq!(unfinished(exit_1, true, said), Outcome::Failed("no room".into()));
        assert_eq!(unfinished(exit_1, false, said), Outcome::Failed("no room".into()));
        let killed = Outcome::Failed("killed by signal 9".into());
        assert_eq!(unfinished(9, true, None), killed);
        assert_eq!(unfinished(9, false, None), killed);
        let ended = Outcome::Failed("ended with exit status: 1".into());
        assert_eq!(unfinished(exit_1, false, None), ended);
    }

    #[test]
    fn the_error_of_a_task_of_a_job_array_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        assert_eq!(Outcome::of_earlier(&run), Outcome::NotDone);
        let error = r#"{"message": "no room\nhelp: make room", "exit_code": 1}"#;
        std::fs::write(run.error_file(), error).unwrap();
        assert_eq!(Outcome::of_earlier(&run), Outcome::Failed("no room".into()));
    }
}
