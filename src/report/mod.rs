//! Events out: progress bars and log lines, TensorBoard, result files, the model card. Receives events and plain facts,
//! knows no tensor. And reports of finished runs: records read back, charts, the page.

pub mod chart;
pub mod columns;
pub mod console;
pub mod figures;
pub mod loss_charts;
pub mod model_card;
pub mod page;
pub mod progress;
pub mod published;
pub mod record;
pub mod results;
pub mod results_table;
pub mod run_facts;
pub mod tensorboard;
pub mod ticks;

use std::io;
use std::path::PathBuf;

use crate::train::event::{Event, LogRow, Observer};
use progress::{Screen, TRAINING};
use tensorboard::TensorBoard;

/// What the reports of a run need to know.
#[derive(Clone)]
pub struct ReporterOptions {
    /// The run's folder; TensorBoard's files go to its `runs` unless `tensorboard_dir` says otherwise.
    pub output_dir: PathBuf,
    /// Where lines and bars go; it carries `quiet` and whether there is a terminal.
    pub screen: Screen,
    pub tensorboard: bool,
    /// Event files that earlier starts of the run wrote into it are superseded.
    pub tensorboard_dir: Option<PathBuf>,
}

/// The observer of a run: hands each event to the screen and to TensorBoard. Training does not end because a terminal or
/// the disk of the event files is gone: that is told once, and the run goes on without them.
///
/// TensorBoard's files are opened at [`Event::Start`]; an error there is an error of the run.
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
            tracing::warn!("lines can no longer be shown ({error}); the run goes on");
        }
        if let Event::Log(row) = event
            && let Some(board) = &mut self.board
            && let Err(error) = board.log(row)
        {
            tracing::warn!("no further values for TensorBoard: {error}; the run goes on");
            self.board = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
