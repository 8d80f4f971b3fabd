//! A plan for a run whose model or data are not on this machine.
//!
//! It needs the model's `config.json` and the number of rows only. No weight and no row is read,
//! and nothing is downloaded.

use super::error::PlanError;
use super::hub_facts::{self, RowCount};
use crate::data::row_counts::{count_rows, rows_in_files, sets};
use crate::hub::resolve::{dataset_is_here, model_here};
use crate::model::adapter::LoraConfig;
use crate::model::adapter::peft::is_adapter;
use crate::model::config::ModelConfig;
use crate::recipe::{DatasetSpec, Objective, Recipe};

/// The sizes of a run, without its files.
pub struct OfflinePlan {
    pub config: ModelConfig,
    /// The source of the configuration, for the user.
    pub config_source: String,
    /// Rows to train on and rows held out.
    pub rows: [usize; 2],
    /// The sources of the row counts, for the user.
    pub row_sources: Vec<String>,
    /// Tokens of a sequence on average, if the program knows them.
    pub tokens: Option<f64>,
}

/// Whether model, tokenizer and data are all on this machine, so that every token can be counted.
fn is_here(recipe: &Recipe) -> bool {
    let model = &recipe.model;
    let folder = model_here(&model.model_name_or_path, &model.model_revision);
    let tokenizer = match &model.tokenizer_name_or_path {
        Some(name) => model_here(name, "main"),
        None => folder.clone(),
    };
    folder.is_some()
        && tokenizer.is_some_and(|folder| folder.join("tokenizer.json").is_file())
        && sets(&recipe.data).into_iter().all(|spec| dataset_is_here(&spec.split_name()))
}

impl OfflinePlan {
    /// The sizes of a recipe's run if some of its files are not on this machine. `None` if all
    /// files are here, or if the sizes cannot be found without them; then
    /// [`Plan::new`](super::Plan::new) has to read the files. `rows` is the number of training
    /// rows, if the user gave it.
    ///
    /// # Errors
    /// A file that exists cannot be used; [`PlanError::LengthsUnknown`].
    pub fn of(recipe: &Recipe, rows: Option<usize>) -> Result<Option<Self>, PlanError> {
        if is_here(recipe) {
            return Ok(None);
        }
        let model = &recipe.model;
        let found = config_of(&model.model_name_or_path, &model.model_revision)?;
        let Some((config, config_source)) = found else { return Ok(None) };
        let mut sources = Vec::new();
        let mut tokens = Vec::new();
        let mut any_unknown = false;
        let counts = count_rows(&recipe.data, |spec| {
            let count = rows_of(spec, recipe)?;
            any_unknown |= count.is_none();
            let count = count.unwrap_or(RowCount { rows: 0, tokens: None, source: String::new() });
            sources.push(count.source);
            tokens.push((count.rows, count.tokens));
            Ok::<_, PlanError>(count.rows)
        });
        let tokens = mean_tokens(&tokens);
        let rows = match (rows, any_unknown) {
            (Some(train), _) => {
                let test = if any_unknown { 0 } else { counts?[1] };
                sources = vec![format!("--rows: {train}")];
                [train, test]
            }
            (None, true) => return Ok(None),
            (None, false) => packed(counts?, tokens, recipe)?,
        };
        Ok(Some(Self { config, config_source, rows, row_sources: sources, tokens }))
    }
}

/// The configuration of a model, or of the base of an adapter, without a download, and its source
/// for the user. `None` if it is unknown.
fn config_of(name: &str, revision: &str) -> Result<Option<(ModelConfig, String)>, PlanError> {
    let Some(folder) = model_here(name, revision) else {
        let built_in = || "built into the program; nothing was downloaded".to_owned();
        return Ok(hub_facts::model(name)?.map(|config| (config, built_in())));
    };
    if is_adapter(&folder) {
        let adapter = LoraConfig::load(&folder)?;
        let is_circle = adapter.base_model == name;
        let revision = adapter.revision.as_deref().unwrap_or("main");
        return if is_circle { Ok(None) } else { config_of(&adapter.base_model, revision) };
    }
    let source = folder.join("config.json").display().to_string();
    Ok(Some((ModelConfig::load(&folder)?, source)))
}

/// The adapter that a recipe trains, if its model is not on this machine or has not been read: the
/// recipe's new one, else the one in the model's folder. `None` if all weights are trained.
///
/// # Errors
/// The settings of the adapter in the model's folder are damaged.
pub fn adapter_of(recipe: &Recipe) -> Result<Option<LoraConfig>, PlanError> {
    let model = &recipe.model;
    let name = &model.model_name_or_path;
    if let Some(lora) = &model.lora {
        return Ok(Some(LoraConfig::of_recipe(lora, name, None)));
    }
    match model_here(name, &model.model_revision).filter(|folder| is_adapter(folder)) {
        Some(folder) => Ok(Some(LoraConfig::load(&folder)?)),
        None => Ok(None),
    }
}

/// The rows of one split: counted in its files, or taken from the built-in facts.
fn rows_of(spec: &DatasetSpec, recipe: &Recipe) -> Result<Option<RowCount>, PlanError> {
    if dataset_is_here(&spec.split_name()) {
        let rows = rows_in_files(spec)?;
        let source = format!("{} {}: {rows}", spec.id, spec.split);
        return Ok(Some(RowCount { rows, tokens: None, source }));
    }
    Ok(hub_facts::rows(spec, recipe.data.preprocessing))
}

/// The mean number of tokens over the rows of all sets; `None` if it is unknown for one set.
fn mean_tokens(sets: &[(usize, Option<f64>)]) -> Option<f64> {
    let rows: usize = sets.iter().map(|(rows, _)| rows).sum();
    let sum: Option<f64> = sets.iter().map(|(rows, mean)| Some(*rows as f64 * (*mean)?)).sum();
    sum.filter(|_| rows > 0).map(|sum| sum / rows as f64)
}

/// The number of rows after packing, each of `max_length` tokens; unchanged without packing.
fn packed(rows: [usize; 2], tokens: Option<f64>, recipe: &Recipe) -> Result<[usize; 2], PlanError> {
    let Objective::Sft(sft) = &recipe.objective else { return Ok(rows) };
    let Some(length) = sft.max_length.filter(|_| sft.packing) else { return Ok(rows) };
    let tokens = tokens.ok_or(PlanError::LengthsUnknown)?;
    Ok(rows.map(|rows| (rows as f64 * tokens / length as f64).round() as usize))
}
