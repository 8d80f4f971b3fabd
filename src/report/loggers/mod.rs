//! Loggers: programs that show the metrics of a run, each in its own format on the local disk.
//! Nothing is sent over a network.
//!
//! | `report_to` | written by | read by |
//! |---|---|---|
//! | `tensorboard` | [`TensorBoard`] | TensorBoard |
//! | `wandb` | [`wandb`] | `wandb sync` |
//! | `trackio` | [`trackio`] | `trackio show` |
//! | `mlflow` | [`mlflow`] | `mlflow ui` |
//! | `jsonl` | [`jsonl`] | anything that reads lines of JSON |
//!
//! A run that continues from a checkpoint gives each logger the rows up to that checkpoint. The
//! logger replaces what it has of the run by these rows, which keep their times. So no step is
//! logged twice.

pub mod identity;
pub mod jsonl;
pub mod logger;
pub mod mlflow;
pub mod trackio;
pub mod wandb;

use std::io;

use super::tensorboard::TensorBoard;
use crate::recipe::Reporter;
use crate::train::event::LogRow;
use logger::{LoggedRun, Logger, run_id};

/// Opens the logger of `reporter` for `run`, whose rows so far are `history`.
///
/// # Errors
/// Its store cannot be written.
pub fn open(
    reporter: Reporter,
    run: &LoggedRun,
    history: &[LogRow],
) -> io::Result<Box<dyn Logger>> {
    Ok(match reporter {
        Reporter::TensorBoard => {
            let (folder, id) = match &run.logging_dir {
                Some(folder) => (folder.clone(), Some(run_id(&run.output_dir))),
                None => (run.output_dir.join("runs"), None),
            };
            Box::new(TensorBoard::open(&folder, id.as_deref(), history)?)
        }
        Reporter::Wandb => Box::new(wandb::Wandb::open(run, history)?),
        Reporter::Trackio => Box::new(trackio::Trackio::open(run, history)?),
        Reporter::Mlflow => Box::new(mlflow::Mlflow::open(run, history)?),
        Reporter::Jsonl => Box::new(jsonl::Jsonl::open(run, history)?),
    })
}
