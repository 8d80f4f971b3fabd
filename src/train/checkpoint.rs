//! Checkpoints: written completely or not at all, and verified before use.
//!
//! A checkpoint is written into a hidden folder. After every file is synced, the folder is renamed
//! to `checkpoint-N`. Its `checkpoint.json` lists size and BLAKE3 hash of each file. A checkpoint
//! that does not match its list is refused by name, and the one before it is used. Files that are
//! not in the list are ignored.

mod folders;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use folders::{HIDDEN, make_room};
pub use folders::{is_ours, list, prune, remove_leftovers, step_of};

use super::identity::{FORMAT_VERSION, LENGTH, plain};
use super::manifest;
use super::metrics::Means;
use super::optimizer::Optimizer;
use super::state::{StateError, TrainerState};
use super::steps::Sharing;
use crate::files::replace::{sync_folder, temporary_folder};
use crate::files::tensor_file::TensorFile;
use crate::model::decoder::Decoder;
use crate::model::weights::{SHARD_BYTES, WeightsError, write_file};
use crate::parallel::Ranks;
use crate::parallel::buckets::Piece;

const OPTIMIZER: &str = "optimizer.safetensors";
const POSITION: &str = "position.json";
/// The file of [`POSITION`] in checkpoints of format version 1.
const POSITION_OF_VERSION_1: &str = "progress.json";
const STATE: &str = "trainer_state.json";

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot write checkpoint {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("checkpoint {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "checkpoint {path} belongs to another run: `{key}` was {was} there and is {is} now; \
         continue it with the old value, train into another output_dir, \
         or set resume_from_checkpoint: false"
    )]
    OtherRun { path: PathBuf, key: String, was: String, is: String },
    #[error(
        "checkpoint {path} belongs to another run: its training rows are not those of this run; \
         they depend on the data set and its files, max_train_samples, test_split_size, the \
         tokenizer, the chat template and the lengths; continue it with the old data, train into \
         another output_dir, or set resume_from_checkpoint: false"
    )]
    OtherData { path: PathBuf },
    #[error(
        "checkpoint {path} is at step {step}, and the run has {total} steps now; raise max_steps \
         or num_train_epochs, name an earlier checkpoint with resume_from_checkpoint, or train \
         into another output_dir"
    )]
    PastTheEnd { path: PathBuf, step: u64, total: u64 },
    #[error("checkpoint {path} holds weights only (save_only_model); it cannot be resumed")]
    WeightsOnly { path: PathBuf },
    #[error(
        "checkpoint {path} has format version {found}, and this program continues from version \
         {FORMAT_VERSION}; finish the run with the program that began it, or set \
         resume_from_checkpoint: false and overwrite_output_dir: true to train from the start"
    )]
    Version { path: PathBuf, found: u32 },
    #[error("no checkpoint at {path}")]
    NotThere { path: PathBuf },
}

/// The position of training between two steps, besides weights, optimizer state and
/// `trainer_state.json`. Numbers survive the round trip to the last bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Optimizer updates done. Together with the seed it determines the rows of all later steps, so
    /// that no state of a random generator is needed.
    pub global_step: u64,
    /// Sums since the last log row.
    pub loss_since_log: f64,
    pub steps_since_log: u64,
    pub means_since_log: Means,
    /// Sum of all step losses.
    pub total_loss: f64,
    /// Tokens seen, as TRL counts them.
    pub num_tokens: u64,
    /// The settings that a run must share to continue from here: key → value.
    pub identity: BTreeMap<String, String>,
    /// How the rows of a step were shared when the run began. The run may continue on any number of
    /// ranks that takes the same micro-batches, and with other micro-batches if [`Self::identity`]
    /// allows them.
    pub sharing: Sharing,
    /// How long training took so far.
    pub timed: Timed,
}

/// Time of training over all starts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    pub seconds: f64,
    /// The steps that took this time.
    pub steps: u64,
}

