//! Joining the ranks for a command, and leaving together, whatever comes.

use std::time::Duration;

use super::ending::Ending;
use super::errors::message;
use crate::parallel::Ranks;
use crate::parallel::environment::Place;
use crate::parallel::join::join;

/// How much time rank 0 has to say what is wrong before another rank does.
pub const HOLD_BACK: Duration = Duration::from_secs(1);

/// What the launcher and the user say about the ranks.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub place: Place,
    /// How long one collective may take.
    pub timeout: Duration,
}

impl Launch {
    /// Runs `work` on all ranks. An error on one of them ends the whole job with its message and exit code.
    pub fn together(
        self,
        on_gpu: bool,
        work: impl FnOnce(&Ranks) -> anyhow::Result<Ending>,
    ) -> anyhow::Result<Ending> {
        let ranks = join(self.place, self.timeout, on_gpu)?;
        if ranks.is_alone() {
            return work(&ranks);
        }
        match work(&ranks) {
            Ok(ending) => {
                ranks.leave();
                Ok(ending)
            }
            Err(error) => {
                if !ranks.is_first() {
                    std::thread::sleep(HOLD_BACK);
                }
                let (text, code) = message(&error, &ranks.describe());
                ranks.end_job(text, i32::from(code))
            }
        }
    }
}
