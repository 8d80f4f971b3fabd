//! What earlier starts of a run left in its folder, and where this start goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::context::Context;
use super::error::{RunError, TRAIN_ANEW};
use super::{identity, mark, upload};
use crate::files::folder_lock::FolderLock;
use crate::hub::Destination;
use crate::model::device;
use crate::recipe::{Recipe, Resume};
use crate::train::checkpoint;
use crate::train::event::{Event, Observer};
use crate::train::steps::Sharing;

/// What a start of a run has to do.
pub enum Work {
    /// An earlier start finished the run.
    Nothing,
    /// An earlier start finished the run, but its upload is missing.
    Upload(Claimed),
    /// Training, from the beginning or from a checkpoint.
    Training(Claimed),
}

/// A run's folder, which no other process writes into, and what was found in it.
pub struct Claimed {
    /// Held by rank 0 as long as the run goes.
    _lock: Option<FolderLock>,
    /// Where the model is uploaded at the end, if the recipe says so.
    pub destination: Option<Destination>,
    /// The checkpoint to continue from.
    pub checkpoint: Option<PathBuf>,
    /// How the ranks share a step.
    pub sharing: Sharing,
}

/// What earlier starts of a run left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Left {
    Nothing,
    Upload,
    All,
}

/// Looks at the recipe's folder, its device and its place on the hub, before anything is read,
/// fetched or removed; then finds the checkpoint to continue from.
///
/// # Errors
/// The folder is in use, or holds a finished run of other settings; the device does not exist; the
/// hub refuses the upload; the checkpoint that the recipe names is damaged.
pub fn open(
    recipe: &Recipe,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Work, RunError> {
    let ranks = context.ranks;
    let left = ranks.decide("what is left to do", || what_is_left(recipe))?;
    if left == Left::Nothing {
        let text = format!(
            "{} holds a finished run; nothing to do ({TRAIN_ANEW})",
            recipe.output_dir().display()
        );
        observer.on(&Event::Message(&text))?;
        return Ok(Work::Nothing);
    }
    // The other ranks wait for rank 0's next decision.
    let lock = ranks.is_first().then(|| FolderLock::acquire(recipe.output_dir())).transpose()?;
    let destination = ranks.decide("the hub", || upload::destination(recipe))?;
    let sharing = Sharing::of(&recipe.train, ranks.world());
    let mut claimed = Claimed { _lock: lock, destination, checkpoint: None, sharing };
    if left == Left::Upload {
        return Ok(Work::Upload(claimed));
    }
    device::find(&recipe.train.device.of_rank(ranks.local_rank()).to_string())?;
    claimed.checkpoint =
        ranks.decide("the checkpoint", || checkpoint_to_resume(recipe, observer))?;
    if let Some(path) = &claimed.checkpoint {
        claimed.sharing = same_rows_a_step(sharing, path, observer)?;
    }
    Ok(Work::Training(claimed))
}

fn what_is_left(recipe: &Recipe) -> Result<Left, RunError> {
    let output_dir = recipe.output_dir();
    let anew = recipe.train.resume_from_checkpoint == Resume::Fresh;
    if anew || !mark::is_finished(output_dir) {
        return Ok(Left::All);
    }
    let was = mark::read_settings(output_dir);
    if let Some((key, was, is)) = identity::difference(&was, &identity::of_finished(recipe)) {
        let [key, was, is] = [key, was, is].map(str::to_owned);
        return Err(RunError::OtherFinishedRun { folder: output_dir.into(), key, was, is });
    }
    Ok(if upload::is_pending(recipe) { Left::Upload } else { Left::Nothing })
}

/// The checkpoint that the recipe's `resume_from_checkpoint` means, if any. Damaged ones are named.
fn checkpoint_to_resume(
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> Result<Option<PathBuf>, RunError> {
    let output_dir = recipe.output_dir();
    match &recipe.train.resume_from_checkpoint {
        Resume::Path(path) => {
            checkpoint::verify(path).map_err(RunError::NamedCheckpoint)?;
            Ok(Some(path.clone()))
        }
        Resume::Fresh => {
            let old = checkpoint::list(output_dir);
            if !old.is_empty() && !recipe.train.overwrite_output_dir {
                let (folder, count) = (output_dir.into(), old.len());
                return Err(RunError::OldCheckpoints { folder, count });
            }
            for (_, path) in old {
                if let Err(source) = std::fs::remove_dir_all(&path) {
                    return Err(RunError::Remove { path, source });
                }
            }
            let forgotten = mark::forget_finished(output_dir);
            forgotten.map_err(|source| RunError::Remove { path: output_dir.into(), source })?;
            Ok(None)
        }
        Resume::Auto => {
            let (found, refused) = checkpoint::newest(output_dir);
            for error in refused {
                observer.on(&Event::Message(&format!("{error}; it is not used")))?;
            }
            Ok(found)
        }
    }
}

/// How the ranks share a step of a run that continues from `checkpoint`. On another number of ranks
/// the accumulation changes so that a step has the same rows, and the run the same bits.
fn same_rows_a_step(
    sharing: Sharing,
    checkpoint: &Path,
    observer: &mut dyn Observer,
) -> Result<Sharing, RunError> {
    let was = checkpoint::read_position(checkpoint)?.sharing;
    let size = sharing.per_device_train_batch_size;
    let unchanged = size == was.per_device_train_batch_size
        && sharing.gradient_accumulation_steps == was.gradient_accumulation_steps;
    let ranks = sharing.ranks;
    if ranks == was.ranks || !unchanged {
        return Ok(sharing);
    }
    let (rows, micro_batches) = (was.rows(), was.rows() / size);
    if !micro_batches.is_multiple_of(ranks) {
        let checkpoint = checkpoint.into();
        return Err(RunError::UnevenRanks { checkpoint, rows, micro_batches, size, ranks });
    }
    let gradient_accumulation_steps = micro_batches / ranks;
    let text = format!(
        "{} was written on {} rank(s); on {ranks} gradient_accumulation_steps becomes \
         {gradient_accumulation_steps} to keep {rows} rows a step",
        checkpoint.display(),
        was.ranks,
    );
    observer.on(&Event::Message(&text))?;
    Ok(Sharing { gradient_accumulation_steps, ..sharing })
}
