//! Text or file → [`Recipe`].

use std::path::Path;

use super::error::RecipeErrors;
use super::settings::{Recipe, Stage};
use super::{overrides, schema, yaml};

impl Recipe {
    /// Reads the recipe at `path`. `overrides` are `--key=value` or `--key.sub=value`; of two for the same key the later
    /// one counts.
    ///
    /// # Errors
    /// Everything that is wrong with the recipe and the overrides, at once.
    pub fn load(path: &Path, stage: Stage, overrides: &[String]) -> Result<Recipe, RecipeErrors> {
        let text = yaml::read_text(path)?;
        Self::parse(&text, path, stage, overrides)
    }

    /// As [`Recipe::load`], for text that is already there; `file` is what errors name, and its folder is the second place
    /// (after the current one) where a `chat_template` file is looked for.
    ///
    /// # Errors
    /// Everything that is wrong with the recipe and the overrides, at once.
    pub fn parse(
        text: &str,
        file: &Path,
        stage: Stage,
        overrides: &[String],
    ) -> Result<Recipe, RecipeErrors> {
        let mut sources = yaml::Sources::new(file, text);
        let mut root = sources.parse_file()?;
        let wrong_overrides = overrides::apply(&mut root, &mut sources, overrides);
        schema::read(root, &sources, stage, wrong_overrides)
    }
}
