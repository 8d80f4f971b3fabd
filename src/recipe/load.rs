//! Reads a [`Recipe`] from text or from a file.

use std::path::Path;

use super::error::RecipeErrors;
use super::settings::Recipe;
use super::stage::Stage;
use super::{overrides, schema, yaml};

impl Recipe {
    /// Reads the recipe at `path`. Each of `overrides` is `--key=value` or `--key.sub=value`; if a
    /// key is given twice, the later value wins.
    ///
    /// # Errors
    /// All errors of the recipe and of the overrides at once.
    pub fn load(path: &Path, stage: Stage, overrides: &[String]) -> Result<Recipe, RecipeErrors> {
        let text = yaml::read_text(path)?;
        Self::parse(&text, path, stage, overrides)
    }

    /// Like [`Recipe::load`], for text that is already in memory. `file` is the name that errors
    /// show; a `chat_template` file is searched first in the current folder, then in the folder of
    /// `file`.
    ///
    /// # Errors
    /// All errors of the recipe and of the overrides at once.
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
