//! The stages of a pipeline in turn.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::stage::{Ending, run_recipe};
use super::upload;
use crate::parallel::Ranks;
use crate::recipe::{Pipeline, Recipe, RecipeErrors};
use crate::report::progress::Screen;

/// Two stages would train into one folder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SameFolder(String);

/// Runs the pipeline at `path` on one rank.
pub fn run_pipeline(path: &Path, screen: &Screen, stop: &AtomicBool) -> anyhow::Result<Ending> {
    run_stages(recipes(&Pipeline::load(path)?, &[])?, screen, stop, &Ranks::one())
}

pub fn run_stages(
    recipes: Vec<Recipe>,
    screen: &Screen,
    stop: &AtomicBool,
    ranks: &Ranks,
) -> anyhow::Result<Ending> {
    let total = recipes.len();
    // What is wrong with the upload of a later stage is better known before the first one trains.
    ranks.decide("the hub", || {
        let waiting = recipes.iter().filter(|recipe| upload::is_pending(recipe));
        waiting.map(upload::destination).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut not_uploaded = Vec::new();
    for (index, recipe) in recipes.into_iter().enumerate() {
        let kind = recipe.stage.name();
        screen.tell(&format!("stage {} of {total}: {kind}, {}", index + 1, recipe.file.display()));
        match run_recipe(recipe, screen.clone(), stop, ranks) {
            Ok(Ending::Done) => {}
            Ok(Ending::Interrupted) => return Ok(Ending::Interrupted),
            // The model is there, and the next stage can start from it.
            Err(error) => {
                let failed = error.downcast::<upload::NotUploaded>()?;
                screen.tell(&failed.to_string());
                not_uploaded.push(failed);
            }
        }
    }
    match not_uploaded.into_iter().next() {
        Some(first) => Err(first.into()),
        None => Ok(Ending::Done),
    }
}

/// Fails where two stages would train into one folder: the second would find a finished run there.
pub fn check_folders(recipes: &[Recipe]) -> Result<(), SameFolder> {
    for (index, recipe) in recipes.iter().enumerate() {
        let folder = recipe.output_dir();
        if let Some(other) = recipes[..index].iter().position(|r| r.output_dir() == folder) {
            return Err(SameFolder(format!(
                "stages {} and {} have the same output_dir, {}\nhelp: give each stage's recipe its own",
                other + 1,
                index + 1,
                folder.display()
            )));
        }
    }
    Ok(())
}

/// Reads all recipes before the first stage starts. A stage starts from what the one before it wrote.
pub fn recipes(pipeline: &Pipeline, overrides: &[String]) -> Result<Vec<Recipe>, RecipeErrors> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut errors = Vec::new();
    for stage in &pipeline.stages {
        let mut stage_overrides = stage.overrides.clone();
        let starts_elsewhere =
            stage.overrides.iter().any(|o| o.starts_with("--model_name_or_path="));
        if let Some(before) = recipes.last()
            && !starts_elsewhere
        {
            let folder = before.output_dir().display();
            stage_overrides.push(format!("--model_name_or_path={folder}"));
        }
        stage_overrides.extend_from_slice(overrides);
        match Recipe::load(&stage.recipe, stage.kind, &stage_overrides) {
            Ok(recipe) => recipes.push(recipe),
            Err(found) => errors.extend(found.0),
        }
    }
    if errors.is_empty() { Ok(recipes) } else { Err(RecipeErrors(errors)) }
}
