//! Why training stops before its end.

use std::io;
use std::path::PathBuf;

use super::checkpoint::CheckpointError;
use crate::data::DataError;

/// Why training stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the rows of the next step cannot be used")]
    Data(#[from] DataError),
    #[error("cannot write the training record: {0}")]
    Report(#[from] io::Error),
    #[error(
        "step {step}: {what} is {value}; training cannot continue. A lower learning_rate or a \
         longer warm-up usually helps; checkpoints that were saved before are unchanged"
    )]
    NotFinite { step: u64, what: &'static str, value: f64 },
    #[error(
        "`metric_for_best_model: {metric}` is not among the metrics of this evaluation, which are \
         {found}; checkpoints that were saved before are unchanged"
    )]
    NoMetric { metric: String, found: String },
    #[error(
        "{folder} was removed during the run: the files that were in it are lost; {checkpoint} is \
         complete, and the same command continues from there"
    )]
    FolderRemoved { folder: PathBuf, checkpoint: PathBuf },
    #[error("a drill: FAVONIUS_DRILL asked for it")]
    Drill,
}
