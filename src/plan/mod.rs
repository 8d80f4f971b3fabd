//! Recipe → [`Plan`]: prepared data, steps, memory, hours, verdict.
//!
//! [`Plan::new`] resolves everything that a run needs and finds everything that can be wrong with a
//! recipe, before a weight is read. [`offline`] makes a forecast of a run whose model or data are not
//! on this machine, from facts that [`hub_facts`] holds. [`forecast`] says what a run takes ([`estimate`]
//! its memory, [`row_size`] the sizes of its batches), [`verdict`] whether it fits a device.

mod data_progress;
mod error;
pub mod estimate;
pub mod forecast;
mod hub_facts;
pub mod offline;
pub mod row_size;
mod rows;
mod verdict;

use std::path::{Path, PathBuf};

use burn::tensor::DType;

use crate::data::{Tokenizer, load_preferences, load_sft, load_unpaired};
use crate::files::folder_lock::check_output;
use crate::hub::resolve::resolve_model;
use crate::model::config::ModelConfig;
use crate::model::files::ModelFiles;
use crate::recipe::{Dtype, Every, Objective, Recipe};
use crate::train::event::{Event, Observer};
use crate::train::steps::{Sharing, StepSchedule};
use crate::train::task::Split;
use data_progress::DataBars;
pub use error::PlanError;
pub use rows::Rows;

/// What a recipe will do, with nothing left to decide.
pub struct Plan {
    pub recipe: Recipe,
    /// The type in which the model computes.
    pub dtype: DType,
    pub model_folder: PathBuf,
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    /// The files that are written beside the weights.
    pub model_files: ModelFiles,
    /// Rows to train on and rows held out, as token ids.
    pub rows: Rows,
    /// How the ranks share the rows of a step.
    pub sharing: Sharing,
    pub schedule: StepSchedule,
    /// The folder in which token ids and reference log-probs are kept for other runs.
    pub cache: PathBuf,
}

impl Plan {
    /// Resolves model, tokenizer, data and steps of a run whose ranks share a step as `sharing` says
    /// ([`Sharing::of`] for the recipe's own way). The recipe's device need not exist on this machine.
    ///
    /// # Errors
    /// Everything that can be wrong with a recipe that was read, its model and its data.
    pub fn new(
        recipe: Recipe,
        sharing: Sharing,
        observer: &mut dyn Observer,
    ) -> Result<Self, PlanError> {
        for note in &recipe.notes {
            observer.on(&Event::Message(note))?;
        }
        check_output(recipe.output_dir())?;
        let model = &recipe.model;
        let model_folder = resolve_model(&model.model_name_or_path, &model.model_revision)?;
        let config = ModelConfig::load(&model_folder)?;
        let dtype = wanted_dtype(&recipe, &config)?;
        let tokenizer_folder = match &model.tokenizer_name_or_path {
            Some(name) => resolve_model(name, "main")?,
            None => model_folder.clone(),
        };
        let tokenizer = Tokenizer::load(
            &tokenizer_folder,
            model.chat_template.as_deref(),
            model.eos_token.as_deref(),
        )?;
        let model_files = ModelFiles::of(&model_folder, &config, &tokenizer)?;
        let cache = cache_folder(recipe.output_dir());
        let rows = load_rows(&recipe, &tokenizer, &cache, observer)?;
        check_rows(&recipe, &config, &rows, observer)?;
        let schedule = StepSchedule::shared(&recipe.train, rows.counts()[0], sharing);
        check_schedule(&schedule)?;
        Ok(Self {
            recipe,
            dtype,
            model_folder,
            config,
            tokenizer,
            model_files,
            rows,
            sharing,
            schedule,
            cache,
        })
    }

    /// The type of the weights that the run writes.
    pub fn saved_dtype(&self) -> DType {
        match self.recipe.train.save_dtype {
            None | Some(Dtype::Auto) => self.dtype,
            Some(Dtype::Float32) => DType::F32,
            Some(Dtype::Bfloat16) => DType::BF16,
            Some(Dtype::Float16) => DType::F16,
        }
    }
}

