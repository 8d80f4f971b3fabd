//! Joins the ranks for a command, and ends the job on all of them together.

use std::time::Duration;

use super::ending::Ending;
use super::error_file::ErrorFile;
use super::errors::message;
use crate::parallel::Ranks;
use crate::parallel::environment::Place;
use crate::parallel::join::join;

/// How long other ranks wait before they print an error, so that rank 0 prints it first.
pub const HOLD_BACK: Duration = Duration::from_secs(1);

/// The place of this rank, from its launcher, and the user's timeout.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    pub place: Place,
    /// How long one collective operation may take.
    pub timeout: Duration,
}

impl Launch {
    /// Runs `work` on all ranks. On GPUs the first rank of a host uses `first_gpu`. An error on one
    /// of them ends the job, with its message and exit code.
    pub fn together(
        self,
        first_gpu: Option<usize>,
        work: impl FnOnce(&Ranks) -> anyhow::Result<Ending>,
    ) -> anyhow::Result<Ending> {
        let ranks = join(self.place, self.timeout, first_gpu)?;
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
                ErrorFile::from_environment().write(text.clone(), code);
                ranks.end_job(text, i32::from(code))
            }
        }
    }
}
