//! One stage, SFT or DPO, from recipe to finished model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use burn::tensor::DType;

use super::outputs;
use super::prepare::{Prepared, Rows, prepare};
use super::signals::stop_flag;
use crate::data::PreferencePair;
use crate::model::decoder::Decoder;
use crate::objective::reference::ReferenceLogps;
use crate::recipe::{Dtype, Objective, Recipe, Reporter, Resume, Stage};
use crate::report::progress::Screen;
use crate::report::{ReporterOptions, Reporters};
use crate::train::checkpoint::{self, Progress, Restored};
use crate::train::event::{Event, Observer};
use crate::train::optimizer::Optimizer;
use crate::train::task::{PreferenceTask, SftTask, Task};
pub use crate::train::trainer::Ending;
use crate::train::trainer::Trainer;

/// Runs the recipe at `path` to its end, or to the next step after a signal.
pub fn run(stage: Stage, path: &Path, overrides: &[String], quiet: bool) -> anyhow::Result<Ending> {
    let recipe = Recipe::load(path, stage, overrides)?;
    let screen = Screen::detect(quiet || recipe.train.disable_tqdm);
    run_recipe(recipe, screen, &*stop_flag()?)
}

/// Runs a recipe that is already read.
pub fn run_recipe(recipe: Recipe, screen: Screen, stop: &AtomicBool) -> anyhow::Result<Ending> {
    let mut lines = reporters(&recipe, screen.clone(), None)?;
    if outputs::is_finished(recipe.output_dir())
        && recipe.train.resume_from_checkpoint != Resume::Fresh
    {
        let text = format!(
            "{} holds a finished run; nothing to do (resume_from_checkpoint: false and \
             overwrite_output_dir: true train it anew)",
            recipe.output_dir().display()
        );
        lines.on(&Event::Message(&text))?;
        return Ok(Ending::Done);
    }
    let checkpoint = checkpoint_to_resume(&recipe, &mut lines)?;
    let (prepared, rows) = prepare(recipe, &mut lines)?;
    let start = Start::new(&prepared, checkpoint.as_deref(), &mut lines)?;
    let mut reporters = reporters(&prepared.recipe, screen, Some(start.state.log_history.clone()))?;
    train(&prepared, rows, start, &mut reporters, stop)
}

/// `history` is that of the run that goes on; where there is none, only lines are written.
fn reporters(
    recipe: &Recipe,
    screen: Screen,
    history: Option<Vec<crate::train::event::LogRow>>,
) -> anyhow::Result<Reporters> {
    let tensorboard = recipe.train.report_to.contains(&Reporter::TensorBoard);
    let options = ReporterOptions {
        output_dir: recipe.output_dir().into(),
        screen,
        tensorboard: tensorboard && history.is_some(),
        tensorboard_dir: recipe.train.logging_dir.clone(),
        history: history.unwrap_or_default(),
    };
    Reporters::new(options).context("cannot write the training record")
}

