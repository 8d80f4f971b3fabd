//! `plan.json`: what a run is about to do, and on which machine.

use std::path::Path;

use super::error::RunError;
use crate::model::files::dtype_name;
use crate::plan::Plan;
use crate::report::model_card::Source;
use crate::report::run_facts::{Facts, RunFacts, machine};

/// Writes `plan.json` into the run's folder.
///
/// # Errors
/// The run's folder cannot be written.
pub fn write(plan: &Plan) -> Result<(), RunError> {
    let recipe = &plan.recipe;
    let schedule = &plan.schedule;
    let [train_rows, test_rows] = plan.rows.counts();
    let facts = [
        ("recipe", recipe.file.display().to_string()),
        ("model", source(&recipe.model.model_name_or_path).name),
        ("architecture", format!("{:?}", plan.config.family.architecture)),
        ("parameters", plan.config.parameters().to_string()),
        ("trained parameters", plan.trained_parameters().to_string()),
        ("computes in", dtype_name(plan.dtype).into()),
        ("device", recipe.train.device.to_string()),
        ("training rows", train_rows.to_string()),
        ("held-out rows", test_rows.to_string()),
        ("rows a step", schedule.rows_a_step().to_string()),
        ("steps an epoch", schedule.steps_per_epoch.to_string()),
        ("warm-up steps", schedule.warmup.to_string()),
        ("steps", schedule.total.to_string()),
    ];
    let output_dir = recipe.output_dir();
    let facts = RunFacts {
        stage: recipe.stage.command().into(),
        facts: facts.map(|(name, value)| (name.to_string(), value)).to_vec(),
        written: recipe.written.clone(),
        filled: recipe.filled.clone(),
        versions: versions(),
        machine: machine(),
    };
    let written = facts.write(output_dir);
    written.map_err(|source| RunError::Facts { folder: output_dir.into(), source })
}

/// The versions of the program and of the libraries that decide its numbers.
pub fn versions() -> Facts {
    [("Favonius", env!("CARGO_PKG_VERSION")), ("Burn", "0.22.1"), ("Tokenizers", "0.22.2")]
        .map(|(name, version)| (name.to_string(), version.to_string()))
        .to_vec()
}

/// The model or data set called `name`, for `plan.json` and the model card. A name on the hub keeps
/// its owner. A local folder loses its path.
pub fn source(name: &str) -> Source {
    let local = Path::new(name).exists() || name.matches('/').count() != 1 || name.starts_with('.');
    let short = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    Source { name: if local { short.into() } else { name.into() }, on_hub: !local }
}
