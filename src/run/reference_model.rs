//! The model that is the reference of a run.

use std::path::Path;

use burn::tensor::Device;

use super::error::RunError;
use super::load::load_model;
use crate::hub::resolve::resolve_model;
use crate::model::adapter::ModelSource;
use crate::model::adapter::source::Outermost;
use crate::model::decoder::Decoder;
use crate::model::weights::{WeightFormat, WeightsError};
use crate::plan::Plan;
use crate::train::checkpoint::Start;
use crate::train::event::Observer;

/// The model of the reference.
pub(super) struct Reference {
    source: ModelSource,
    /// How its outermost adapter is loaded.
    outermost: Outermost,
}

impl Reference {
    /// The reference of a plan: the model that the recipe names, else the policy before training.
    /// For a new adapter that is the model without it; an adapter that is trained further has a
    /// frozen copy of itself as reference.
    pub fn of(plan: &Plan) -> Result<Self, RunError> {
        if let Some(name) = &plan.recipe.model.ref_model_name_or_path {
            return Self::of_folder(&resolve_model(name, "main")?);
        }
        let outermost = match &plan.adapter {
            Some(adapter) if adapter.from.is_none() => Outermost::Merged,
            _ => Outermost::Attached,
        };
        Ok(Self { source: plan.source.clone(), outermost })
    }

    /// The model or adapter in a folder.
    pub fn of_folder(folder: &Path) -> Result<Self, RunError> {
        let source = ModelSource::of(folder).map_err(WeightsError::from)?;
        Ok(Self { source, outermost: Outermost::Attached })
    }

    /// The hash of everything that the log-probs depend on besides rows and settings.
    pub fn hash(&self) -> Result<[u8; 32], RunError> {
        let hash = self.source.hash()?;
        let is_merged = self.outermost == Outermost::Merged && self.source.outermost().is_some();
        Ok(match is_merged {
            true => *blake3::keyed_hash(&hash, b"merged").as_bytes(),
            false => hash,
        })
    }

    /// The reference, if it is the policy of a run that begins with `start`.
    pub fn of_start(&self, plan: &Plan, start: &Start) -> Option<Decoder> {
        let is_same = start.position.global_step == 0 && self.source == plan.source;
        let is_new = plan.adapter.as_ref().is_some_and(|adapter| adapter.from.is_none());
        match (is_new, self.outermost) {
            _ if !is_same => None,
            (true, Outermost::Merged) => Some(start.model.without_adapter()),
            (true, _) if self.source.outermost().is_none() => Some(start.model.without_adapter()),
            (false, Outermost::Attached) => Some(start.model.clone()),
            _ => None,
        }
    }

    /// Reads its weights.
    pub fn load(
        &self,
        device: &Device,
        format: WeightFormat,
        observer: &mut dyn Observer,
    ) -> Result<Decoder, RunError> {
        load_model(&self.source, self.outermost, device, format, observer)
    }
}
