//! The beginning of a run: locks its folder, and decides what is left to do from what earlier
//! starts of the run left in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::context::Context;
use super::error::{RunError, TRAIN_AGAIN};
use super::{evaluation, finish, identity, mark, upload};
use crate::files::folder_lock::FolderLock;
use crate::files::replace;
use crate::hub::Destination;
use crate::model::device;
use crate::recipe::{DatasetSpec, Mixture, Recipe, Resume};
use crate::report::scores;
use crate::train::checkpoint;
use crate::train::event::{Event, Observer};
use crate::train::steps::Sharing;

/// The work that a start of a run has to do.
pub enum Work {
    /// An earlier start finished the run.
    Nothing,
    /// An earlier start finished the training, but the evaluation or the upload is missing.
    AfterTraining(LockedRun),
    /// Training, from the beginning or from a checkpoint.
    Training(LockedRun),
}

/// A run whose folder is locked against other processes, and what was found in the folder.
pub struct LockedRun {
    /// Held by rank 0 until the run ends.
    _lock: Option<FolderLock>,
    /// The place to which the model is uploaded at the end, if the recipe asks for it.
    pub destination: Option<Destination>,
    /// The checkpoint to continue from, if any.
    pub checkpoint: Option<PathBuf>,
    /// Whether the run begins anew in a folder that may hold an earlier run.
    pub begins_anew: bool,
    /// How the ranks share the rows of a step.
    pub sharing: Sharing,
}

/// [`Work`] as rank 0 sends it to the other ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Remaining {
    Nothing,
    AfterTraining,
    Training,
}

/// Locks the recipe's folder, checks that the hub accepts the upload and that the device exists,
/// and then finds the checkpoint to continue from. Nothing is downloaded, and nothing is removed:
/// see [`remove_earlier_run`].
///
/// # Errors
/// The folder is in use, or holds a finished run with other settings; the device does not exist;
/// the hub refuses the upload; the checkpoint that the recipe names is damaged.
pub fn open(
    recipe: &Recipe,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Work, RunError> {
    let ranks = context.ranks;
    let remaining = ranks.decide("what is left to do", || remaining_work(recipe, observer))?;
    if remaining == Remaining::Nothing {
        let text = format!(
            "{} holds a finished run; nothing to do ({TRAIN_AGAIN})",
            recipe.output_dir().display()
        );
        observer.on(&Event::Message(&text))?;
        return Ok(Work::Nothing);
    }
    // The other ranks wait in the next `decide` until rank 0 has the lock.
    let lock = ranks.is_first().then(|| lock(recipe.output_dir())).transpose()?;
    let destination = ranks.decide("the hub", || upload::destination(recipe))?;
    let sharing = Sharing::of(&recipe.train, ranks.world());
    let begins_anew = recipe.train.resume_from_checkpoint == Resume::Fresh;
    let mut run = LockedRun { _lock: lock, destination, checkpoint: None, begins_anew, sharing };
    if remaining == Remaining::AfterTraining {
        return Ok(Work::AfterTraining(run));
    }
    device::find(&recipe.train.device.of_rank(ranks.local_rank()).to_string())?;
    run.checkpoint = ranks.decide("the checkpoint", || checkpoint_to_resume(recipe, observer))?;
    if let Some(path) = &run.checkpoint {
        run.sharing = same_rows_a_step(sharing, path, observer)?;
    }
    Ok(Work::Training(run))
}

/// Locks the folder, and removes what killed processes left in it.
fn lock(output_dir: &Path) -> Result<FolderLock, RunError> {
    let lock = FolderLock::acquire(output_dir)?;
    let removed = checkpoint::remove_leftovers(output_dir)
        .and_then(|()| finish::remove_leftovers(output_dir));
    removed.map_err(|source| RunError::Remove { path: output_dir.into(), source })?;
    replace::remove_leftovers(output_dir, |_| true);
    Ok(lock)
}

fn remaining_work(recipe: &Recipe, observer: &mut dyn Observer) -> Result<Remaining, RunError> {
    let output_dir = recipe.output_dir();
    if let Some(reason) = mark::unusable(output_dir) {
        let folder = output_dir.display();
        observer.on(&Event::Message(&format!("{folder} holds no finished run: {reason}")))?;
    }
    let trains_again = recipe.train.resume_from_checkpoint == Resume::Fresh;
    if trains_again || !mark::is_finished(output_dir) {
        return Ok(Remaining::Training);
    }
    if !holds_run_of(recipe) {
        let (was, is) = (mark::read_settings(output_dir), identity::of_finished(recipe));
        if identity::differ_in_length(&was, &is) {
            check_extendable(recipe)?;
            return Ok(Remaining::Training);
        }
        if let Some((key, was, is)) = identity::difference(&was, &is) {
            let [key, was, is] = [key, was, is].map(str::to_owned);
            return Err(RunError::OtherFinishedRun { folder: output_dir.into(), key, was, is });
        }
    }
    Ok(match upload::is_pending(recipe) || evaluation::is_pending(recipe) {
        true => Remaining::AfterTraining,
        false => Remaining::Nothing,
    })
}

/// Whether the folder of `recipe` holds the finished run of this recipe.
pub fn holds_run_of(recipe: &Recipe) -> bool {
    let folder = recipe.output_dir();
    let (was, is) = (mark::read_settings(folder), identity::of_finished(recipe));
    let steps = || mark::read_mark(folder)["global_step"].as_u64();
    // A run of one epoch may have the number of steps that the recipe asks for now.
    let has_its_steps = || {
        identity::differ_in_length(&was, &is)
            && recipe.train.max_steps.is_some()
            && recipe.train.max_steps == steps()
    };
    mark::is_finished(folder) && (identity::difference(&was, &is).is_none() || has_its_steps())
}

/// Checks that a finished run of another length left a checkpoint from which it can continue.
fn check_extendable(recipe: &Recipe) -> Result<(), RunError> {
    let folder = recipe.output_dir();
    let can_continue = match &recipe.train.resume_from_checkpoint {
        Resume::Path(_) => true,
        Resume::Auto => {
            let (newest, _) = checkpoint::newest(folder);
            newest.is_some_and(|path| checkpoint::read_position(&path).is_ok())
        }
        Resume::Fresh => false,
    };
    let steps = mark::read_mark(folder)["global_step"].as_u64().unwrap_or(0);
    match can_continue {
        true => Ok(()),
        false => Err(RunError::NothingToExtend { folder: folder.into(), steps }),
    }
}

/// The checkpoint to continue from, as the recipe's `resume_from_checkpoint` says. The newest
/// complete one is the default; the observer gets the names of damaged ones. With `false` old
/// checkpoints must be allowed to be removed.
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
            check_inputs_stay(recipe, &old)?;
            Ok(None)
        }
        Resume::Auto => {
            let (newest, damaged) = checkpoint::newest(output_dir);
            for error in damaged {
                observer.on(&Event::Message(&format!("{error}; it is not used")))?;
            }
            Ok(newest)
        }
    }
}

