//! One recipe, from its folder to its upload.

use std::path::Path;

use super::agree::{check_same_inputs, check_same_start};
use super::context::Context;
use super::error::RunError;
use super::evaluation;
use super::start::{self, LockedRun, Work};
use super::training::{Run, Training};
use super::upload::{self, NotUploaded};
use crate::files::cache_lock::remove_unused_locks;
use crate::files::replace;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::train::event::Observer;

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// The folder holds the finished model.
    Finished,
    /// An earlier start had finished the run, and nothing was left to do.
    AlreadyFinished,
    /// The run was asked to stop. The same call continues from what was saved.
    Interrupted,
    /// The folder holds the finished model, but its upload failed.
    NotUploaded(NotUploaded),
}

/// Runs a recipe to its end. After `context.stop` is set, the run ends at the end of its step and
/// is saved. A run that was interrupted continues from its newest checkpoint.
///
/// # Errors
/// See [`RunError`]. Checkpoints that were saved before stay as they are.
pub fn run_recipe(
    recipe: Recipe,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Ending, RunError> {
    let ranks = context.ranks;
    check_same_start(&recipe, ranks)?;
    let locked = match start::open(&recipe, context, observer)? {
        Work::Nothing => return Ok(Ending::AlreadyFinished),
        Work::AfterTraining(locked) => return after_training(&recipe, &locked, context, observer),
        Work::Training(locked) => locked,
    };
    ranks.first_before_others("the tasks", || evaluation::check(&recipe))?;
    ranks.at_work(|| "preparing the data".into());
    let plan = ranks.first_before_others("the data", || {
        Plan::new(recipe, locked.sharing, observer).map_err(RunError::from)
    })?;
    check_same_inputs(&plan, ranks)?;
    if ranks.is_first() {
        remove_leftovers(&plan.cache);
    }
    let mut run = Run::new(&plan, context, observer)?;
    if let Some(checkpoint) = &locked.checkpoint {
        run.resume(checkpoint)?;
    }
    if locked.begins_anew {
        run.replace_earlier_run();
    }
    match run.train()? {
        Training::Interrupted => return Ok(Ending::Interrupted),
        Training::Done(trained) => trained.finish()?,
    }
    after_training(&plan.recipe, &locked, context, observer)
}

/// Removes temporary files and locks in the cache that killed processes left. Other processes may
/// be using the cache.
fn remove_leftovers(cache: &Path) {
    let is_ours = |name: &str| name.starts_with("tokens-") || name.starts_with("reference-");
    replace::remove_leftovers(cache, is_ours);
    remove_unused_locks(cache, is_ours);
}

/// Evaluates a finished run on benchmark tasks, and uploads it, if its recipe asks for these.
fn after_training(
    recipe: &Recipe,
    locked: &LockedRun,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Ending, RunError> {
    if !evaluation::of_finished_run(recipe, context, observer)? {
        return Ok(Ending::Interrupted);
    }
    let Some(destination) = &locked.destination else { return Ok(Ending::Finished) };
    match upload::upload_run(recipe, destination, observer, context.ranks)? {
        None => Ok(Ending::Finished),
        Some(failed) => Ok(Ending::NotUploaded(failed)),
    }
}
