//! The errors of this module.

use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::DType;

use crate::eval::EvaluationError;
use crate::files::folder_lock::FolderError;
use crate::files::hash::HashError;
use crate::hub::HubError;
use crate::model::device::DeviceError;
use crate::model::weights::WeightsError;
use crate::parallel::join::{Disagreement, JoinError};
use crate::plan::PlanError;
use crate::recipe::RecipeErrors;
use crate::train::checkpoint::CheckpointError;
use crate::train::error::TrainError;

/// The settings with which a finished run is trained again, for messages.
pub const TRAIN_AGAIN: &str =
    "resume_from_checkpoint: false and overwrite_output_dir: true train it again";

/// The most characters of a setting's value in a message. A chat template has thousands.
const MAX_VALUE_CHARS: usize = 100;

/// Why a run cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Recipe(#[from] RecipeErrors),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Ranks(#[from] Disagreement),
    #[error(transparent)]
    Evaluation(Box<EvaluationError>),
    /// An observer failed.
    #[error(transparent)]
    Observer(#[from] io::Error),
    #[error("this device does not compute in {0:?}; set dtype: float32 and bf16: false")]
    Dtype(DType),
    #[error(
        "{folder} holds a finished run with other settings: `{key}` was {} there and is {} now\n\
         help: choose another output_dir; {TRAIN_AGAIN}",
        shortened(was),
        shortened(is)
    )]
    OtherFinishedRun { folder: PathBuf, key: String, was: String, is: String },
    #[error(
        "{folder} holds a finished run of {steps} steps and no checkpoint to extend it from\n\
         help: keep the last checkpoint of a run that you may extend (save_strategy, \
         save_only_model: false); choose another output_dir; {TRAIN_AGAIN}"
    )]
    NothingToExtend { folder: PathBuf, steps: u64 },
    #[error(
        "stage {stage} is extended, but {folder} holds a run of stage {next}, which began from its \
         shorter model\n\
         help: move {folder} away, so that stage {next} is trained from the new model"
    )]
    LaterStage { stage: usize, next: usize, folder: PathBuf },
    #[error(
        "{0}\nhelp: name another one, or leave resume_from_checkpoint out to use the newest \
         complete checkpoint"
    )]
    NamedCheckpoint(#[source] CheckpointError),
    #[error(
        "{folder} holds {count} checkpoint(s) of an earlier run; set overwrite_output_dir: true to \
         remove them, or train into another output_dir"
    )]
    OldCheckpoints { folder: PathBuf, count: usize },
    #[error(
        "`{key}: {name}` is in {checkpoint}, which overwrite_output_dir removes; move it away, or \
         train into another output_dir"
    )]
    InputInCheckpoint { key: &'static str, name: String, checkpoint: PathBuf },
    #[error(
        "{folder} was removed during the run: the files that were in it are lost; the finished \
         model is there now"
    )]
    FolderRemoved { folder: PathBuf },
    #[error("cannot remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error(
        "{checkpoint} was written with {rows} rows a step, {micro_batches} micro-batches of \
         {size}, and {ranks} ranks cannot share them evenly; start {} ranks",
        divisors(*micro_batches)
    )]
    UnevenRanks {
        checkpoint: PathBuf,
        rows: usize,
        micro_batches: usize,
        size: usize,
        ranks: usize,
    },
    #[error("cannot write into {folder}")]
    Facts { folder: PathBuf, source: io::Error },
    #[error("cannot write the model into {folder}")]
    Model { folder: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "`push_to_hub`: {reason}\nhelp: check the network; `push_to_hub: false` trains without it"
    )]
    HubNotReached { reason: String },
    #[error(
        "stages {first} and {second} have the same output_dir, {folder}\n\
         help: give each stage's recipe its own"
    )]
    SharedFolder { first: usize, second: usize, folder: PathBuf },
}

impl From<EvaluationError> for RunError {
    fn from(error: EvaluationError) -> Self {
        Self::Evaluation(Box::new(error))
    }
}

impl RunError {
    /// The model, or the record beside it, cannot be written into `folder`.
    pub(super) fn model<E>(folder: &Path) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Model { folder: folder.into(), source: source.into() }
    }
}

fn shortened(value: &str) -> String {
    value.chars().take(MAX_VALUE_CHARS).collect()
}

/// All numbers of ranks that can share `n` micro-batches evenly, as text.
fn divisors(n: usize) -> String {
    let fit = (1..=n).filter(|ranks| n.is_multiple_of(*ranks));
    fit.map(|ranks| ranks.to_string()).collect::<Vec<_>>().join(", ")
}