/// Checks that no checkpoint to be removed holds a model or data that the recipe reads. A run that
/// was killed would not find them again.
fn check_inputs_stay(recipe: &Recipe, old: &[(u64, PathBuf)]) -> Result<(), RunError> {
    let model = &recipe.model;
    let models = [
        ("model_name_or_path", Some(&model.model_name_or_path)),
        ("tokenizer_name_or_path", model.tokenizer_name_or_path.as_ref()),
        ("ref_model_name_or_path", model.ref_model_name_or_path.as_ref()),
    ];
    let models = models.into_iter().filter_map(|(key, name)| Some((key, name?)));
    let sets: Vec<&DatasetSpec> = match &recipe.data.mixture {
        Mixture::Mixer { train, test, .. } => train.iter().chain(test).collect(),
        Mixture::Pooled { sets, .. } | Mixture::Listed { sets, .. } => sets.iter().collect(),
        Mixture::Named { train, test } => std::iter::once(train).chain(test).collect(),
    };
    let data = sets.into_iter().map(|set| ("data set", &set.id));
    for (key, name) in models.chain(data) {
        // A hub id is no path and cannot be resolved.
        let Ok(input) = Path::new(name).canonicalize() else { continue };
        let holds = |(_, path): &&(u64, PathBuf)| {
            path.canonicalize().is_ok_and(|path| input.starts_with(path))
        };
        if let Some((_, checkpoint)) = old.iter().find(holds) {
            let (key, name, checkpoint) = (key, name.clone(), checkpoint.clone());
            return Err(RunError::InputInCheckpoint { key, name, checkpoint });
        }
    }
    Ok(())
}

/// Removes the checkpoints of an earlier run in `output_dir`, its mark and its scores. Called once
/// everything about the new run is checked, and its weights are read.
///
/// # Errors
/// A file cannot be removed.
pub fn remove_earlier_run(output_dir: &Path) -> Result<(), RunError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        |source| RunError::Remove { path, source }
    };
    mark::remove_mark(output_dir).map_err(failed(output_dir))?;
    let scores = output_dir.join(scores::FOLDER).join(scores::FILE);
    if scores.exists() {
        std::fs::remove_file(&scores).map_err(failed(&scores))?;
    }
    for (_, path) in checkpoint::list(output_dir) {
        if checkpoint::is_ours(&path) {
            std::fs::remove_dir_all(&path).map_err(failed(&path))?;
        }
    }
    Ok(())
}

/// How the ranks share the rows of a step if the run continues from `checkpoint`. On another number
/// of ranks the accumulation is changed, so that a step has the same rows and the run the same
/// bits.
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
