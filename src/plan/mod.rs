//! Turns a recipe into a [`Plan`], and forecasts the memory and the time that the plan needs.
//!
//! - [`Plan::new`] resolves everything that a run needs, and finds every mistake in a recipe, its
//!   model and its data before a weight is read.
//! - [`forecast`] computes memory, traffic, operations and hours of a run. It uses [`row_size`] for
//!   the sizes of the run's batches, and [`estimate`] for the memory and work of one step.
//!   `verdict` says whether the run fits its device.
//! - [`offline`] finds these sizes if model or data are not on this machine, with `hub_facts`, a
//!   few facts that are built into the program.

mod adapter;
mod balance;
mod data_progress;
mod error;
pub mod estimate;
pub mod forecast;
mod hub_facts;
pub mod offline;
mod quantized;
pub mod row_size;
mod rows;
mod streaming;
mod traffic;
mod verdict;

use std::path::{Path, PathBuf};

use burn::tensor::DType;

use crate::data::{Tokenizer, load_preferences, load_sft, load_triples, load_unpaired};
use crate::files::folder_lock::check_output;
use crate::hub::resolve::resolve_model;
use crate::model::adapter::ModelSource;
use crate::model::adapter::source::Outermost;
use crate::model::config::ModelConfig;
use crate::model::files::ModelFiles;
use crate::model::weights::WeightFormat;
use crate::recipe::{Dtype, Every, Objective, Recipe};
use crate::train::balance::Balance;
use crate::train::event::{Event, Observer};
use crate::train::steps::{Sharing, StepSchedule};
use crate::train::task::Split;
pub use adapter::PlannedAdapter;
use balance::{balance_of, check_optimizer};
use data_progress::DataProgress;
pub use error::PlanError;
pub use rows::Rows;
use streaming::stream_rows;

/// A recipe with everything resolved that its run needs: folders, types, rows and steps.
pub struct Plan {
    pub recipe: Recipe,
    /// The type in which the model computes. The optimizer computes in float32.
    pub dtype: DType,
    pub model_folder: PathBuf,
    /// The content of the folder: a full model, or an adapter and its base.
    pub source: ModelSource,
    /// The adapter that is trained; `None` if all weights are.
    pub adapter: Option<PlannedAdapter>,
    /// The shape of the model; of an adapter's base.
    pub config: ModelConfig,
    /// The load-balancing loss, if the model has sparse experts.
    pub balance: Option<Balance>,
    pub tokenizer: Tokenizer,
    /// Configuration and generation settings, which are written beside the weights.
    pub model_files: ModelFiles,
    /// Rows to train on and rows held out, as token ids.
    pub rows: Rows,
    /// How the ranks share the rows of a step.
    pub sharing: Sharing,
    /// The number of steps, the rows of each step, and when to log, evaluate and save.
    pub schedule: StepSchedule,
    /// The folder in which token ids and reference log-probs are stored, also for other runs.
    pub cache: PathBuf,
}

