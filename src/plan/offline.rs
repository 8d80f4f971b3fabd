//! A plan of a run whose model or data are not here: from `config.json` and row counts alone, no weight and no row
//! is read, nothing is fetched.

use anyhow::anyhow;

use super::forecast::Hardware;
use super::known;
use crate::data::outline::{count_rows, rows_in_files, sets};
use crate::hub::resolve::{dataset_is_here, model_here};
use crate::model::config::ModelConfig;
use crate::recipe::{DatasetSpec, Objective, Recipe};

/// What is known of a run without its files.
pub struct OfflinePlan {
    pub config: ModelConfig,
    /// Where the configuration is from.
    pub config_source: String,
    /// Rows to train on and rows held out.
    pub rows: [usize; 2],
    pub row_sources: Vec<String>,
    /// Tokens of a sequence on average, where they are known.
    pub tokens: Option<f64>,
}

/// Whether model, tokenizer and data are here, so that everything can be counted.
fn is_here(recipe: &Recipe) -> bool {
    let model = &recipe.model;
    let folder = model_here(&model.model_name_or_path, &model.model_revision);
    let tokenizer = match &model.tokenizer_name_or_path {
        Some(name) => model_here(name, "main"),
        None => folder.clone(),
    };
    folder.is_some()
        && tokenizer.is_some_and(|folder| folder.join("tokenizer.json").is_file())
        && sets(&recipe.data).into_iter().all(dataset_is_here)
}

impl OfflinePlan {
    /// The outline of a recipe whose files are not all here; `None` where they are, or where too little is
    /// known without them.
    pub fn of(recipe: &Recipe, hardware: &Hardware) -> anyhow::Result<Option<Self>> {
        if is_here(recipe) {
            return Ok(None);
        }
        let model = &recipe.model;
        let name = &model.model_name_or_path;
        let (config, config_source) = match model_here(name, &model.model_revision) {
            Some(folder) => {
                (ModelConfig::load(&folder)?, folder.join("config.json").display().to_string())
            }
            None => match known::model(name)? {
                Some(config) => (config, "known to the program; nothing was fetched".into()),
                None => return Ok(None),
            },
        };
        let mut sources = Vec::new();
        let mut tokens = Vec::new();
        let mut unknown = false;
        let rows = count_rows(&recipe.data, |spec| {
            let found = rows_of(spec, recipe)?;
            unknown |= found.is_none();
            let found =
                found.unwrap_or(known::KnownRows { rows: 0, tokens: None, source: String::new() });
            sources.push(found.source);
            tokens.push((found.rows, found.tokens));
            anyhow::Ok(found.rows)
        });
        let tokens = mean_tokens(&tokens);
        let rows = match (hardware.rows, unknown) {
            (Some(train), _) => {
                let test = if unknown { 0 } else { rows?[1] };
                sources = vec![format!("--rows: {train}")];
                [train, test]
            }
            (None, true) => return Ok(None),
            (None, false) => packed(rows?, tokens, recipe)?,
        };
        Ok(Some(Self { config, config_source, rows, row_sources: sources, tokens }))
    }
}

fn rows_of(spec: &DatasetSpec, recipe: &Recipe) -> anyhow::Result<Option<known::KnownRows>> {
    if dataset_is_here(spec) {
        let rows = rows_in_files(spec)?;
        let source = format!("{} {}: {rows}", spec.id, spec.split);
        return Ok(Some(known::KnownRows { rows, tokens: None, source }));
    }
    Ok(known::rows(spec, recipe.data.preprocessing))
}

/// The mean over all rows; `None` where a set's is not known.
fn mean_tokens(sets: &[(usize, Option<f64>)]) -> Option<f64> {
    let rows: usize = sets.iter().map(|(rows, _)| rows).sum();
    let sum: Option<f64> = sets.iter().map(|(rows, mean)| Some(*rows as f64 * (*mean)?)).sum();
    sum.filter(|_| rows > 0).map(|sum| sum / rows as f64)
}

/// Rows as packing lays them: blocks of the row's length.
fn packed(rows: [usize; 2], tokens: Option<f64>, recipe: &Recipe) -> anyhow::Result<[usize; 2]> {
    let Objective::Sft(sft) = &recipe.objective else { return Ok(rows) };
    let Some(length) = sft.max_length.filter(|_| sft.packing) else { return Ok(rows) };
    let tokens = tokens.ok_or_else(|| {
        anyhow!("packing lays several chats into a row, and their lengths are not known here; give --rows")
    })?;
    Ok(rows.map(|rows| (rows as f64 * tokens / length as f64).round() as usize))
}
