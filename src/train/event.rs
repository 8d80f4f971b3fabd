//! Events of a run for progress bars, logs and messages. They hold no tensors, so observers need
//! nothing of the back end.

use std::io;
use std::path::Path;

/// An event of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Training begins, with these rows of the record from before: those of the checkpoint that the
    /// run continues from, or none.
    Start { history: &'a [LogRow] },
    /// A phase of known size begins, such as "reference log-probs", "training", "evaluation",
    /// "loading weights", "tokenizing train". `unit` names what `total` counts: "pairs", "steps",
    /// "rows", "bytes" …
    Phase { name: &'a str, total: u64, unit: &'a str },
    /// `done` of the phase's total are done. `message` may be empty.
    Advance { name: &'a str, done: u64, message: &'a str },
    /// The phase ends, complete or not.
    PhaseEnd { name: &'a str },
    /// After each optimizer step, for the bar of the phase "training".
    Step {
        step: u64,
        max_steps: u64,
        epoch: f64,
        loss: f64,
        margin: Option<f64>,
        tokens_per_second: f64,
    },
    /// A row of the training record: console, TensorBoard (`train/…` or `eval/…`).
    Log(&'a LogRow),
    /// A checkpoint or the final model was written to `path`.
    Saved { path: &'a Path },
    /// One line for the user.
    Message(&'a str),
}

/// A row of `log_history`: the metrics at an optimizer step.
///
/// `values` holds "loss", "grad_norm", "learning_rate", "rewards/chosen" … for training, or
/// "eval_loss", "eval_rewards/chosen" … for an evaluation, or "train_runtime" … for the whole run,
/// in TRL's order. It never holds "epoch" and "step".
#[derive(Debug, Clone, PartialEq)]
pub struct LogRow {
    pub step: u64,
    pub epoch: f64,
    pub values: Vec<(String, f64)>,
}

impl LogRow {
    /// The value of that name, if the row has one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| key == name).map(|&(_, value)| value)
    }
}

/// Receives the events of a run in their order.
pub trait Observer: Send {
    /// Handles an event.
    ///
    /// # Errors
    /// The observer cannot write. This ends the run.
    fn on(&mut self, event: &Event) -> io::Result<()>;
}

/// The observer that does nothing.
impl Observer for () {
    fn on(&mut self, _event: &Event) -> io::Result<()> {
        Ok(())
    }
}
