//! `favonius sft`, `dpo`, `orpo`, `cpo`, `tpo`, `kto`: one recipe.

use std::path::Path;

use super::ending::Ending;
use super::launch::Launch;
use super::observers::{first_gpu, reporters, screen_of};
use super::signals::stop_flag;
use crate::recipe::{Recipe, Stage};
use crate::run::{Context, run_recipe};

/// Runs the recipe at `path` to its end, or to the next step after a signal.
pub fn run(
    stage: Stage,
    path: &Path,
    overrides: &[String],
    quiet: bool,
    launch: Launch,
) -> anyhow::Result<Ending> {
    let recipe = Recipe::load(path, stage, overrides)?;
    launch.together(first_gpu(&recipe), |ranks| {
        let screen = screen_of(ranks, quiet || recipe.train.disable_tqdm);
        let mut observer = reporters(&recipe, screen, ranks);
        let stop = stop_flag()?;
        let context = Context { ranks, stop: &stop };
        Ending::of(run_recipe(recipe, &context, &mut observer)?)
    })
}