impl Plan {
    /// Resolves model, tokenizer, data and steps. `sharing` says how the ranks share the rows of a
    /// step; [`Sharing::of`] takes it from the recipe. The recipe's device need not exist on this
    /// machine. `observer` gets the recipe's notes and the progress of reading the data.
    ///
    /// # Errors
    /// See [`PlanError`].
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
        let source = ModelSource::of(&model_folder)?;
        let (adapter, config) = match PlannedAdapter::of(&recipe, &source)? {
            Some((adapter, config)) => (Some(adapter), config),
            None => (None, source.config(Outermost::Merged)?),
        };
        let quantized = model.quantization.or(config.quantization);
        if quantized.is_some() && adapter.is_none() {
            return Err(PlanError::Quantized(model.model_name_or_path.clone()));
        }
        let dtype = compute_dtype(&recipe, &config)?;
        check_smoothing(&recipe.objective, &config)?;
        let balance = balance_of(&recipe, &config)?;
        check_optimizer(&recipe, &config, adapter.is_some())?;
        let tokenizer_folder = match &model.tokenizer_name_or_path {
            Some(name) => resolve_model(name, "main")?,
            None => source.folder_with("tokenizer.json").to_path_buf(),
        };
        let load_tokenizer = || {
            let (template, eos) = (model.chat_template.as_deref(), model.eos_token.as_deref());
            Tokenizer::load(&tokenizer_folder, template, eos)
        };
        let tokenizer = load_tokenizer()?;
        let beside = source.folder_with("generation_config.json");
        let model_files = ModelFiles::of(beside, &config, &tokenizer)?;
        let cache = cache_folder(recipe.output_dir());
        let rows = match recipe.data.streaming {
            true => {
                let own = load_tokenizer()?;
                stream_rows(&recipe, &config, (&tokenizer, own), &cache, sharing, observer)?
            }
            false => load_rows(&recipe, &tokenizer, &cache, observer)?,
        };
        check_rows(&recipe, &config, &rows, observer)?;
        let schedule = StepSchedule::shared(&recipe.train, rows.counts()[0], sharing)
            .with_lengths(rows.row_tokens(Split::Train));
        check_schedule(&schedule)?;
        Ok(Self {
            recipe,
            dtype,
            model_folder,
            source,
            adapter,
            config,
            balance,
            tokenizer,
            model_files,
            rows,
            sharing,
            schedule,
            cache,
        })
    }

    /// The form in which the run keeps the weights of its base and of its reference.
    pub fn weight_format(&self) -> WeightFormat {
        let quantization = self.recipe.model.quantization;
        WeightFormat { dtype: self.dtype, quantization, dequantizes: false }
    }

    /// The number of weights that training changes.
    pub fn trained_parameters(&self) -> usize {
        self.adapter.as_ref().map_or(self.config.parameters(), |adapter| adapter.trained)
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

/// The gradient of label smoothing is that of logits without a soft cap.
fn check_smoothing(objective: &Objective, config: &ModelConfig) -> Result<(), PlanError> {
    let smooths = matches!(objective, Objective::Sft(sft) if sft.label_smoothing_factor > 0.0);
    match smooths && config.family.logits_softcap.is_some() {
        true => Err(PlanError::SmoothedSoftCap),
        false => Ok(()),
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

/// `FAVONIUS_CACHE` if it is set and not empty, else `.favonius-cache` beside the run's folder, so
/// that runs with folders side by side share it.
fn cache_folder(output_dir: &Path) -> PathBuf {
    match std::env::var_os("FAVONIUS_CACHE").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => output_dir.parent().unwrap_or(Path::new("")).join(".favonius-cache"),
    }
}

/// The type in which the model computes: as the recipe says or, with `dtype: auto`, as the weights
/// are stored.
///
/// # Errors
/// [`PlanError::Float16`].
pub fn compute_dtype(recipe: &Recipe, config: &ModelConfig) -> Result<DType, PlanError> {
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

fn check_full_batch(split: &'static str, rows: usize, batch: usize) -> Result<(), PlanError> {
    match rows < batch {
        true => Err(PlanError::NoFullBatch { split, rows, batch }),
        false => Ok(()),
    }
}

fn load_rows(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: &Path,
    observer: &mut dyn Observer,
) -> Result<Rows, PlanError> {
    let progress = DataProgress::new(observer);
    let rows = match &recipe.objective {
        Objective::Sft(_) => load_sft(recipe, tokenizer, Some(cache), &progress).map(Rows::Sft),
        Objective::Dpo(_) | Objective::Orpo(_) | Objective::Cpo(_) => {
            load_preferences(recipe, tokenizer, Some(cache), &progress).map(Rows::Pairs)
        }
        Objective::Tpo(_) => {
            load_triples(recipe, tokenizer, Some(cache), &progress).map(Rows::Pairs)
        }
        Objective::Kto(_) => {
            load_unpaired(recipe, tokenizer, Some(cache), &progress).map(Rows::Unpaired)
        }
    };
    progress.finish()?;
    Ok(rows?)
}

/// Checks that the rows are enough and fit the model, and reports rows that were left out.
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
    if let Some(id) = rows.find_id(|id| id as usize >= config.vocab_size) {
        let model = recipe.model.model_name_or_path.clone();
        return Err(PlanError::OutsideVocabulary { id, model, vocab_size: config.vocab_size });
    }
    let train = &recipe.train;
    let evaluates = train.eval != Every::No || train.eval_on_start;
    if rows.counts()[1] == 0 && evaluates {
        return Err(PlanError::NoHeldOutRow);
    }
    if train.dataloader_drop_last {
        let [training, held_out] = rows.counts();
        check_full_batch("training", training, train.per_device_train_batch_size)?;
        if evaluates {
            check_full_batch("held-out", held_out, train.per_device_eval_batch_size)?;
        }
    }
    if let Some(limit) = train.max_tokens_per_microbatch {
        check_lengths("training", rows.row_tokens(Split::Train), limit)?;
        if evaluates || train.do_eval {
            check_lengths("held-out", rows.row_tokens(Split::Test), limit)?;
        }
    }
    let longest = rows.longest();
    if longest > config.max_position_embeddings {
        observer.on(&Event::Message(&format!(
            "the longest sequence has {longest} tokens, but the model's max_position_embeddings \
             is {}; max_length cuts sequences",
            config.max_position_embeddings
        )))?;
    }
    Ok(())
}

/// Checks that no row has more than `limit` tokens: a row is never divided.
fn check_lengths(
    split: &'static str,
    rows: impl Iterator<Item = usize>,
    limit: usize,
) -> Result<(), PlanError> {
    match rows.enumerate().find(|(_, tokens)| *tokens > limit) {
        None => Ok(()),
        Some((row, tokens)) => Err(PlanError::RowTooLong { split, row, tokens, limit }),
    }
}