/// The contents of [`POSITION`].
#[derive(Debug, Serialize, Deserialize)]
struct StoredPosition<P> {
    version: u32,
    position: P,
}

/// Everything that goes into a checkpoint.
pub struct Contents<'a> {
    pub model: &'a Decoder,
    /// None if only the model is kept.
    pub optimizer: Option<&'a Optimizer>,
    pub state: &'a TrainerState,
    pub position: &'a Position,
    /// Writes the files beside the weights.
    pub beside: &'a dyn Fn(&Path) -> io::Result<()>,
}

/// `output_dir/checkpoint-N`.
pub fn folder(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!("checkpoint-{step}"))
}

/// Writes `checkpoint-N` under `output_dir` and returns its path. Rank 0 writes; the other ranks
/// send it their shares of the optimizer's state and wait until it is done.
///
/// # Errors
/// The folder cannot be written.
pub fn write(
    output_dir: &Path,
    contents: &Contents,
    ranks: &Ranks,
) -> Result<PathBuf, CheckpointError> {
    let target = folder(output_dir, contents.position.global_step);
    if ranks.is_first() {
        write_first(output_dir, &target, contents, ranks)?;
    } else if let Some(optimizer) = contents.optimizer {
        optimizer.hand_over(ranks);
    }
    ranks.barrier("the checkpoint");
    Ok(target)
}

fn write_first(
    output_dir: &Path,
    target: &Path,
    contents: &Contents,
    ranks: &Ranks,
) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Write { path: target.into(), source };
    std::fs::create_dir_all(output_dir).map_err(failed)?;
    remove_leftovers(output_dir).map_err(failed)?;
    let hidden = temporary_folder(output_dir, HIDDEN).map_err(failed)?;
    let path = hidden.path();
    contents.model.save_weights(path, contents.model.dtype(), SHARD_BYTES)?;
    (contents.beside)(path).map_err(failed)?;
    contents.state.write(&path.join(STATE)).map_err(failed)?;
    if let Some(optimizer) = contents.optimizer {
        let vectors = optimizer.vectors(contents.model, ranks);
        write_file(&path.join(OPTIMIZER), vectors, &[("format", "pt")])?;
        optimizer.all_written(ranks);
        let position = StoredPosition { version: FORMAT_VERSION, position: contents.position };
        let position = serde_json::to_vec_pretty(&position).map_err(io::Error::from);
        position.and_then(|text| std::fs::write(path.join(POSITION), text)).map_err(failed)?;
    }
    manifest::seal(path).map_err(failed)?;
    make_room(target).map_err(failed)?;
    std::fs::rename(hidden.keep(), target).map_err(failed)?;
    sync_folder(output_dir).map_err(failed)
}

/// Compares every file of a checkpoint with its manifest.
///
/// # Errors
/// The checkpoint does not exist, or a file differs.
pub fn verify(path: &Path) -> Result<(), CheckpointError> {
    if !path.is_dir() {
        return Err(CheckpointError::NotThere { path: path.into() });
    }
    manifest::verify(path).map_err(|reason| CheckpointError::Damaged { path: path.into(), reason })
}

/// The newest undamaged checkpoint, with the error of each newer, damaged one.
pub fn newest(output_dir: &Path) -> (Option<PathBuf>, Vec<CheckpointError>) {
    let mut refused = Vec::new();
    for (_, path) in list(output_dir) {
        match verify(&path) {
            Ok(()) => return (Some(path), refused),
            Err(error) => refused.push(error),
        }
    }
    (None, refused)
}

/// The start of training: fresh, or as a checkpoint left it.
pub struct Start {
    pub model: Decoder,
    pub optimizer: Optimizer,
    pub state: TrainerState,
    pub position: Position,
}

