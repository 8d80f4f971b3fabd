//! Reading a recipe whose stage nobody named.

use std::path::Path;

use super::error::RecipeErrors;
use super::stage::Stage;
use crate::recipe::Recipe;

impl Recipe {
    /// Reads the recipe at `path` as one of `stage`. Without a stage, the stages that the path
    /// names are tried first, then the others: the first under which the recipe has no error is
    /// taken.
    ///
    /// # Errors
    /// The errors of the recipe as one of `stage`; without a stage, those of the stage under which
    /// it has fewest.
    pub fn load_any(
        path: &Path,
        stage: Option<Stage>,
        overrides: &[String],
    ) -> Result<Recipe, RecipeErrors> {
        if let Some(stage) = stage {
            return Recipe::load(path, stage, overrides);
        }
        let mut fewest: Option<RecipeErrors> = None;
        for stage in likely_first(path) {
            match Recipe::load(path, stage, overrides) {
                Ok(recipe) => return Ok(recipe),
                Err(errors) => {
                    if fewest.as_ref().is_none_or(|least| errors.0.len() < least.0.len()) {
                        fewest = Some(errors);
                    }
                }
            }
        }
        Err(fewest.expect("at least one stage was tried"))
    }
}

/// All stages; those whose name is part of the path come first.
fn likely_first(path: &Path) -> Vec<Stage> {
    let path = path.to_string_lossy().to_lowercase();
    let is_named = |stage: &Stage| {
        let also = if *stage == Stage::Cpo { "simpo" } else { stage.command() };
        path.contains(stage.command()) || path.contains(also)
    };
    let mut stages = Stage::ALL.to_vec();
    stages.sort_by_key(|stage| !is_named(stage));
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_names_the_stage_to_try_first() {
        let first = |path: &str| likely_first(Path::new(path))[0];
        assert_eq!(first("recipes/zephyr/KTO/config.yaml"), Stage::Kto);
        assert_eq!(first("simpo.yaml"), Stage::Cpo);
        assert_eq!(first("config.yaml"), Stage::Sft);
    }
}
