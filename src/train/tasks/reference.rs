//! The source of the reference's log-probs during training.

use std::cell::RefCell;
use std::path::Path;

use crate::data::ragged::RaggedBatch;
use crate::model::decoder::Decoder;
use crate::model::weights::{SHARD_BYTES, WeightsError};
use crate::objective::reference::{ReferenceLogps, sequence_logps};
use crate::recipe::SyncRefModel;
use crate::train::task::Split;

/// The reference of a run.
pub enum ReferenceSource {
    /// No reference: its log-probs count as 0.
    None,
    /// A frozen model, whose log-probs were computed before training.
    Stored { train: ReferenceLogps, test: ReferenceLogps },
    /// A model in memory. It follows the policy (TR-DPO) or does not change.
    InMemory { model: Box<RefCell<Decoder>>, sync: Option<SyncRefModel> },
}

impl ReferenceSource {
    /// The folder of a following reference within a checkpoint.
    pub const FOLDER: &str = "reference";

    /// Log-probs of the first and of the second response of each row, in nats, `[rows]` each.
    pub fn logps(
        &self,
        split: Split,
        rows: &[usize],
        batch: &RaggedBatch,
        ld_alpha: Option<f64>,
    ) -> [Vec<f64>; 2] {
        let stored = match (self, split) {
            (Self::None, _) => return [vec![0.0; rows.len()], vec![0.0; rows.len()]],
            (Self::InMemory { model, .. }, _) => {
                let sums = sequence_logps(&model.borrow(), batch, ld_alpha);
                return [0, 1].map(|side| sums.iter().copied().skip(side).step_by(2).collect());
            }
            (Self::Stored { train, .. }, Split::Train) => train,
            (Self::Stored { test, .. }, Split::Test) => test,
        };
        [&stored.first, &stored.second].map(|logps| rows.iter().map(|row| logps[*row]).collect())
    }

    /// TR-DPO (arXiv 2404.09656): every `ref_model_sync_steps` updates,
    /// `reference ← α · policy + (1 − α) · reference`.
    pub fn follow(&self, step: u64, policy: &Decoder) {
        let Self::InMemory { model, sync: Some(sync) } = self else { return };
        if !step.is_multiple_of(sync.steps) {
            return;
        }
        let mut model = model.borrow_mut();
        for (reference, policy) in model.parameters_mut().into_iter().zip(policy.parameters()) {
            let kept = reference.vector().mul_scalar(1.0 - sync.mixup_alpha);
            reference.value.set(kept + policy.vector().mul_scalar(sync.mixup_alpha));
        }
    }

    /// Writes a following reference into a checkpoint.
    ///
    /// # Errors
    /// The checkpoint cannot be written.
    pub fn save(&self, checkpoint: &Path) -> Result<(), WeightsError> {
        let Self::InMemory { model, sync: Some(_) } = self else { return Ok(()) };
        let model = model.borrow();
        let folder = checkpoint.join(Self::FOLDER);
        let config = folder.join("config.json");
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(&config, format!("{:#}\n", model.config.raw)))
            .map_err(|source| WeightsError::Write { path: config, source })?;
        model.save_weights(&folder, model.dtype(), SHARD_BYTES)
    }
}
