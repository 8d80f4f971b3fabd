//! A recipe made into a plan: everything that can be wrong is found here, before a weight is read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use burn::tensor::DType;

use crate::data::{
    LabelledPairs, PreferencePair, Progress, RowReport, SftRow, Splits, Tokenizer,
    load_preferences, load_sft, load_unpaired,
};
use crate::files::folder_lock::check_output;
use crate::hub::resolve::resolve_model;
use crate::model::config::ModelConfig;
use crate::model::files::ModelFiles;
use crate::recipe::{DeviceChoice, Dtype, Every, Objective, Recipe};
use crate::train::checkpoint::Sharing;
use crate::train::event::{Event, Observer};
use crate::train::steps::StepSchedule;
use crate::train::task::Split;

/// Training and held-out rows as token ids.
pub enum Rows {
    Sft(Splits<SftRow>),
    Pairs(Splits<PreferencePair>),
    Labelled(LabelledPairs),
}

/// The rows as what they are made of: SFT rows or pairs (of a labelled response and a mismatched one,
/// for KTO).
enum Made<'a> {
    Sft(&'a Splits<SftRow>),
    Pairs(&'a Splits<PreferencePair>),
}

impl Rows {
    fn made(&self) -> Made<'_> {
        match self {
            Rows::Sft(rows) => Made::Sft(rows),
            Rows::Pairs(pairs) => Made::Pairs(pairs),
            Rows::Labelled(rows) => Made::Pairs(&rows.pairs),
        }
    }

    /// Rows to train on and rows held out.
    pub fn counts(&self) -> [usize; 2] {
        match self.made() {
            Made::Sft(rows) => [rows.train.len(), rows.test.len()],
            Made::Pairs(pairs) => [pairs.train.len(), pairs.test.len()],
        }
    }

    /// What became of the rows that were read, training and held-out.
    pub fn reports(&self) -> [&RowReport; 2] {
        match self.made() {
            Made::Sft(rows) => [&rows.train_report, &rows.test_report],
            Made::Pairs(pairs) => [&pairs.train_report, &pairs.test_report],
        }
    }

    fn fingerprint(&self) -> [u8; 32] {
        match self.made() {
            Made::Sft(rows) => rows.fingerprint,
            Made::Pairs(pairs) => pairs.fingerprint,
        }
    }

    /// Tokens that the model computes, and tokens of the same rows without shared prompts, in training.
    pub fn train_tokens(&self) -> [usize; 2] {
        match self.made() {
            Made::Sft(_) => [self.row_tokens(Split::Train).sum(); 2],
            Made::Pairs(pairs) => {
                let prompts: usize = pairs.train.iter().map(|p| p.prompt.len()).sum();
                let computed: usize = self.row_tokens(Split::Train).sum();
                [computed, computed + prompts]
            }
        }
    }

    /// Tokens that the model computes of each row.
    fn row_tokens(&self, split: Split) -> Box<dyn Iterator<Item = usize> + '_> {
        fn rows<T>(splits: &Splits<T>, split: Split) -> &[T] {
            match split {
                Split::Train => &splits.train,
                Split::Test => &splits.test,
            }
        }
        match self.made() {
            Made::Sft(splits) => Box::new(rows(splits, split).iter().map(SftRow::tokens)),
            Made::Pairs(splits) => Box::new(rows(splits, split).iter().map(PreferencePair::tokens)),
        }
    }

    fn ids(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self.made() {
            Made::Sft(rows) => {
                let all = rows.train.iter().chain(&rows.test).flat_map(|row| &row.documents);
                Box::new(all.flat_map(|document| document.ids.iter().copied()))
            }
            Made::Pairs(pairs) => {
                let all = pairs.train.iter().chain(&pairs.test);
                Box::new(
                    all.flat_map(|p| p.prompt.iter().chain(&p.chosen).chain(&p.rejected).copied()),
                )
            }
        }
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        match self.made() {
            Made::Sft(rows) => {
                let all = rows.train.iter().chain(&rows.test).flat_map(|row| &row.documents);
                all.map(|document| document.ids.len()).max().unwrap_or(0)
            }
            Made::Pairs(pairs) => {
                let all = pairs.train.iter().chain(&pairs.test);
                all.map(|p| p.prompt.len() + p.chosen.len().max(p.rejected.len()))
                    .max()
                    .unwrap_or(0)
            }
        }
    }
}

