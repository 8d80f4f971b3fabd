//! Reports: progress bars and log lines, TensorBoard, result files and the model card of a run, and
//! comparisons of finished runs (records, charts, the page). Reports receive events and facts,
//! never tensors.

pub mod card_scores;
pub mod chart;
pub mod charts;
pub mod columns;
pub mod console;
pub mod figures;
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

use crate::train::event::{Event, LogRow, Observer};
use screen::{Screen, TRAINING};
use tensorboard::TensorBoard;

/// Settings of the reports of a run.
#[derive(Clone)]
pub struct ReporterOptions {
    /// The run's folder; TensorBoard's files go to its sub-folder `runs` unless
    /// `tensorboard_dir` is set.
    pub output_dir: PathBuf,
    /// Shows lines and bars; it knows `quiet` and whether it has a terminal.
    pub screen: Screen,
    pub tensorboard: bool,
    /// The folder of the event files; those of earlier starts of the run are replaced.
    pub tensorboard_dir: Option<PathBuf>,
}

/// The observer of a run: passes each event to the screen and to TensorBoard. A terminal or disk
/// that fails does not end the training: one warning is shown, and the run continues without that
/// report.
///
/// TensorBoard's files are opened at [`Event::Start`]; if that fails, the run fails.
pub struct Reporters {
    options: ReporterOptions,
    screen_is_gone: bool,
    board: Option<TensorBoard>,
    max_steps: Option<u64>,
}

impl Reporters {
    /// Reports of a run that has not begun.
    pub fn new(options: ReporterOptions) -> Self {
        Reporters { options, screen_is_gone: false, board: None, max_steps: None }
    }

    /// Opens TensorBoard's files if they are wanted. Rows of `history` are written into the new file.
    fn open_board(&mut self, history: &[LogRow]) -> io::Result<()> {
        let options = &self.options;
        if !options.tensorboard {
            return Ok(());
        }
        let (folder, run) = match &options.tensorboard_dir {
            Some(folder) => (folder.clone(), Some(tensorboard::run_id(&options.output_dir))),
            None => (options.output_dir.join("runs"), None),
        };
        self.board = Some(TensorBoard::open(&folder, run.as_deref(), history)?);
        Ok(())
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
            Event::Start { history } => self.open_board(history)?,
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
        if let Event::Log(row) = event
            && let Some(board) = &mut self.board
            && let Err(error) = board.log(row)
        {
            tracing::warn!("no further values for TensorBoard: {error}; the run continues");
            self.board = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
