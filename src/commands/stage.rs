//! `favonius sft`, `dpo`, `orpo`, `cpo`, `kto`: one recipe.

use std::path::Path;

use super::ending::Ending;
use super::launch::Launch;
use super::signals::stop_flag;
use crate::recipe::{Recipe, Stage};
use crate::run::stage::{run_recipe, screen_of, trains_on_gpu};

/// Runs the recipe at `path` to its end, or to the next step after a signal.
pub fn run(
    stage: Stage,
    path: &Path,
    overrides: &[String],
    quiet: bool,
    launch: Launch,
) -> anyhow::Result<Ending> {
    let recipe = Recipe::load(path, stage, overrides)?;
    launch.together(trains_on_gpu(&recipe), |ranks| {
        let screen = screen_of(ranks, quiet || recipe.train.disable_tqdm);
        Ok(run_recipe(recipe, screen, &*stop_flag()?, ranks)?.into())
    })
}