/// What will happen: nothing is left to decide.
pub struct Prepared {
    pub recipe: Recipe,
    /// In which the model computes.
    pub dtype: DType,
    pub model_folder: PathBuf,
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    /// What is written beside the weights.
    pub companions: ModelFiles,
    /// Of all token ids, in their order.
    pub data_fingerprint: [u8; 32],
    /// Rows to train on and rows held out.
    pub row_counts: [usize; 2],
    pub plan: StepSchedule,
    /// Where token ids and reference log-probs are kept for other runs.
    pub cache: PathBuf,
}

/// Resolves model, tokenizer, data and steps of a run that `ranks` share. The device it trains on need not be here:
/// a plan is made where there is none.
pub fn prepare(
    recipe: Recipe,
    ranks: usize,
    observer: &mut dyn Observer,
) -> anyhow::Result<(Prepared, Rows)> {
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
    let companions = ModelFiles::of(&model_folder, &config, &tokenizer)?;
    let cache = cache_folder(recipe.output_dir());
    let rows = load_rows(&recipe, &tokenizer, &cache, observer)?;
    check_rows(&recipe, &config, &rows, observer)?;
    let plan = StepSchedule::new(&recipe.train, rows.counts()[0], ranks);
    check_sharing(&plan)?;
    if plan.warmup > plan.total {
        bail!("warm-up takes {} steps, but the run has only {}", plan.warmup, plan.total);
    }
    let prepared = Prepared {
        recipe,
        dtype,
        model_folder,
        config,
        tokenizer,
        companions,
        data_fingerprint: rows.fingerprint(),
        row_counts: rows.counts(),
        plan,
        cache,
    };
    Ok((prepared, rows))
}

impl Prepared {
    /// The type that written weights have.
    pub fn saved_dtype(&self) -> DType {
        match self.recipe.train.save_dtype {
            None | Some(Dtype::Auto) => self.dtype,
            Some(Dtype::Float32) => DType::F32,
            Some(Dtype::Bfloat16) => DType::BF16,
            Some(Dtype::Float16) => DType::F16,
        }
    }

    /// How the rows of a step are shared.
    pub fn sharing(&self) -> Sharing {
        let train = &self.recipe.train;
        Sharing {
            ranks: self.plan.ranks,
            per_device_train_batch_size: train.per_device_train_batch_size,
            gradient_accumulation_steps: train.gradient_accumulation_steps,
        }
    }
}

/// Fails where some ranks would never get a row.
fn check_sharing(plan: &StepSchedule) -> anyhow::Result<()> {
    let StepSchedule { ranks, micro_batches, micro_batch, rows, .. } = *plan;
    if ranks <= micro_batches {
        return Ok(());
    }
    let smaller = rows / ranks;
    let or = match smaller {
        0 => String::new(),
        _ => format!(", or set per_device_train_batch_size to {smaller} or less"),
    };
    bail!(
        "{rows} training rows make {micro_batches} micro-batch(es) of {micro_batch}, too few for {ranks} ranks: \
         start at most {micro_batches}{or}"
    )
}

/// `FAVONIUS_CACHE`, else `.favonius-cache` beside the run's folder, so that runs side by side share it.
fn cache_folder(output_dir: &Path) -> PathBuf {
    match std::env::var_os("FAVONIUS_CACHE") {
        Some(folder) => folder.into(),
        None => output_dir.parent().unwrap_or(Path::new("")).join(".favonius-cache"),
    }
}

/// Ranks of one host take its GPUs in turn, from the one that was named.
pub fn device_name(choice: DeviceChoice, local_rank: usize) -> String {
    match choice {
        DeviceChoice::Cpu => "cpu".into(),
        DeviceChoice::Tch => "tch".into(),
        DeviceChoice::Cuda(index) => format!("cuda:{}", index + local_rank),
    }
}

