//! Checks that all ranks train the same model on the same data.

use super::error::RunError;
use crate::parallel::Ranks;
use crate::parallel::join::{agree, program_hash};
use crate::plan::Plan;
use crate::recipe::Recipe;

/// Checks that all ranks were started with the same program, recipe and overrides.
///
/// # Errors
/// Names the first rank that differs, on all ranks.
pub fn check_same_start(recipe: &Recipe, ranks: &Ranks) -> Result<(), RunError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let Recipe { stage, model, data, train, objective, evaluation, .. } = recipe;
    let settings = (stage, model, data, train, objective, evaluation);
    let settings = serde_json::to_vec(&settings).expect("settings are plain data");
    let settings = *blake3::hash(&settings).as_bytes();
    let facts = [("program", program_hash()?), ("recipe or overrides", settings)];
    Ok(agree(ranks, &facts)?)
}

/// Checks that all ranks train the same model on the same rows.
///
/// # Errors
/// Names the first rank that differs, on all ranks.
pub fn check_same_inputs(plan: &Plan, ranks: &Ranks) -> Result<(), RunError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let model = plan.source.hash()?;
    Ok(agree(ranks, &[("data", plan.rows.fingerprint()), ("model", model)])?)
}