/// The position of the run that wrote a checkpoint.
///
/// # Errors
/// The checkpoint has weights only or another format version, or is damaged.
pub fn read_position(path: &Path) -> Result<Position, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.into(), reason };
    if !path.join(OPTIMIZER).is_file() {
        return Err(CheckpointError::WeightsOnly { path: path.into() });
    }
    if !path.join(POSITION).is_file() && path.join(POSITION_OF_VERSION_1).is_file() {
        return Err(CheckpointError::Version { path: path.into(), found: 1 });
    }
    let text = std::fs::read(path.join(POSITION)).map_err(|e| damaged(e.to_string()))?;
    // A later format may have other fields, so the version is read first.
    let StoredPosition::<IgnoredAny> { version: found, .. } =
        serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if found != FORMAT_VERSION {
        return Err(CheckpointError::Version { path: path.into(), found });
    }
    let stored: StoredPosition<Position> =
        serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    Ok(stored.position)
}

/// Reads a verified checkpoint, with this rank's share of the optimizer's state. `identity` is that
/// of the run that continues. `load` loads the model in a folder, and `optimizer` makes a fresh
/// optimizer for it.
///
/// # Errors
/// Those of [`read_position`]; the checkpoint belongs to a run of other settings; a file cannot be
/// read.
pub fn read(
    path: &Path,
    identity: &BTreeMap<String, String>,
    load: impl FnOnce(&Path) -> Result<Decoder, WeightsError>,
    optimizer: impl FnOnce(&Decoder) -> Optimizer,
) -> Result<Start, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.into(), reason };
    let mut position = read_position(path)?;
    check_identity(path, &position.identity, identity)?;
    position.identity.clone_from(identity);
    let state = TrainerState::read(&path.join(STATE))?;
    let model = load(path)?;
    let device = model.device();
    let mut optimizer = optimizer(&model);
    let tensors =
        TensorFile::open(&path.join(OPTIMIZER)).map_err(|error| damaged(error.to_string()))?;
    optimizer
        .restore(&model, position.global_step as i32, |name, piece, whole| {
            read_piece(&tensors, name, piece, whole, &device)
        })
        .map_err(|name| damaged(format!("optimizer state `{name}` is missing or misshapen")))?;
    Ok(Start { model, optimizer, state, position })
}

/// The key of the training rows' hash.
pub const TRAINING_DATA: &str = "data";

/// Keys that are only compared if both runs have them.
const OF_THE_BEST: [&str; 2] = ["metric_for_best_model", "greater_is_better"];

fn check_identity(
    path: &Path,
    was: &BTreeMap<String, String>,
    is: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let nothing = "(nothing)".to_string();
    let is_compared = |key: &&String| {
        let in_both = was.contains_key(*key) && is.contains_key(*key);
        !LENGTH.contains(&key.as_str()) && (in_both || !OF_THE_BEST.contains(&key.as_str()))
    };
    for key in was.keys().chain(is.keys()).filter(is_compared) {
        let (was, is) = (was.get(key).unwrap_or(&nothing), is.get(key).unwrap_or(&nothing));
        if was != is {
            let (path, key) = (path.into(), key.clone());
            return Err(match &*key {
                TRAINING_DATA => CheckpointError::OtherData { path },
                _ => {
                    let (was, is) = (plain(was).into(), plain(is).into());
                    CheckpointError::OtherRun { path, key, was, is }
                }
            });
        }
    }
    Ok(())
}

