//! `favonius run`: the stages of a pipeline in turn.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::ending::Ending;
use super::errors::UsageError;
use super::launch::Launch;
use super::observers::{first_gpu, reporters, screen_of};
use super::signals::stop_flag;
use crate::parallel::Ranks;
use crate::recipe::{Pipeline, Recipe};
use crate::report::screen::Screen;
use crate::run::{Context, check_folders, recipes_of, run_pipeline};

/// Runs the pipeline at `path`. An override applies to every stage that has its key.
pub fn run(
    path: &Path,
    overrides: &[String],
    quiet: bool,
    launch: Launch,
) -> anyhow::Result<Ending> {
    let recipes = recipes_of(&Pipeline::load(path)?, overrides)?;
    check_folders(&recipes).map_err(|error| UsageError(error.to_string()))?;
    let gpu = recipes.iter().find_map(first_gpu);
    launch
        .together(gpu, |ranks| run_stages(recipes, &screen_of(ranks, quiet), &*stop_flag()?, ranks))
}

/// Runs `recipes` with one screen for all. A stage with `disable_tqdm` shows no bars on it.
pub fn run_stages(
    recipes: Vec<Recipe>,
    screen: &Screen,
    stop: &AtomicBool,
    ranks: &Ranks,
) -> anyhow::Result<Ending> {
    let ending = run_pipeline(recipes, &Context { ranks, stop }, &mut |stage| {
        let recipe = stage.recipe;
        let (kind, file) = (recipe.stage.name(), recipe.file.display());
        screen.tell(&format!("stage {} of {}: {kind}, {file}", stage.number, stage.total));
        let screen = match recipe.train.disable_tqdm {
            true => screen_of(ranks, true),
            false => screen.clone(),
        };
        Box::new(reporters(recipe, screen, ranks))
    })?;
    Ending::of(ending)
}
