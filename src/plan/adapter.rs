//! The adapter that a run trains.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::PlanError;
use crate::model::adapter::peft::adapter_parameters;
use crate::model::adapter::source::Outermost;
use crate::model::adapter::{LoraConfig, ModelSource};
use crate::model::config::ModelConfig;
use crate::recipe::{Recipe, ReferenceKind};

/// The adapter that a run trains, and its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedAdapter {
    pub config: LoraConfig,
    /// The folder of the adapter that is trained further; `None` for a new adapter.
    pub from: Option<PathBuf>,
    /// The probability of dropout in training.
    pub dropout: f64,
    /// The number of weights that are trained.
    pub trained: usize,
}

impl PlannedAdapter {
    /// The adapter of a recipe whose model is `source`. With `use_peft` it is a new one; the
    /// adapters of `source` are merged first. Without it, the outermost adapter of `source` is
    /// trained further. `None` if all weights are trained.
    ///
    /// # Errors
    /// The adapter does not fit the model, or the reference of the recipe does not fit it.
    pub fn of(
        recipe: &Recipe,
        source: &ModelSource,
    ) -> Result<Option<(Self, ModelConfig)>, PlanError> {
        let model = &recipe.model;
        let (config, from, outermost) = match (&model.lora, source.outermost()) {
            (Some(lora), _) => {
                let revision = Some(model.model_revision.as_str()).filter(|name| *name != "main");
                let config = LoraConfig::of_recipe(lora, &model.model_name_or_path, revision);
                (config, None, Outermost::Merged)
            }
            (None, Some(outer)) => {
                (outer.config.clone(), Some(outer.folder.clone()), Outermost::Left)
            }
            (None, None) => return Ok(None),
        };
        if let ReferenceKind::Following(_) = ReferenceKind::of(&recipe.objective) {
            return Err(PlanError::FollowedAdapter(model.model_name_or_path.clone()));
        }
        let base = source.config(outermost)?;
        let outline = Self::outline(&config, &base)?;
        let dropout = if model.keeps_dropout { config.dropout } else { 0.0 };
        Ok(Some((Self { from, dropout, ..outline }, base)))
    }

    /// A new adapter on a model of `config`, of which nothing else is known.
    ///
    /// # Errors
    /// The adapter does not fit the model.
    pub fn outline(lora: &LoraConfig, config: &ModelConfig) -> Result<Self, PlanError> {
        let trained = adapter_parameters(&Arc::new(config.clone()), lora)?;
        let trained = trained.iter().map(|parameter| parameter.len()).sum();
        Ok(Self { config: lora.clone(), from: None, dropout: lora.dropout, trained })
    }

    /// How the outermost adapter of the run's model is loaded with its base.
    pub fn outermost(&self) -> Outermost {
        match self.from {
            Some(_) => Outermost::Left,
            None => Outermost::Merged,
        }
    }
}
