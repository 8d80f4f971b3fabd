//! Reports: progress bars and log lines, loggers, result files and the model card of a run, and
//! comparisons of finished runs (records, charts, the page). Reports receive events and facts,
//! never tensors.

pub mod card_scores;
pub mod chart;
pub mod charts;
pub mod columns;
pub mod console;
pub mod event_files;
pub mod figures;
pub mod loggers;
pub mod loss_charts;
pub mod model_card;
pub mod page;
pub mod published;
pub mod record;
pub mod results;
pub mod results_table;
pub mod run_facts;
pub mod scores;
pub mod screen;
pub mod tensorboard;
pub mod ticks;

use std::io;
use std::path::PathBuf;

use serde_json::Value;

use crate::recipe::Reporter;
use crate::train::event::{Event, LogRow, Observer};
use loggers::identity::RunIdentity;
use loggers::logger::{LoggedRun, Logger, now};
use screen::{Screen, TRAINING};

/// Settings of the reports of a run.
#[derive(Clone)]
pub struct ReporterOptions {
    /// The run's folder. Loggers write into it if they have no place of their own.
    pub output_dir: PathBuf,
    /// Shows lines and bars; it knows `quiet` and whether it has a terminal.
    pub screen: Screen,
    /// The loggers that receive the metrics.
    pub report_to: Vec<Reporter>,
    /// The folder of the loggers' files, if the recipe names one.
    pub logging_dir: Option<PathBuf>,
    /// The run's name in loggers; `None` is the name of `output_dir`.
    pub run_name: Option<String>,
    /// The project in loggers; `None` is each logger's default.
    pub project: Option<String>,
    /// The recipe's keys and values, for loggers.
    pub config: Vec<(String, Value)>,
}

impl ReporterOptions {
    /// A screen without loggers.
    pub fn screen_only(output_dir: PathBuf, screen: Screen) -> Self {
        Self {
            output_dir,
            screen,
            report_to: Vec::new(),
            logging_dir: None,
            run_name: None,
            project: None,
            config: Vec::new(),
        }
    }
}

/// The observer of a run: passes each event to the screen and to the loggers. A terminal or logger
/// that fails does not end the training: one warning is shown, and the run continues without it.
///
/// Loggers are opened at [`Event::Start`].
pub struct Reporters {
    options: ReporterOptions,
    screen_is_gone: bool,
    loggers: Vec<Box<dyn Logger>>,
    /// The identity of the run in the loggers, if they need one.
    identity: Option<RunIdentity>,
    max_steps: Option<u64>,
}

impl Reporters {
    /// Reports of a run that has not begun.
    pub fn new(options: ReporterOptions) -> Self {
        Reporters {
            options,
            screen_is_gone: false,
            loggers: Vec::new(),
            identity: None,
            max_steps: None,
        }
    }

    /// Opens the loggers. Rows of `history` are written into their stores.
    fn open_loggers(&mut self, history: &[LogRow]) {
        let options = &self.options;
        let needs_identity = |reporter: &Reporter| {
            matches!(reporter, Reporter::Wandb | Reporter::Trackio | Reporter::Mlflow)
        };
        let time = now();
        let identity = match options.report_to.iter().any(needs_identity) {
            true => RunIdentity::of(&options.output_dir, !history.is_empty(), time),
            false => Ok(RunIdentity::default()),
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => {
                let folder = options.output_dir.display();
                tracing::warn!("no loggers: cannot write into {folder}: {error}");
                return;
            }
        };
        let folder_name = options.output_dir.file_name();
        let folder_name = folder_name.map_or("run".into(), |name| name.to_string_lossy());
        let run = LoggedRun {
            identity: identity.clone(),
            now: time,
            name: options.run_name.clone().unwrap_or_else(|| folder_name.into_owned()),
            project: options.project.clone(),
            output_dir: options.output_dir.clone(),
            logging_dir: options.logging_dir.clone(),
            config: options.config.clone(),
        };
        for reporter in &options.report_to {
            match loggers::open(*reporter, &run, history) {
                Ok(logger) => self.loggers.push(logger),
                Err(error) => tracing::warn!("{error}; the run continues without this logger"),
            }
        }
        self.identity = options.report_to.iter().any(needs_identity).then_some(identity);
    }

    /// Lets each logger do `work`. A logger that fails is dropped with a warning.
    fn each_logger(&mut self, work: impl Fn(&mut dyn Logger) -> io::Result<()>) {
        self.loggers.retain_mut(|logger| match work(&mut **logger) {
            Ok(()) => true,
            Err(error) => {
                let name = logger.name();
                tracing::warn!("no further values for {name}: {error}; the run continues");
                false
            }
        });
    }

    /// Ends the records of the loggers.
    fn end_loggers(&mut self, is_finished: bool) {
        let time = now();
        self.each_logger(|logger| logger.end(is_finished, time));
        for logger in std::mem::take(&mut self.loggers).iter().filter(|_| is_finished) {
            // A screen that is gone was reported before.
            let _ = self.options.screen.line(&format!("{}: {}", logger.name(), logger.viewer()));
        }
        if let Some(identity) = self.identity.take().filter(|_| is_finished) {
            let finished = RunIdentity { is_finished: true, ..identity };
            if let Err(error) = finished.write(&self.options.output_dir) {
                tracing::warn!("{}: {error}", self.options.output_dir.display());
            }
        }
    }

    fn show(&mut self, event: &Event) -> io::Result<()> {
        match *event {
            Event::Phase { name, total, unit } => self.options.screen.begin(name, total, unit),
            Event::Advance { name, done, message } => {
                self.options.screen.advance(name, done, message)
            }
            Event::PhaseEnd { name } => {
                self.options.screen.end(name);
                Ok(())
            }
            Event::Step { step, loss, margin, tokens_per_second, .. } => {
                let message = console::step_message(loss, margin, tokens_per_second);
                self.options.screen.advance(TRAINING, step, &message)
            }
            Event::Log(row) => self.options.screen.line(&console::row_line(row, self.max_steps)),
            Event::Saved { path } => self.options.screen.line(&format!("saved {}", path.display())),
            Event::Message(text) => self.options.screen.line(text),
            Event::Start { .. } => Ok(()),
        }
    }
}

impl Observer for Reporters {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match *event {
            Event::Start { history } => self.open_loggers(history),
            Event::Phase { name, total, .. } if name == TRAINING => self.max_steps = Some(total),
            Event::Step { max_steps, .. } => self.max_steps = Some(max_steps),
            _ => {}
        }
        if !self.screen_is_gone
            && let Err(error) = self.show(event)
        {
            self.screen_is_gone = true;
            tracing::warn!("lines can no longer be shown ({error}); the run continues");
        }
        let time = now();
        match *event {
            Event::Log(row) => self.each_logger(|logger| logger.log(row, time)),
            Event::Saved { path } => {
                self.each_logger(|logger| logger.saved(path, time));
                if path == self.options.output_dir {
                    self.end_loggers(true);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A run that stops before its end.
impl Drop for Reporters {
    fn drop(&mut self) {
        self.end_loggers(false);
    }
}

#[cfg(test)]
mod tests;
