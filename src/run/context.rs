//! The inputs of a run besides its plan: its ranks, and the flag that stops it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::parallel::Ranks;

/// The ranks of a run, and the flag that asks it to stop.
pub struct Context<'a> {
    pub ranks: &'a Ranks,
    /// Set by a signal handler or another thread: the run finishes its step, saves and returns.
    pub stop: &'a AtomicBool,
}

impl Context<'_> {
    /// Whether this process has been asked to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
