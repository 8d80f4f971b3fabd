//! The files of a finished run: the model in Hugging Face's layout, record, card and mark.

use std::io;
use std::path::Path;

use serde_json::json;

use super::card::card;
use super::error::RunError;
use super::{identity, mark};
use crate::files::replace::{is_random_name, temporary_folder};
use crate::files::shards::is_weights;
use crate::model::decoder::Decoder;
use crate::model::weights::{SHARD_BYTES, WeightsError};
use crate::plan::Plan;
use crate::report::results::{Measure, row_metrics, save_metrics};
use crate::train::identity::FORMAT_VERSION;
use crate::train::state::TrainerState;

/// The start of the name of a folder into which the model is being written.
const HIDDEN: &str = ".model-";

/// Why a model's files cannot be written.
#[derive(Debug, thiserror::Error)]
enum ModelError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes everything into the run's folder. The mark of a finished run comes last.
///
/// # Errors
/// The folder cannot be written.
pub fn write(plan: &Plan, model: &Decoder, state: &TrainerState) -> Result<(), RunError> {
    let folder = plan.recipe.output_dir();
    let was_removed = !folder.is_dir();
    std::fs::create_dir_all(folder).map_err(RunError::model(folder))?;
    write_model(plan, model).map_err(RunError::model(folder))?;
    write_record(plan, state).map_err(RunError::model(folder))?;
    let card = card(plan, &state.log_history);
    card.write(&folder.join("README.md")).map_err(RunError::model(folder))?;
    let mark = json!({
        "favonius": env!("CARGO_PKG_VERSION"),
        "stage": plan.recipe.stage,
        "global_step": state.global_step,
        "settings_version": FORMAT_VERSION,
        "settings": identity::of_finished(&plan.recipe),
    });
    mark::write_mark(folder, &mark).map_err(RunError::model(folder))?;
    match was_removed {
        true => Err(RunError::FolderRemoved { folder: folder.to_path_buf() }),
        false => Ok(()),
    }
}

/// Removes folders of processes that were killed while they wrote the model into `output_dir`.
/// No other process may be writing there.
///
/// # Errors
/// A folder cannot be removed.
pub fn remove_leftovers(output_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(output_dir)? {
        let entry = entry?;
        let is_ours = is_random_name(&entry.file_name().to_string_lossy(), HIDDEN);
        if is_ours && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Writes weights and model files into a hidden folder and then moves them, so that a kill leaves
/// no half-written file.
fn write_model(plan: &Plan, model: &Decoder) -> Result<(), ModelError> {
    let output_dir = plan.recipe.output_dir();
    let hidden = temporary_folder(output_dir, HIDDEN)?;
    let dtype = plan.saved_dtype();
    model.save_weights(hidden.path(), dtype, SHARD_BYTES)?;
    match &plan.adapter {
        // As in PEFT, an adapter has the configuration of its base.
        Some(_) => plan.tokenizer.save(hidden.path())?,
        None => plan.model_files.write(&plan.tokenizer, dtype, hidden.path())?,
    }
    remove_old_weights(output_dir)?;
    remove_old_configuration(output_dir)?;
    for entry in std::fs::read_dir(hidden.path())? {
        let entry = entry?;
        std::fs::rename(entry.path(), output_dir.join(entry.file_name()))?;
    }
    Ok(())
}

/// Removes the weights of an earlier run, whose shards do not belong to the new index. Other files
/// stay, such as `model_ema.safetensors`.
fn remove_old_weights(output_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(output_dir)? {
        let entry = entry?;
        if is_weights(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes the configuration of an earlier run. A full model in a folder with the settings of an
/// adapter would count as an adapter, and an adapter uses the configuration of its base.
fn remove_old_configuration(output_dir: &Path) -> io::Result<()> {
    for name in ["adapter_config.json", "config.json", "generation_config.json"] {
        match std::fs::remove_file(output_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Writes `trainer_state.json` and the result files (`train_results.json`, `eval_results.json` and
/// `all_results.json`) as the example scripts of transformers do.
fn write_record(plan: &Plan, state: &TrainerState) -> io::Result<()> {
    let output_dir = plan.recipe.output_dir();
    state.write(&output_dir.join("trainer_state.json"))?;
    let [train_rows, test_rows] = plan.rows.counts();
    let last = |key: &str| state.log_history.iter().rev().find(|row| row.get(key).is_some());
    for (split, key, rows) in
        [("train", "train_loss", train_rows), ("eval", "eval_loss", test_rows)]
    {
        if let Some(row) = last(key) {
            let mut metrics = row_metrics(row);
            metrics.push((format!("{split}_samples"), Measure::from(rows as u64)));
            save_metrics(output_dir, split, &metrics)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_written_models_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [".model-aB3xY9", ".model-mine", ".models-aB3xY9"] {
            std::fs::create_dir(path(name)).unwrap();
            std::fs::write(path(name).join("model.safetensors"), "half").unwrap();
        }
        std::fs::write(path(".model-abcdef"), "a file").unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert!(!path(".model-aB3xY9").exists());
        let others = [".model-mine", ".models-aB3xY9", ".model-abcdef"];
        assert!(others.iter().all(|name| path(name).exists()));
    }

    #[test]
    fn only_the_names_of_saved_weights_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ours = [
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        let others = [
            "model_ema.safetensors",
            "model-ema-00001-of-00002.safetensors",
            "model-1-of-2.safetensors",
            "model-00001-of-00002.safetensors.bak",
            "model.fp16.safetensors",
            "models.index.json",
            "model_ema.safetensors.index.json",
        ];
        for name in ours.iter().chain(&others) {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        remove_old_weights(folder.path()).unwrap();
        assert!(ours.iter().all(|name| !folder.path().join(name).exists()));
        assert!(others.iter().all(|name| folder.path().join(name).is_file()));
    }
}
