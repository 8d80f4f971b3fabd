//! What this rank is doing, for the message when the job ends badly.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A process of the job, for a look at whether it still lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub rank: usize,
    pub host: String,
    pub process: u32,
}

/// Shared by the training thread, the watchdog and the panic hook.
pub struct Status {
    pub rank: usize,
    pub world: usize,
    now: Mutex<Now>,
}

/// What a rank is at.
#[derive(Debug, Clone)]
pub struct Now {
    pub step: Option<u64>,
    /// Such as "forward and backward of micro-batch 3".
    pub work: String,
    /// The collective that it is in, such as "reduce-scatter of model.layers.3".
    pub collective: Option<String>,
    /// Since the last collective began or ended.
    since: Instant,
    /// Stalls count only between collectives that follow each other in bounded time.
    pub guarded: bool,
    /// Past the last collective: other ranks may be gone.
    pub done: bool,
    /// The ranks of this host, once they are known.
    pub neighbours: Vec<Peer>,
}

impl Status {
    pub fn new(rank: usize, world: usize) -> Self {
        let now = Now {
            step: None,
            work: "starting".into(),
            collective: None,
            since: Instant::now(),
            guarded: false,
            done: false,
            neighbours: Vec::new(),
        };
        Self { rank, world, now: Mutex::new(now) }
    }

    /// Changes what is known; a change of collective restarts the clock.
    pub fn set(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.lock();
        let before = now.collective.is_some();
        change(&mut now);
        if before != now.collective.is_some() {
            now.since = Instant::now();
        }
    }

    /// A copy, for another thread to look at.
    pub fn now(&self) -> Now {
        self.lock().clone()
    }

    /// A thread that panicked while it held the lock left nothing half done.
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// Time since a collective last began or ended.
    pub fn waiting(&self) -> Duration {
        self.since.elapsed()
    }
}

/// "rank 2 of 4, step 7, in the reduce-scatter of model.layers.3".
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let now = self.now();
        write!(f, "rank {} of {}", self.rank, self.world)?;
        if let Some(step) = now.step {
            write!(f, ", step {step}")?;
        }
        match &now.collective {
            Some(collective) => write!(f, ", in the {collective}"),
            None => write!(f, ", {}", now.work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_rank_step_and_work() {
        let status = Status::new(2, 4);
        assert_eq!(status.to_string(), "rank 2 of 4, starting");
        status.set(|now| {
            now.step = Some(7);
            now.work = "forward of micro-batch 3".into();
        });
        assert_eq!(status.to_string(), "rank 2 of 4, step 7, forward of micro-batch 3");
        status.set(|now| now.collective = Some("reduce-scatter of model.norm".into()));
        assert!(status.to_string().ends_with("step 7, in the reduce-scatter of model.norm"));
    }
}
