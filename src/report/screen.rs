//! The terminal: progress bars on stderr and lines on stdout that do not disturb each other.
//! Without a terminal, or with `quiet`, only lines are shown.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::files::printable::printable;

/// The phase whose bar shows optimizer steps.
pub const TRAINING: &str = "training";
/// A phase that repeats often; without bars its log row is enough.
const EVALUATION: &str = "evaluation";
/// How often a long phase reports its progress if bars are off.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// How often bars redraw by themselves, so that the clock moves during a slow step.
const TICK: Duration = Duration::from_millis(250);

/// The user's screen. Clones share it, and it may be used from any thread.
#[derive(Clone)]
pub struct Screen(Arc<Shared>);

struct Shared {
    /// `None`: lines only.
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
    /// When the phase was first reported, and what was done then: a resumed phase starts far along.
    started: Option<(Instant, u64)>,
    reported: Instant,
}

impl Screen {
    /// Lines go to stdout. Bars go to stderr if it is a terminal and `quiet` is false.
    pub fn detect(quiet: bool) -> Self {
        Screen::new(io::stderr().is_terminal(), quiet, Box::new(io::stdout()))
    }

    /// Lines go to `out`. Bars are drawn on stderr if `is_terminal` is true and `quiet` is false.
    /// If both are false, a line announces each phase.
    pub fn new(is_terminal: bool, quiet: bool, out: Box<dyn Write + Send>) -> Self {
        let bars = (is_terminal && !quiet).then(MultiProgress::new);
        Screen(Arc::new(Shared { bars, quiet, phases: Mutex::default(), out: Mutex::new(out) }))
    }

    /// Prints a line above the bars, [`printable`].
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn line(&self, text: &str) -> io::Result<()> {
        self.beside_bars(|| {
            let mut out = lock(&self.0.out);
            writeln!(out, "{}", printable(text))?;
            out.flush()
        })
    }

    /// Like [`Self::line`], but a line that cannot be shown only gives a warning.
    pub fn tell(&self, text: &str) {
        if let Err(error) = self.line(text) {
            tracing::warn!("cannot show a line ({error}): {text}");
        }
    }

    /// Begins a phase of `total` units named `unit`; ends a running phase of the same name.
    ///
    /// # Errors
    /// The line that announces the phase cannot be written.
    pub fn begin(&self, name: &str, total: u64, unit: &str) -> io::Result<()> {
        self.end(name);
        let bar = self.0.bars.as_ref().map(|bars| new_bar(bars, name, total, unit));
        let silent = bar.is_some() || self.0.quiet || name == EVALUATION;
        let phase = Phase {
            name: name.to_owned(),
            total,
            unit: unit.to_owned(),
            bar,
            started: None,
            reported: Instant::now(),
        };
        lock(&self.0.phases).push(phase);
        if silent { Ok(()) } else { self.line(format!("{name}: {total} {unit}").trim_end()) }
    }

    /// Reports that `done` units of the phase are done. Does nothing if the phase has not begun.
    ///
    /// # Errors
    /// The line that reports progress without bars cannot be written.
    pub fn advance(&self, name: &str, done: u64, message: &str) -> io::Result<()> {
        let report = {
            let mut phases = lock(&self.0.phases);
            match phases.iter_mut().find(|phase| phase.name == name) {
                Some(phase) => phase.advance(done, message, self.0.quiet),
                None => None,
            }
        };
        report.map_or(Ok(()), |text| self.line(&text))
    }

    /// Ends the phase and removes its bar.
    pub fn end(&self, name: &str) {
        let mut phases = lock(&self.0.phases);
        if let Some(index) = phases.iter().position(|phase| phase.name == name)
            && let Some(bar) = phases.remove(index).bar
        {
            bar.finish_and_clear();
        }
    }

    /// Begins, advances and ends a phase from its counts alone, for work that reports only these.
    /// Errors of writing are ignored.
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

    /// A writer to stderr for the program's log (`tracing`) that does not disturb the bars.
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
    /// Moves the bar; without bars, returns a line from time to time.
    fn advance(&mut self, done: u64, message: &str, quiet: bool) -> Option<String> {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if self.started.is_none() {
                // Units done before must not count into the speed.
                bar.reset_eta();
            }
            bar.set_message(message.to_owned());
        }
        let started = *self.started.get_or_insert_with(|| (Instant::now(), done));
        let silent = self.bar.is_some() || quiet || self.name == TRAINING;
        if silent || self.reported.elapsed() < REPORT_EVERY {
            return None;
        }
        self.reported = Instant::now();
        let share = 100 * done / self.total.max(1);
        let speed = speed(started, done, self.total, &self.unit);
        let message = if message.is_empty() { String::new() } else { format!(", {message}") };
        let Self { name, total, unit, .. } = self;
        Some(format!("{name}: {done} of {total} {unit} ({share} %){speed}{message}"))
    }
}

/// The speed since the phase started, and the time that is left.
fn speed((start, before): (Instant, u64), done: u64, total: u64, unit: &str) -> String {
    let seconds = start.elapsed().as_secs_f64();
    if done <= before || seconds <= 0.0 {
        return String::new();
    }
    let speed = done.saturating_sub(before) as f64 / seconds;
    let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / speed);
    format!(", {speed:.0} {unit}/s, {} left", HumanDuration(left))
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
    let speed = if unit == "rows" { ", {per_sec}" } else { "" };
    let template = format!(
        "{{prefix}} [{{bar:12}}] {count} {unit} [{{elapsed}} < {{eta}}{speed}] {{wide_msg}}"
    )
    .replace("  ", " ");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = bars.add(ProgressBar::new(total));
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(printable(name));
    bar.enable_steady_tick(TICK);
    bar
}

/// The state is valid even if a thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_does_not_count_what_was_done_before() {
        let start = Instant::now() - Duration::from_secs(10);
        let text = speed((start, 1000), 2000, 7000, "rows");
        assert!(text == ", 100 rows/s, 50 seconds left" || text.contains("99 rows/s"), "{text}");
        assert_eq!(speed((start, 1000), 1000, 7000, "rows"), "");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let (text, shown) = ("a\x1b[2J\rb", r"a\u{1b}[2J\u{d}b");
        let lines = Arc::new(Mutex::new(Vec::new()));
        #[derive(Clone)]
        struct Out(Arc<Mutex<Vec<u8>>>);
        impl Write for Out {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                lock(&self.0).extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        Screen::new(false, true, Box::new(Out(lines.clone()))).line(text).unwrap();
        assert_eq!(String::from_utf8(lock(&lines).clone()).unwrap(), format!("{shown}\n"));
    }
}
