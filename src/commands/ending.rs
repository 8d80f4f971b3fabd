//! How a command ended without an error.

use std::process::ExitCode;

use crate::run;

/// How a command ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything is done.
    Done,
    /// A signal stopped it; the same command continues.
    Interrupted,
}

impl Ending {
    /// The ending of a command that ran recipes. A model that could not be uploaded is an error.
    pub fn of(ending: run::Ending) -> anyhow::Result<Self> {
        match ending {
            run::Ending::Finished | run::Ending::AlreadyFinished => Ok(Self::Done),
            run::Ending::Interrupted => Ok(Self::Interrupted),
            run::Ending::NotUploaded(failed) => Err(failed.into()),
        }
    }

    /// The exit code of the program.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Interrupted => ExitCode::FAILURE,
        }
    }
}
