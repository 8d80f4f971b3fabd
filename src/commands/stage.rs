//! One stage, SFT or DPO, from recipe to finished model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use burn::tensor::DType;

use super::prepare::{Prepared, Rows, prepare};
use super::signals::stop_flag;
use super::{outputs, reference};
use crate::model::decoder::Decoder;
use crate::objective::preference::PairObjective;
use crate::recipe::{Dtype, Objective, Recipe, Reporter, Resume, Stage};
use crate::report::progress::Screen;
use crate::report::{ReporterOptions, Reporters};
use crate::train::checkpoint::{self, Progress, Restored};
use crate::train::event::{Event, Observer};
use crate::train::optimizer::Optimizer;
use crate::train::task::{PreferenceTask, SftTask, Task, UnpairedTask};
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
pub(super) struct Start {
    pub model: Decoder,
    optimizer: Optimizer,
    state: crate::train::state::TrainerState,
    pub progress: Progress,
    /// The checkpoint that a resumed run goes on from.
    pub checkpoint: Option<PathBuf>,
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
            let checkpoint = Some(path.to_path_buf());
            return Ok(Self { model, optimizer, state, progress, checkpoint });
        }
        let model = load_model(&prepared.model_folder, prepared, observer)?;
        let optimizer = Optimizer::new(&model, settings);
        let state = Trainer::fresh_state(settings, &prepared.plan);
        let progress = Progress { identity: prepared.identity(), ..Progress::default() };
        Ok(Self { model, optimizer, state, progress, checkpoint: None })
    }
}

pub(super) fn load_model(
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
    outputs::write_plan(prepared)?;
    let task = task(prepared, rows, &start, observer)?;
    let companions = |folder: &Path| {
        outputs::write_companions(prepared, prepared.dtype, folder)?;
        task.save(folder).map_err(std::io::Error::other)
    };
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
    let objective = &prepared.recipe.objective;
    match (rows, objective) {
        (Rows::Sft(rows), _) => Ok(Box::new(SftTask { rows })),
        (Rows::Pairs(pairs), _) => {
            let reference = reference::source(prepared, &pairs, start, observer)?;
            let objective = match objective {
                Objective::Dpo(settings) => PairObjective::Dpo(settings.clone()),
                Objective::Orpo(settings) => PairObjective::Orpo(settings.clone()),
                Objective::Cpo(settings) => PairObjective::Cpo(settings.clone()),
                Objective::Sft(_) | Objective::Kto(_) => bail!("this objective has no pairs"),
            };
            Ok(Box::new(PreferenceTask { pairs, reference, objective }))
        }
        (Rows::Labelled(rows), Objective::Kto(settings)) => {
            let reference = reference::source(prepared, &rows.pairs, start, observer)?;
            Ok(Box::new(UnpairedTask { rows, reference, settings: settings.clone() }))
        }
        (Rows::Labelled(_), _) => bail!("this objective has no labelled responses"),
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
