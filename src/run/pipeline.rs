//! Several recipes, one after the other. Each starts from the model of the one before.

use std::path::Path;

use super::context::Context;
use super::error::RunError;
use super::run_recipe::{Ending, run_recipe};
use super::{identity, mark, start, upload};
use crate::recipe::{Pipeline, Recipe, RecipeErrors, text_override};
use crate::train::checkpoint;
use crate::train::event::{Event, Observer};

/// A stage of a pipeline that is about to begin.
pub struct StageStart<'a> {
    /// The number of the stage, from 1.
    pub number: usize,
    /// The number of stages.
    pub total: usize,
    pub recipe: &'a Recipe,
}

/// Runs `recipes` in their order with [`run_recipe`]. `observer_of` makes the observer of each
/// stage. If the upload of a stage fails, the next stages still run, and the first such failure is
/// the ending.
///
/// # Errors
/// See [`run_recipe`]. Every upload is checked before the first stage begins.
pub fn run_pipeline(
    recipes: Vec<Recipe>,
    context: &Context,
    observer_of: &mut dyn FnMut(StageStart) -> Box<dyn Observer>,
) -> Result<Ending, RunError> {
    check_folders(&recipes)?;
    context.ranks.decide("earlier runs", || check_later_stages(&recipes))?;
    context.ranks.decide("the hub", || {
        let pending = recipes.iter().filter(|recipe| upload::is_pending(recipe));
        pending.map(upload::destination).collect::<Result<Vec<_>, _>>()
    })?;
    let total = recipes.len();
    let mut not_uploaded = None;
    for (index, recipe) in recipes.into_iter().enumerate() {
        let mut observer = observer_of(StageStart { number: index + 1, total, recipe: &recipe });
        match run_recipe(recipe, context, &mut *observer)? {
            Ending::Finished | Ending::AlreadyFinished => {}
            Ending::Interrupted => return Ok(Ending::Interrupted),
            Ending::NotUploaded(failed) => {
                observer.on(&Event::Message(&failed.to_string()))?;
                not_uploaded.get_or_insert(failed);
            }
        }
    }
    Ok(not_uploaded.map_or(Ending::Finished, Ending::NotUploaded))
}

/// Checks that no two stages have the same folder: the second would find a finished run in it.
///
/// # Errors
/// [`RunError::SharedFolder`].
pub fn check_folders(recipes: &[Recipe]) -> Result<(), RunError> {
    for (index, recipe) in recipes.iter().enumerate() {
        let folder = recipe.output_dir();
        if let Some(other) = recipes[..index].iter().position(|r| r.output_dir() == folder) {
            return Err(RunError::SharedFolder {
                first: other + 1,
                second: index + 1,
                folder: folder.to_path_buf(),
            });
        }
    }
    Ok(())
}

/// Checks that no stage is extended whose model an existing run of the next stage began from. That
/// run would count as finished, although its first model is another one now.
fn check_later_stages(recipes: &[Recipe]) -> Result<(), RunError> {
    for (index, pair) in recipes.windows(2).enumerate() {
        let [stage, next] = pair else { unreachable!("windows have two recipes") };
        let (folder, next_folder) = (stage.output_dir(), next.output_dir());
        let was = mark::read_settings(folder);
        let is_extended = mark::is_finished(folder)
            && !start::holds_run_of(stage)
            && identity::differ_in_length(&was, &identity::of_finished(stage));
        let begins_there = Path::new(&next.model.model_name_or_path) == folder;
        let exists = mark::is_finished(next_folder) || !checkpoint::list(next_folder).is_empty();
        if is_extended && begins_there && exists {
            let (stage, next, folder) = (index + 1, index + 2, next_folder.to_path_buf());
            return Err(RunError::LaterStage { stage, next, folder });
        }
    }
    Ok(())
}

/// Reads the recipes of all stages. A stage starts from the model that the stage before it wrote,
/// unless its own overrides name another. `overrides` apply to every stage.
///
/// # Errors
/// All mistakes in all recipes.
pub fn recipes_of(pipeline: &Pipeline, overrides: &[String]) -> Result<Vec<Recipe>, RecipeErrors> {
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut errors = Vec::new();
    for stage in &pipeline.stages {
        let mut stage_overrides = stage.overrides.clone();
        let starts_elsewhere = stage.overrides.iter().any(|text| names_model(text));
        if let Some(before) = recipes.last()
            && !starts_elsewhere
        {
            let folder = before.output_dir().display().to_string();
            stage_overrides.push(text_override("model_name_or_path", &folder));
        }
        stage_overrides.extend_from_slice(overrides);
        match Recipe::load(&stage.recipe, stage.kind, &stage_overrides) {
            Ok(recipe) => recipes.push(recipe),
            Err(found) => errors.extend(found.0),
        }
    }
    if errors.is_empty() { Ok(recipes) } else { Err(RecipeErrors(errors)) }
}

/// Whether an override names the model to start from.
fn names_model(argument: &str) -> bool {
    let key = argument.trim_start_matches('-').split_once('=').map_or("", |(key, _)| key);
    key.replace('-', "_") == "model_name_or_path"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_starts_from_the_folder_of_the_one_before_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let model_of_second = |output_dir: &str, overrides: &str| {
            for name in ["sft.yaml", "dpo.yaml"] {
                let text = format!(
                    "model_name_or_path: m\ndataset_name: d\noutput_dir: \"{output_dir}\"\n"
                );
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let text = format!(
                "stages:\n- {{kind: sft, recipe: sft.yaml}}\n\
                 - {{kind: dpo, recipe: dpo.yaml, overrides: {{{overrides}}}}}\n"
            );
            let pipeline = Pipeline::parse(&text, &folder.path().join("p.yaml")).unwrap();
            recipes_of(&pipeline, &[]).unwrap()[1].model.model_name_or_path.clone()
        };
        for name in ["sft #2", "a: b", "null", "~", "[x]", "{{ x }}"] {
            assert_eq!(model_of_second(name, ""), name);
        }
        assert_eq!(model_of_second("sft", "model-name-or-path: other"), "other");
        assert_eq!(model_of_second("sft", "model_name_or_path: \"o #1\""), "o #1");
    }
}
