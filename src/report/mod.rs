//! Events out: progress bars and log lines, TensorBoard, result files, the model card. Receives events and plain facts,
//! knows no tensor. And reports of finished runs: records read back, charts, the page.

pub mod chart;
pub mod columns;
pub mod console;
pub mod figures;
pub mod loss_charts;
pub mod model_card;
pub mod page;
pub mod profile;
pub mod progress;
pub mod published;
pub mod record;
pub mod results;
pub mod results_table;
pub mod run_plan;
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
    /// A folder of this run alone: event files that an earlier start wrote into it are superseded.
    pub tensorboard_dir: Option<PathBuf>,
    /// The rows that the resumed checkpoint knows; empty for a fresh run.
    pub history: Vec<LogRow>,
}

/// The observer of a run: hands each event to the screen and to TensorBoard.
pub struct Reporters {
    screen: Screen,
    board: Option<TensorBoard>,
    max_steps: Option<u64>,
}

impl Reporters {
    /// # Errors
    /// TensorBoard's folder or file cannot be written.
    pub fn new(options: ReporterOptions) -> io::Result<Self> {
        let folder = options.tensorboard_dir.unwrap_or_else(|| options.output_dir.join("runs"));
        let board = options
            .tensorboard
            .then(|| TensorBoard::open(&folder, &options.history))
            .transpose()?;
        Ok(Reporters { screen: options.screen, board, max_steps: None })
    }

    fn log(&mut self, row: &LogRow) -> io::Result<()> {
        self.screen.line(&console::row_line(row, self.max_steps))?;
        match &mut self.board {
            Some(board) => board.log(row),
            None => Ok(()),
        }
    }
}

impl Observer for Reporters {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match *event {
            Event::Phase { name, total, unit } => {
                if name == TRAINING {
                    self.max_steps = Some(total);
                }
                self.screen.begin(name, total, unit)
            }
            Event::Advance { name, done, message } => self.screen.advance(name, done, message),
            Event::PhaseEnd { name } => {
                self.screen.end(name);
                Ok(())
            }
            Event::Step { step, max_steps, loss, margin, tokens_per_second, .. } => {
                self.max_steps = Some(max_steps);
                self.screen.advance(
                    TRAINING,
                    step,
                    &console::step_message(loss, margin, tokens_per_second),
                )
            }
            Event::Log(row) => self.log(row),
            Event::Saved { path } => self.screen.line(&format!("saved {}", path.display())),
            Event::Message(text) => self.screen.line(text),
        }
    }
}

#[cfg(test)]
mod tests;
