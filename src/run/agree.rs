//! Whether all ranks train the same thing.

use crate::files::hash::hash_model;
use crate::parallel::Ranks;
use crate::parallel::join::{agree, program_hash};
use crate::plan::prepare::Prepared;
use crate::recipe::Recipe;

/// Fails on all ranks where they were not started alike.
pub fn same_start(recipe: &Recipe, ranks: &Ranks) -> anyhow::Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let settings = (&recipe.stage, &recipe.model, &recipe.data, &recipe.train, &recipe.objective);
    let settings = blake3::hash(&serde_json::to_vec(&settings)?);
    let facts = [("program", program_hash()?), ("recipe or overrides", *settings.as_bytes())];
    Ok(agree(ranks, &facts)?)
}

/// Fails on all ranks where they do not train the same model on the same rows.
pub fn same_material(prepared: &Prepared, ranks: &Ranks) -> anyhow::Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let model = hash_model(&prepared.model_folder)?;
    Ok(agree(ranks, &[("data", prepared.data_fingerprint), ("model", model)])?)
}
