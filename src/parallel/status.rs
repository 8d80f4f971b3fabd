//! The current work of this rank, for the message if the job fails, and which rank prints that
//! message.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memmap2::MmapRaw;

use crate::files::printable::printable;

/// A process of the job. The watchdog checks whether it is still alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub rank: usize,
    pub host: String,
    pub process: u32,
}

/// The state of this rank. The training thread, the watchdog and the panic hook share it.
pub struct Status {
    pub rank: usize,
    pub world: usize,
    now: Mutex<Now>,
    /// One byte that all ranks of this host share. It is not 0 after one of them has reported why
    /// the job ends.
    said: OnceLock<MmapRaw>,
}

/// The current work of a rank.
#[derive(Debug, Clone)]
pub struct Now {
    pub step: Option<u64>,
    /// Such as "forward and backward of micro-batch 3".
    pub work: String,
    /// The collective that it is in, such as "reduce-scatter of model.layers.3".
    pub collective: Option<String>,
    /// When the last collective began or ended.
    since: Instant,
    /// Whether a collective that takes longer than the timeout ends the job.
    pub guarded: bool,
    /// Whether the last collective is done, so that other ranks may have ended.
    pub done: bool,
    /// The ranks of this host, after they have joined.
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
        Self { rank, world, now: Mutex::new(now), said: OnceLock::new() }
    }

    /// Shares the byte in `file`, whose length is 1, with the other ranks of this host.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn share_byte(&self, file: &Path) -> io::Result<()> {
        let file = std::fs::File::options().read(true).write(true).open(file)?;
        let byte = MmapRaw::map_raw(&file)?;
        // This is called once, at the start.
        let _ = self.said.set(byte);
        Ok(())
    }

    /// Prints why the job ends, unless another rank of this host has printed it. Returns whether it
    /// printed.
    pub fn say(&self, why: impl fmt::Display) -> bool {
        let is_first = self.said.get().is_none_or(|byte| {
            // SAFETY: the mapping is one byte long, lives as long as `self`, and is only accessed
            // atomically.
            let said = unsafe { AtomicU8::from_ptr(byte.as_mut_ptr()) };
            said.swap(1, Ordering::SeqCst) == 0
        });
        if is_first {
            eprintln!("error: {}", printable(&why.to_string()));
        }
        is_first
    }

    /// Changes the state. The start or end of a collective restarts the clock.
    pub fn set(&self, change: impl FnOnce(&mut Now)) {
        let mut now = self.lock();
        let before = now.collective.is_some();
        change(&mut now);
        if before != now.collective.is_some() {
            now.since = Instant::now();
        }
    }

    /// A copy of the state.
    pub fn now(&self) -> Now {
        self.lock().clone()
    }

    /// A thread that panicked while it held the lock has left a consistent state.
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
    fn one_rank_of_a_host_says_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1).unwrap();
        let ranks = [0, 1].map(|rank| Status::new(rank, 2));
        for rank in &ranks {
            rank.share_byte(file.path()).unwrap();
        }
        assert!(ranks[1].say("a test says this"));
        assert!(!ranks[0].say("not said") && !ranks[1].say("not said"));
    }

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