/// The checkpoint that the recipe's `resume_from_checkpoint` means, if any; damaged ones are named.
fn checkpoint_to_resume(
    recipe: &Recipe,
    observer: &mut dyn Observer,
) -> anyhow::Result<Option<PathBuf>> {
    let output_dir = recipe.output_dir();
    match &recipe.train.resume_from_checkpoint {
        Resume::Path(path) => {
            checkpoint::verify(path)?;
            Ok(Some(path.clone()))
        }
        Resume::Fresh => {
            let old = checkpoint::list(output_dir);
            if !old.is_empty() && !recipe.train.overwrite_output_dir {
                bail!(
                    "{} holds {} checkpoint(s) of an earlier run; set overwrite_output_dir: true to remove \
                     them, or train into another output_dir",
                    output_dir.display(),
                    old.len()
                );
            }
            for (_, path) in old {
                std::fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
            outputs::forget_finished(output_dir)?;
            Ok(None)
        }
        Resume::Auto => {
            let (found, refused) = checkpoint::newest(output_dir);
            for error in refused {
                observer.on(&Event::Message(&format!("{error}; it is not used")))?;
            }
            Ok(found)
        }
    }
}

/// Where training starts from.
struct Start {
    model: Decoder,
    optimizer: Optimizer,
    state: crate::train::state::TrainerState,
    progress: Progress,
}

impl Start {
    fn new(
        prepared: &Prepared,
        checkpoint: Option<&Path>,
        observer: &mut dyn Observer,
    ) -> anyhow::Result<Self> {
        let settings = &prepared.recipe.train;
        if let Some(path) = checkpoint {
            let (device, dtype) = (&prepared.device, prepared.dtype);
            let fresh = |model: &Decoder| Optimizer::new(model, settings);
            let (Restored { model, state, progress }, optimizer) =
                checkpoint::read(path, device, dtype, &prepared.identity(), fresh)?;
            let text = format!("resuming at step {} from {}", progress.global_step, path.display());
            observer.on(&Event::Message(&text))?;
            return Ok(Self { model, optimizer, state, progress });
        }
        let model = load_model(&prepared.model_folder, prepared, observer)?;
        let optimizer = Optimizer::new(&model, settings);
        let state = Trainer::fresh_state(settings, &prepared.plan);
        let progress = Progress { identity: prepared.identity(), ..Progress::default() };
        Ok(Self { model, optimizer, state, progress })
    }
}

fn load_model(
    folder: &Path,
    prepared: &Prepared,
    observer: &mut dyn Observer,
) -> anyhow::Result<Decoder> {
    const NAME: &str = "loading weights";
    let mut told = Ok(());
    let model = Decoder::load(folder, &prepared.device, prepared.dtype, |done, total| {
        if done == 1 {
            told = observer.on(&Event::Phase { name: NAME, total: total as u64, unit: "tensors" });
        }
        if told.is_ok() {
            told = observer.on(&Event::Advance { name: NAME, done: done as u64, message: "" });
        }
    })?;
    told?;
    observer.on(&Event::PhaseEnd { name: NAME })?;
    Ok(model)
}

fn train(
    prepared: &Prepared,
    rows: Rows,
    start: Start,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> anyhow::Result<Ending> {
    let task = task(prepared, rows, &start, observer)?;
    let companions = |folder: &Path| outputs::write_companions(prepared, prepared.dtype, folder);
    let mut trainer = Trainer {
        settings: &prepared.recipe.train,
        plan: prepared.plan.clone(),
        task: &*task,
        model: start.model,
        optimizer: start.optimizer,
        state: start.state,
        progress: start.progress,
        observer,
        stop,
        companions: &companions,
    };
    if prepared.recipe.train.do_train && trainer.run()? == Ending::Interrupted {
        let step = trainer.progress.global_step;
        let text =
            format!("stopped by a signal after step {step}; the same command goes on from there");
        trainer.observer.on(&Event::Message(&text))?;
        return Ok(Ending::Interrupted);
    }
    if let Some(best) = trainer.best_checkpoint() {
        let text = format!("the best model is {}", best.display());
        trainer.observer.on(&Event::Message(&text))?;
        trainer.model = load_model(&best, prepared, trainer.observer)?;
    }
    if prepared.recipe.train.do_eval && last_evaluation_is_stale(&trainer) {
        trainer.evaluate()?;
    }
    outputs::write(prepared, &mut trainer)?;
    Ok(Ending::Done)
}

/// Whether the model in hand has not been evaluated since its last update.
fn last_evaluation_is_stale(trainer: &Trainer) -> bool {
    let best_was_loaded = trainer.best_checkpoint().is_some();
    let at_this_step = |row: &&crate::train::event::LogRow| row.step == trainer.state.global_step;
    let mut rows = trainer.state.log_history.iter().filter(at_this_step);
    best_was_loaded || !rows.any(|row| row.get("eval_loss").is_some())
}

fn task(
    prepared: &Prepared,
    rows: Rows,
    start: &Start,
    observer: &mut dyn Observer,
) -> anyhow::Result<Box<dyn Task>> {
    match (rows, &prepared.recipe.objective) {
        (Rows::Sft(rows), _) => Ok(Box::new(SftTask { rows })),
        (Rows::Dpo(pairs), Objective::Dpo(settings)) => {
            let mut reference = Reference::new(prepared, start)?;
            let reference_train = reference.logps("train", &pairs.train, observer)?;
            let reference_test = reference.logps("test", &pairs.test, observer)?;
            let settings = settings.clone();
            Ok(Box::new(PreferenceTask { pairs, reference_train, reference_test, settings }))
        }
        (Rows::Dpo(_), Objective::Sft(_)) => bail!("pairs were read for a recipe that is not DPO"),
    }
}

/// The frozen reference: its weights are read only where its log-probs are not stored yet.
struct Reference<'a> {
    prepared: &'a Prepared,
    folder: PathBuf,
    weights: [u8; 32],
    model: Option<Decoder>,
}

impl<'a> Reference<'a> {
    fn new(prepared: &'a Prepared, start: &Start) -> anyhow::Result<Self> {
        let model = &prepared.recipe.model;
        let folder = match &model.ref_model_name_or_path {
            Some(name) => crate::data::hub::resolve_model(name, "main")?,
            None => prepared.model_folder.clone(),
        };
        let is_policy = start.progress.global_step == 0 && folder == prepared.model_folder;
        Ok(Self {
            prepared,
            weights: outputs::hash_model(&folder)?,
            folder,
            model: is_policy.then(|| start.model.clone()),
        })
    }

    fn logps(
        &mut self,
        split: &str,
        pairs: &[PreferencePair],
        observer: &mut dyn Observer,
    ) -> anyhow::Result<ReferenceLogps> {
        let settings = format!("{:?} {:?}", self.prepared.dtype, self.prepared.recipe.train.device);
        let key = ReferenceLogps::key(&self.weights, pairs, &settings);
        let cache = &self.prepared.cache;
        if let Some(stored) = ReferenceLogps::read(cache, &key, pairs.len()) {
            return Ok(stored);
        }
        let model = match self.model.take() {
            Some(model) => model,
            None => load_model(&self.folder, self.prepared, observer)?,
        };
        let name = format!("reference log-probs ({split})");
        let total = pairs.len() as u64;
        observer.on(&Event::Phase { name: &name, total, unit: "pairs" })?;
        let mut told = Ok(());
        let logps = ReferenceLogps::compute(&model, pairs, |done| {
            if told.is_ok() {
                told = observer.on(&Event::Advance { name: &name, done: done as u64, message: "" });
            }
        });
        told?;
        observer.on(&Event::PhaseEnd { name: &name })?;
        self.model = Some(model);
        logps
            .store(cache, &key)
            .with_context(|| format!("cannot write into {}", cache.display()))?;
        Ok(logps)
    }
}

/// The type that written weights have.
pub fn saved_dtype(prepared: &Prepared) -> DType {
    match prepared.recipe.train.save_dtype {
        None | Some(Dtype::Auto) => prepared.dtype,
        Some(Dtype::Float32) => DType::F32,
        Some(Dtype::Bfloat16) => DType::BF16,
        Some(Dtype::Float16) => DType::F16,
    }
}
