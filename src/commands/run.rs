//! `favonius run`: the stages of a pipeline in turn.

use std::path::Path;

use super::UsageError;
use super::ending::Ending;
use super::launch::Launch;
use super::signals::stop_flag;
use crate::recipe::Pipeline;
use crate::run::pipeline::{check_folders, recipes, run_stages};
use crate::run::stage::{screen_of, trains_on_gpu};

/// Runs the pipeline at `path`. `overrides` go to every stage that knows their key.
pub fn run(
    path: &Path,
    overrides: &[String],
    quiet: bool,
    launch: Launch,
) -> anyhow::Result<Ending> {
    let recipes = recipes(&Pipeline::load(path)?, overrides)?;
    check_folders(&recipes).map_err(|error| UsageError(error.to_string()))?;
    let on_gpu = recipes.iter().any(trains_on_gpu);
    launch.together(on_gpu, |ranks| {
        Ok(run_stages(recipes, &screen_of(ranks, quiet), &*stop_flag()?, ranks)?.into())
    })
}
