//! One recipe, from its folder to its upload.

use super::agree::{same_material, same_start};
use super::context::Context;
use super::error::RunError;
use super::start::{self, Claimed, Work};
use super::training::{Run, Training};
use super::upload::{self, NotUploaded};
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
    /// A signal came. The same call continues from what was saved.
    Interrupted,
    /// The folder holds the finished model, but its upload failed.
    NotUploaded(NotUploaded),
}

/// Runs a recipe to its end, or to the next step after `context.stop` was set. A run that was
/// interrupted continues from its newest checkpoint.
///
/// # Errors
/// See [`RunError`]. What was saved before stays as it is.
pub fn run_recipe(
    recipe: Recipe,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Ending, RunError> {
    let ranks = context.ranks;
    same_start(&recipe, ranks)?;
    let claimed = match start::open(&recipe, context, observer)? {
        Work::Nothing => return Ok(Ending::AlreadyFinished),
        Work::Upload(claimed) => return upload_of(&recipe, &claimed, context, observer),
        Work::Training(claimed) => claimed,
    };
    ranks.at_work(|| "preparing the data".into());
    let plan = ranks.first_before_others("the data", || {
        Plan::new(recipe, claimed.sharing, observer).map_err(RunError::from)
    })?;
    same_material(&plan, ranks)?;
    let mut run = Run::new(&plan, context, observer)?;
    if let Some(checkpoint) = &claimed.checkpoint {
        run.resume(checkpoint)?;
    }
    match run.train()? {
        Training::Interrupted => return Ok(Ending::Interrupted),
        Training::Done(trained) => trained.finish()?,
    }
    upload_of(&plan.recipe, &claimed, context, observer)
}

fn upload_of(
    recipe: &Recipe,
    claimed: &Claimed,
    context: &Context,
    observer: &mut dyn Observer,
) -> Result<Ending, RunError> {
    let Some(destination) = &claimed.destination else { return Ok(Ending::Finished) };
    match upload::at_the_end(recipe, destination, observer, context.ranks)? {
        None => Ok(Ending::Finished),
        Some(failed) => Ok(Ending::NotUploaded(failed)),
    }
}
