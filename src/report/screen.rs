//! The terminal: progress bars on stderr, lines on stdout, each out of the other's way. Without a terminal, or when quiet,
//! there are lines only.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The phase whose bar shows the optimizer steps.
pub const TRAINING: &str = "training";
/// The phase that comes again and again; without bars its log row is enough.
const EVALUATION: &str = "evaluation";
/// How often a long phase says where it stands when there are no bars.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// Bars move this often by themselves, so that the clock runs through a slow step.
const TICK: Duration = Duration::from_millis(250);

/// The user's screen. Clones share it; all of it may be used from any thread.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

struct Shared {
    /// None: lines only.
    bars: Option<MultiProgress>,
    quiet: bool,
    phases: Mutex<Vec<Phase>>,
    out: Mutex<Box<dyn Write + Send>>,
}

struct Phase {
    name: String,
    total: u64,
    unit: String,
    bar: Option<ProgressBar>,
    started: bool,
    told: Instant,
}

impl Screen {
    /// Lines on stdout; bars on stderr where that is a terminal and `quiet` is not set.
    pub fn detect(quiet: bool) -> Self {
        Screen::new(io::stderr().is_terminal(), quiet, Box::new(io::stdout()))
    }

    /// Lines go to `out`. Bars are drawn on stderr where `is_terminal` and not `quiet`; where neither, a phase says in a
    /// line that it begins.
    pub fn new(is_terminal: bool, quiet: bool, out: Box<dyn Write + Send>) -> Self {
        let bars = (is_terminal && !quiet).then(MultiProgress::new);
        Screen(Arc::new(Shared { bars, quiet, phases: Mutex::default(), out: Mutex::new(out) }))
    }

    /// Prints a line above the bars.
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.beside_bars(|| {
            let mut out = lock(&self.0.out);
            writeln!(out, "{text}")?;
            out.flush()
        })
    }

    /// As [`Self::line`], for work that goes on where nobody can be shown anything any more.
    pub fn tell(&self, text: &str) {
        if let Err(error) = self.line(text) {
            tracing::warn!("a line cannot be shown ({error}): {text}");
        }
    }

    /// A phase of `total` `unit`s begins; one of the same name that still runs ends.
    ///
    /// # Errors
    /// The line of the phase cannot be written.
    pub fn begin(&self, name: &str, total: u64, unit: &str) -> io::Result<()> {
        self.end(name);
        let bar = self.0.bars.as_ref().map(|bars| new_bar(bars, name, total, unit));
        let silent = bar.is_some() || self.0.quiet || name == EVALUATION;
        let phase = Phase {
            name: name.to_owned(),
            total,
            unit: unit.to_owned(),
            bar,
            started: false,
            told: Instant::now(),
        };
        lock(&self.0.phases).push(phase);
        if silent { Ok(()) } else { self.line(format!("{name}: {total} {unit}").trim_end()) }
    }

    /// `done` of the phase are done. A phase that never began is passed over.
    ///
    /// # Errors
    /// The line that tells a long phase's progress where there are no bars cannot be written.
    pub fn advance(&self, name: &str, done: u64, message: &str) -> io::Result<()> {
        let told = {
            let mut phases = lock(&self.0.phases);
            match phases.iter_mut().find(|phase| phase.name == name) {
                Some(phase) => phase.advance(done, message, self.0.quiet),
                None => None,
            }
        };
        told.map_or(Ok(()), |text| self.line(&text))
    }

    /// The phase is over: its bar goes.
    pub fn end(&self, name: &str) {
        let mut phases = lock(&self.0.phases);
        if let Some(index) = phases.iter().position(|phase| phase.name == name)
            && let Some(bar) = phases.remove(index).bar
        {
            bar.finish_and_clear();
        }
    }

    /// Begins, moves and ends a phase by its numbers alone, for work that reports nothing else. Lines that cannot be written
    /// are lost.
    pub fn update(&self, work: &str, done: u64, total: u64) {
        let running =
            lock(&self.0.phases).iter().any(|phase| phase.name == work && phase.total == total);
        let unit = if work.starts_with("downloading") { "bytes" } else { "rows" };
        let shown = match running {
            true => Ok(()),
            false if done >= total => return,
            false => self.begin(work, total, unit),
        };
        let _ = shown.and_then(|()| self.advance(work, done, ""));
        if done >= total {
            self.end(work);
        }
    }

    /// A writer to stderr for the program's own log (`tracing`), which keeps out of the bars' way.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.clone())
    }

    fn beside_bars<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

impl Phase {
    /// Moves the bar; without one, now and then returns a line.
    fn advance(&mut self, done: u64, message: &str, quiet: bool) -> Option<String> {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if !self.started {
                // A resumed run starts far along; what was done before says nothing of the speed now.
                bar.reset_eta();
            }
            bar.set_message(message.to_owned());
        }
        self.started = true;
        let silent = self.bar.is_some() || quiet || self.name == TRAINING;
        if silent || self.told.elapsed() < TOLD_EVERY {
            return None;
        }
        self.told = Instant::now();
        let share = 100 * done / self.total.max(1);
        let message = if message.is_empty() { String::new() } else { format!(", {message}") };
        Some(format!("{}: {done} of {} {} ({share} %){message}", self.name, self.total, self.unit))
    }
}

/// See [`Screen::log_writer`].
#[derive(Clone)]
pub struct LogWriter(Screen);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.beside_bars(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn new_bar(bars: &MultiProgress, name: &str, total: u64, unit: &str) -> ProgressBar {
    let count = if unit == "bytes" { "{bytes}/{total_bytes}" } else { "{human_pos}/{human_len}" };
    let unit = if unit == "bytes" { "" } else { unit };
    let template =
        format!("{{prefix}} [{{bar:12}}] {count} {unit} [{{elapsed}} < {{eta}}] {{wide_msg}}")
            .replace("  ", " ");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bars.add(ProgressBar::new(total));
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// A thread that died while it held the lock leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