/// Checks that every rank gets a row and that the warm-up ends within the run.
fn check_schedule(schedule: &StepSchedule) -> Result<(), PlanError> {
    let StepSchedule { ranks, micro_batches, micro_batch, rows, warmup, total, .. } = *schedule;
    if ranks > micro_batches {
        return Err(PlanError::TooFewRows { rows, micro_batches, micro_batch, ranks });
    }
    if warmup > total {
        return Err(PlanError::WarmupTooLong { warmup, total });
    }
    Ok(())
}

/// `FAVONIUS_CACHE`, else `.favonius-cache` beside the run's folder, so that runs side by side share it.
fn cache_folder(output_dir: &Path) -> PathBuf {
    match std::env::var_os("FAVONIUS_CACHE") {
        Some(folder) => folder.into(),
        None => output_dir.parent().unwrap_or(Path::new("")).join(".favonius-cache"),
    }
}

/// The type in which a recipe wants to compute, on whichever device.
///
/// # Errors
/// [`PlanError::Float16`].
pub fn wanted_dtype(recipe: &Recipe, config: &ModelConfig) -> Result<DType, PlanError> {
    let stored = ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str());
    Ok(match recipe.model.dtype {
        _ if recipe.train.bf16 => DType::BF16,
        Dtype::Float32 => DType::F32,
        Dtype::Bfloat16 => DType::BF16,
        Dtype::Auto if stored == Some("bfloat16") => DType::BF16,
        Dtype::Auto if stored == Some("float16") => return Err(PlanError::Float16),
        Dtype::Auto => DType::F32,
        Dtype::Float16 => return Err(PlanError::Float16),
    })
}

fn load_rows(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: &Path,
    observer: &mut dyn Observer,
) -> Result<Rows, PlanError> {
    let bars = DataBars::new(observer);
    let rows = match &recipe.objective {
        Objective::Sft(_) => load_sft(recipe, tokenizer, Some(cache), &bars).map(Rows::Sft),
        Objective::Dpo(_) | Objective::Orpo(_) | Objective::Cpo(_) => {
            load_preferences(recipe, tokenizer, Some(cache), &bars).map(Rows::Pairs)
        }
        Objective::Kto(_) => {
            load_unpaired(recipe, tokenizer, Some(cache), &bars).map(Rows::Unpaired)
        }
    };
    bars.finish()?;
    Ok(rows?)
}

fn check_rows(
    recipe: &Recipe,
    config: &ModelConfig,
    rows: &Rows,
    observer: &mut dyn Observer,
) -> Result<(), PlanError> {
    for (split, report) in ["train", "test"].iter().zip(rows.reports()) {
        if report.read > report.kept {
            observer.on(&Event::Message(&format!("{split}: {report}")))?;
        }
    }
    if rows.counts()[0] == 0 {
        return Err(PlanError::NoTrainingRow);
    }
    if let Some(id) = rows.ids().find(|id| *id as usize >= config.vocab_size) {
        let model = recipe.model.model_name_or_path.clone();
        return Err(PlanError::OutsideVocabulary { id, model, pieces: config.vocab_size });
    }
    let train = &recipe.train;
    let evaluates = train.eval != Every::No || train.eval_on_start;
    if rows.counts()[1] == 0 && evaluates {
        return Err(PlanError::NoHeldOutRow);
    }
    if let Some(most) = train.max_tokens_per_microbatch {
        check_lengths("training", rows.row_tokens(Split::Train), most)?;
        if evaluates || train.do_eval {
            check_lengths("held-out", rows.row_tokens(Split::Test), most)?;
        }
    }
    if rows.longest() > config.max_position_embeddings {
        observer.on(&Event::Message(&format!(
            "the longest row has {} tokens; the model was made for {} (max_length cuts rows)",
            rows.longest(),
            config.max_position_embeddings
        )))?;
    }
    Ok(())
}

/// Checks that no row alone is larger than a micro-batch may be.
fn check_lengths(
    split: &'static str,
    rows: impl Iterator<Item = usize>,
    most: usize,
) -> Result<(), PlanError> {
    match rows.enumerate().find(|(_, tokens)| *tokens > most) {
        None => Ok(()),
        Some((row, tokens)) => Err(PlanError::RowTooLong { split, row, tokens, most }),
    }
}
