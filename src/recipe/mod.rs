//! Recipes: YAML text with the keys of the alignment-handbook and TRL → checked, typed settings.
//!
//! The way through the files: [`yaml`] makes a tree in which every key and value knows its place, [`overrides`] lays
//! `--key=value` over it, [`schema`] is the list of all keys (it reads them through [`reader`], which fills in defaults and
//! collects every error; [`preferences`] has those of the preference objectives), [`settings`] and [`objectives`] are what
//! comes out; [`hub`] has both for the upload. [`pipeline`] lists the stages of `favonius run`, [`sweep`] the runs of `favonius sweep`.

mod any_stage;
mod choice;
mod code;
mod error;
mod hub;
mod mixture;
mod number;
mod objectives;
mod outside;
mod overrides;
mod pipeline;
mod preferences;
mod reader;
mod rules;
mod schema;
mod settings;
mod sweep;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use error::{COMMAND_LINE, ErrorPlace, RecipeError, RecipeErrors};
pub use hub::{HubToken, KeyPlace, PushToHub};
pub use objectives::{
    CpoLoss, CpoSettings, DpoSettings, FDivergence, KtoLoss, KtoSettings, Lengths, LogitsOver,
    LossType, OrpoSettings, SyncRefModel, Truncation, WeightedLoss,
};
pub use pipeline::{Pipeline, PipelineStage};
pub use settings::{
    DataSettings, DatasetSpec, DeviceChoice, Dtype, Every, LrSchedulerKwargs, Mixture,
    ModelSettings, Objective, Optim, Packing, Preprocessing, Reporter, Resume, Sampling, Schedule,
    SftSettings, SplitSize, Stage, TrainSettings, Wanted, Warmup,
};
pub use sweep::{Sweep, SweepRun};

/// A recipe with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub stage: Stage,
    /// The file it came from.
    pub file: PathBuf,
    pub model: ModelSettings,
    pub data: DataSettings,
    pub train: TrainSettings,
    pub objective: Objective,
    /// The keys that the user wrote, after overrides: canonical key and its text, in the order of the file.
    pub written: Vec<(String, String)>,
    /// Every default that was filled in: canonical key and value.
    pub filled: Vec<(String, String)>,
    /// One line for each accepted key that has no meaning here.
    pub notes: Vec<String>,
}

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

    /// Where checkpoints and the final model go.
    pub fn output_dir(&self) -> &Path {
        &self.train.output_dir
    }
}
