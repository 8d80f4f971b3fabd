//! How a command ended.

use crate::train::trainer;

/// How a command ended that met no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done.
    Done,
    /// A signal ended it; the same command continues.
    Interrupted,
}

impl From<trainer::Ending> for Ending {
    fn from(ending: trainer::Ending) -> Self {
        match ending {
            trainer::Ending::Done => Self::Done,
            trainer::Ending::Interrupted => Self::Interrupted,
        }
    }
}