/// A piece of a float32 vector that has `whole` elements.
fn read_piece(
    tensors: &TensorFile,
    name: &str,
    piece: Piece,
    whole: usize,
    device: &Device,
) -> Option<Tensor<1>> {
    let tensor = tensors.tensor(name)?;
    if tensor.dtype != safetensors::Dtype::F32 || tensor.shape != [whole] {
        return None;
    }
    let mut stored = vec![0; 4 * piece.len];
    tensors.read(tensor, 4 * piece.start, &mut stored).ok()?;
    let numbers = stored.as_chunks::<4>().0.iter();
    let values: Vec<f32> = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Some(Tensor::from_data(TensorData::new(values, [piece.len]), (device, DType::F32)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn sealed(output_dir: &Path, step: u64) -> PathBuf {
        let path = folder(output_dir, step);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("model.safetensors"), format!("weights of step {step}")).unwrap();
        manifest::seal(&path).unwrap();
        path
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
        let dir = tempfile::tempdir().unwrap();
        let good = sealed(dir.path(), 10);
        let bad = sealed(dir.path(), 20);
        std::fs::write(bad.join("model.safetensors"), "weights of step 2X").unwrap();
        let (found, refused) = newest(dir.path());
        assert_eq!(found, Some(good));
        let message = refused[0].to_string();
        assert!(message.contains("checkpoint-20 is damaged: model.safetensors is not what was"));
        std::fs::write(bad.join("model.safetensors"), "short").unwrap();
        let (_, refused) = newest(dir.path());
        assert!(refused[0].to_string().contains("has 5 bytes where 18 were written"));
        let elsewhere = r#"{"files": {"../x": {"bytes": 1, "blake3": ""}}}"#;
        std::fs::write(bad.join("checkpoint.json"), elsewhere).unwrap();
        let message = newest(dir.path()).1[0].to_string();
        assert!(message.contains("names \"../x\", which is outside of the checkpoint"));
        std::fs::remove_file(bad.join("checkpoint.json")).unwrap();
        assert!(newest(dir.path()).1[0].to_string().contains("checkpoint.json cannot be read"));
    }

    #[test]
    fn another_run_is_refused_with_the_key_that_differs() {
        let map = |beta: &str| BTreeMap::from([("beta".to_string(), beta.to_string())]);
        let error = check_identity(Path::new("out/checkpoint-5"), &map("0.1"), &map("0.2"));
        let message = error.unwrap_err().to_string();
        assert!(message.contains("`beta` was 0.1 there and is 0.2 now"), "{message}");
    }

    #[test]
    fn a_key_of_one_run_alone_differs_but_for_those_of_the_best_model() {
        let map = |keys: &[(&str, &str)]| -> BTreeMap<String, String> {
            keys.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
        };
        let check = |was: &[(&str, &str)], is: &[(&str, &str)]| {
            check_identity(Path::new("out/checkpoint-5"), &map(was), &map(is))
                .map_err(|error| error.to_string())
        };
        let size = "per_device_train_batch_size";
        let message = check(&[(size, "4")], &[(size, "2")]).unwrap_err();
        assert!(message.contains("`per_device_train_batch_size` was 4 there and is 2 now"));
        let message = check(&[(size, "4")], &[]).unwrap_err();
        assert!(message.contains("was 4 there and is (nothing) now"), "{message}");
        assert!(check(&[], &[("beta", "0.1")]).is_err());
        let metric = [("metric_for_best_model", "loss")];
        assert!(check(&metric, &[]).is_ok() && check(&[], &metric).is_ok());
        assert!(check(&metric, &[("metric_for_best_model", "rewards/margins")]).is_err());
    }

    #[test]
    fn positions_come_back_and_other_versions_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let message = || read_position(dir.path()).unwrap_err().to_string();
        write(OPTIMIZER, "");
        write(POSITION_OF_VERSION_1, r#"{"global_step": 3}"#);
        let old = message();
        assert!(old.contains("has format version 1, and this program continues from version 2"));
        assert!(old.contains("finish the run with the program that began it"), "{old}");
        write(POSITION, r#"{"version": 3, "position": {"another": "format"}}"#);
        assert!(message().contains("has format version 3"));
        write(POSITION, "{}");
        assert!(message().contains("is damaged: missing field `version`"), "{}", message());
        let timed = Timed { seconds: 0.1 + 0.2, steps: 3 };
        let position = Position { global_step: 3, timed, ..Position::default() };
        let stored = StoredPosition { version: FORMAT_VERSION, position: &position };
        write(POSITION, &serde_json::to_string(&stored).unwrap());
        assert_eq!(read_position(dir.path()).unwrap(), position);
    }
}
