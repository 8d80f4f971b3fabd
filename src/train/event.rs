//! What the training loop tells the outside: bars, log rows, one-line messages. No tensor is in here, so reports need
//! nothing of the back end.

use std::io;
use std::path::Path;

/// One happening of a run. Values of a [`LogRow`] are in the order in which TRL logs them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event<'a> {
    /// Training begins, with these rows of the record from before: those of the checkpoint that the
    /// run continues from, or none.
    Start { history: &'a [LogRow] },
    /// A piece of work with a known size begins ("reference log-probs", "training", "evaluation", "loading weights",
    /// "tokenizing train" …); `unit` names what `total` counts ("pairs", "steps", "rows", "bytes" …).
    Phase { name: &'a str, total: u64, unit: &'a str },
    /// `done` of the phase's total are done; `message` may be empty.
    Advance { name: &'a str, done: u64, message: &'a str },
    /// The phase is over, done or not.
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
    /// A checkpoint or the final model lies complete at `path`.
    Saved { path: &'a Path },
    /// One line for the user.
    Message(&'a str),
}

/// A row of `log_history`: what was measured at an optimizer step.
///
/// `values` holds "loss", "grad_norm", "learning_rate", "rewards/chosen" … of training, or "eval_loss",
/// "eval_rewards/chosen" … of an evaluation, or "train_runtime" … of the whole run; never "epoch" and "step".
#[derive(Debug, Clone, PartialEq)]
pub struct LogRow {
    pub step: u64,
    pub epoch: f64,
    pub values: Vec<(String, f64)>,
}

impl LogRow {
    /// The value of that name, where the row has one.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(key, _)| key == name).map(|&(_, value)| value)
    }
}

/// Someone who is told the events of a run in their order.
pub trait Observer: Send {
    /// # Errors
    /// What could not be written; the loop decides whether that ends the run.
    fn on(&mut self, event: &Event) -> io::Result<()>;
}

/// The observer who does nothing.
impl Observer for () {
    fn on(&mut self, _event: &Event) -> io::Result<()> {
        Ok(())
    }
}