/// The type in which a recipe wants to compute, on whichever device.
pub fn wanted_dtype(recipe: &Recipe, config: &ModelConfig) -> anyhow::Result<DType> {
    let stored = ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str());
    Ok(match recipe.model.dtype {
        _ if recipe.train.bf16 => DType::BF16,
        Dtype::Float32 => DType::F32,
        Dtype::Bfloat16 => DType::BF16,
        Dtype::Auto if stored == Some("bfloat16") => DType::BF16,
        Dtype::Auto if stored == Some("float16") => float16()?,
        Dtype::Auto => DType::F32,
        Dtype::Float16 => float16()?,
    })
}

fn float16() -> anyhow::Result<DType> {
    bail!(
        "float16 training needs loss scaling, which is not there; set dtype to bfloat16 or float32"
    )
}

fn load_rows(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    cache: &Path,
    observer: &mut dyn Observer,
) -> anyhow::Result<Rows> {
    let bars = DataBars::new(observer);
    let rows = match &recipe.objective {
        Objective::Sft(_) => load_sft(recipe, tokenizer, Some(cache), &bars).map(Rows::Sft),
        Objective::Dpo(_) | Objective::Orpo(_) | Objective::Cpo(_) => {
            load_preferences(recipe, tokenizer, Some(cache), &bars).map(Rows::Pairs)
        }
        Objective::Kto(_) => {
            load_unpaired(recipe, tokenizer, Some(cache), &bars).map(Rows::Labelled)
        }
    };
    bars.finish()?;
    rows.context("the data cannot be used")
}

fn check_rows(
    recipe: &Recipe,
    config: &ModelConfig,
    rows: &Rows,
    observer: &mut dyn Observer,
) -> anyhow::Result<()> {
    for (split, report) in ["train", "test"].iter().zip(rows.reports()) {
        if report.read > report.kept {
            observer.on(&Event::Message(&format!("{split}: {report}")))?;
        }
    }
    if rows.counts()[0] == 0 {
        bail!("no training row is left; see the counts above");
    }
    if let Some(id) = rows.ids().find(|id| *id as usize >= config.vocab_size) {
        bail!(
            "the tokenizer gives id {id}, but the model `{}` has only {} pieces; \
             is it the model's own tokenizer?",
            recipe.model.model_name_or_path,
            config.vocab_size
        );
    }
    let train = &recipe.train;
    let evaluates = train.eval != Every::No || train.eval_on_start;
    if rows.counts()[1] == 0 && evaluates {
        bail!(
            "the recipe evaluates, but no held-out row is there; set eval_strategy: no, or mend the test split"
        );
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

/// Fails where a row alone is more than a micro-batch may be.
fn check_lengths(
    split: &str,
    rows: impl Iterator<Item = usize>,
    most: usize,
) -> anyhow::Result<()> {
    match rows.enumerate().find(|(_, tokens)| *tokens > most) {
        None => Ok(()),
        Some((row, tokens)) => bail!(
            "{split} row {row} (counted among those that are kept) has {tokens} tokens, more than \
             max_tokens_per_microbatch: {most}; raise it, or lower max_length"
        ),
    }
}

/// Shows the data room's progress as phases.
struct DataBars<'a>(Mutex<Bars<'a>>);

struct Bars<'a> {
    observer: &'a mut dyn Observer,
    phase: Option<String>,
    result: io::Result<()>,
}

impl<'a> DataBars<'a> {
    fn new(observer: &'a mut dyn Observer) -> Self {
        Self(Mutex::new(Bars { observer, phase: None, result: Ok(()) }))
    }

    fn finish(self) -> io::Result<()> {
        let mut bars = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        bars.end();
        bars.result
    }
}

impl Bars<'_> {
    fn tell(&mut self, event: Event) {
        if self.result.is_ok() {
            self.result = self.observer.on(&event);
        }
    }

    fn end(&mut self) {
        if let Some(phase) = self.phase.take() {
            self.tell(Event::PhaseEnd { name: &phase });
        }
    }
}

impl Progress for DataBars<'_> {
    fn update(&self, work: &str, done: u64, total: u64) {
        let mut bars = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if bars.phase.as_deref() != Some(work) {
            bars.end();
            bars.tell(Event::Phase { name: work, total, unit: "rows" });
            bars.phase = Some(work.to_string());
        }
        bars.tell(Event::Advance { name: work, done, message: "" });
    }
}
