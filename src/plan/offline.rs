//! The plan of a run whose model or data are not on this machine: from `config.json` and row counts
//! alone. No weight and no row is read, nothing is fetched.

use super::error::PlanError;
use super::hub_facts::{self, KnownRows};
use crate::data::row_counts::{count_rows, rows_in_files, sets};
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
        && sets(&recipe.data).into_iter().all(|spec| dataset_is_here(&spec.split_name()))
}

impl OfflinePlan {
    /// The plan of a recipe whose files are not all on this machine; `None` if they are, or if too
    /// little is known without them. `rows` is the number of training rows, if the user gave it.
    ///
    /// # Errors
    /// A file that exists cannot be used, or [`PlanError::LengthsUnknown`].
    pub fn of(recipe: &Recipe, rows: Option<usize>) -> Result<Option<Self>, PlanError> {
        if is_here(recipe) {
            return Ok(None);
        }
        let model = &recipe.model;
        let name = &model.model_name_or_path;
        let (config, config_source) = match model_here(name, &model.model_revision) {
            Some(folder) => {
                (ModelConfig::load(&folder)?, folder.join("config.json").display().to_string())
            }
            None => match hub_facts::model(name)? {
                Some(config) => (config, "known to the program; nothing was fetched".into()),
                None => return Ok(None),
            },
        };
        let mut sources = Vec::new();
        let mut tokens = Vec::new();
        let mut unknown = false;
        let counted = count_rows(&recipe.data, |spec| {
            let found = rows_of(spec, recipe)?;
            unknown |= found.is_none();
            let found = found.unwrap_or(KnownRows { rows: 0, tokens: None, source: String::new() });
            sources.push(found.source);
            tokens.push((found.rows, found.tokens));
            Ok::<_, PlanError>(found.rows)
        });
        let tokens = mean_tokens(&tokens);
        let rows = match (rows, unknown) {
            (Some(train), _) => {
                let test = if unknown { 0 } else { counted?[1] };
                sources = vec![format!("--rows: {train}")];
                [train, test]
            }
            (None, true) => return Ok(None),
            (None, false) => packed(counted?, tokens, recipe)?,
        };
        Ok(Some(Self { config, config_source, rows, row_sources: sources, tokens }))
    }
}

fn rows_of(spec: &DatasetSpec, recipe: &Recipe) -> Result<Option<KnownRows>, PlanError> {
    if dataset_is_here(&spec.split_name()) {
        let rows = rows_in_files(spec)?;
        let source = format!("{} {}: {rows}", spec.id, spec.split);
        return Ok(Some(KnownRows { rows, tokens: None, source }));
    }
    Ok(hub_facts::rows(spec, recipe.data.preprocessing))
}

/// The mean over all rows; `None` where a set's is not known.
fn mean_tokens(sets: &[(usize, Option<f64>)]) -> Option<f64> {
    let rows: usize = sets.iter().map(|(rows, _)| rows).sum();
    let sum: Option<f64> = sets.iter().map(|(rows, mean)| Some(*rows as f64 * (*mean)?)).sum();
    sum.filter(|_| rows > 0).map(|sum| sum / rows as f64)
}

/// Rows as packing lays them: blocks of the row's length.
fn packed(rows: [usize; 2], tokens: Option<f64>, recipe: &Recipe) -> Result<[usize; 2], PlanError> {
    let Objective::Sft(sft) = &recipe.objective else { return Ok(rows) };
    let Some(length) = sft.max_length.filter(|_| sft.packing) else { return Ok(rows) };
    let tokens = tokens.ok_or(PlanError::LengthsUnknown)?;
    Ok(rows.map(|rows| (rows as f64 * tokens / length as f64).round() as usize))
}
