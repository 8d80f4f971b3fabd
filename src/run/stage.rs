//! One stage, SFT or DPO, from recipe to finished model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use super::agree::{same_material, same_start};
use super::resume::{checkpoint_to_resume, keep_rows_a_step};
use super::{finish, identity, mark, reference_pass, upload};
use crate::files::folder_lock::FolderLock;
use crate::model::decoder::Decoder;
use crate::model::device;
use crate::objective::preference::PairObjective;
use crate::parallel::Ranks;
use crate::plan::prepare::{Prepared, Rows, device_name, prepare};
use crate::recipe::{DeviceChoice, Objective, Recipe, Reporter, Resume};
use crate::report::progress::Screen;
use crate::report::{ReporterOptions, Reporters};
use crate::train::checkpoint::{self, Position, Restored};
use crate::train::event::{Event, LogRow, Observer};
use crate::train::optimizer::Optimizer;
use crate::train::task::{PreferenceTask, SftTask, Task, UnpairedTask};
pub use crate::train::trainer::Ending;
use crate::train::trainer::Trainer;

/// Whether tensors are where NCCL reaches them.
pub fn trains_on_gpu(recipe: &Recipe) -> bool {
    matches!(recipe.train.device, DeviceChoice::Cuda(_))
}

/// Runs a recipe that is already read.
pub fn run_recipe(
    mut recipe: Recipe,
    screen: Screen,
    stop: &AtomicBool,
    ranks: &Ranks,
) -> anyhow::Result<Ending> {
    same_start(&recipe, ranks)?;
    let mut lines = reporters(&recipe, screen.clone(), None, ranks)?;
    let left = ranks.decide("what is left to do", || what_is_left(&recipe))?;
    if left == Left::Nothing {
        let text = format!(
            "{} holds a finished run; nothing to do ({TRAIN_ANEW})",
            recipe.output_dir().display()
        );
        lines.on(&Event::Message(&text))?;
        return Ok(Ending::Done);
    }
    // The others wait for rank 0's next word.
    let _claim = ranks.is_first().then(|| FolderLock::of(recipe.output_dir())).transpose()?;
    let destination = ranks.decide("the hub", || upload::destination(&recipe))?;
    if left == Left::Upload {
        upload::at_the_end(&recipe, destination.as_ref(), &mut lines, ranks)?;
        return Ok(Ending::Done);
    }
    // Known before anything is read, fetched or removed.
    let device = device::find(&device_name(recipe.train.device, ranks.local_rank()))?;
    let checkpoint =
        ranks.decide("the checkpoint", || checkpoint_to_resume(&recipe, &mut lines))?;
    if let Some(path) = &checkpoint {
        keep_rows_a_step(&mut recipe, path, ranks.world(), &mut lines)?;
    }
    ranks.at_work(|| "preparing the data".into());
    let (prepared, rows) =
        ranks.first_before_others("the data", || prepare(recipe, ranks.world(), &mut lines))?;
    check_dtype(&device, prepared.dtype)?;
    same_material(&prepared, ranks)?;
    ranks.at_work(|| "loading weights".into());
    let start = Start::new(&prepared, &device, checkpoint.as_deref(), &mut lines, ranks)?;
    let history = Some(start.state.log_history.clone());
    let mut reporters = reporters(&prepared.recipe, screen, history, ranks)?;
    ranks.guard(true);
    let ending = train(&prepared, rows, start, &mut reporters, stop, ranks);
    ranks.guard(false);
    // Outside the guard: an upload may take longer than a collective.
    if matches!(ending, Ok(Ending::Done)) {
        upload::at_the_end(&prepared.recipe, destination.as_ref(), &mut reporters, ranks)?;
    }
    ending
}

const TRAIN_ANEW: &str =
    "resume_from_checkpoint: false and overwrite_output_dir: true train it anew";

/// Characters of a setting's value that a message shows.
const SHOWN: usize = 100;

/// What earlier starts of a run left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Left {
    Nothing,
    Upload,
    All,
}

/// # Errors
/// The folder holds a finished run of other settings.
fn what_is_left(recipe: &Recipe) -> anyhow::Result<Left> {
    let output_dir = recipe.output_dir();
    let anew = recipe.train.resume_from_checkpoint == Resume::Fresh;
    if anew || !mark::is_finished(output_dir) {
        return Ok(Left::All);
    }
    let was = mark::read_settings(output_dir);
    if let Some((key, was, is)) = identity::difference(&was, &identity::of_finished(recipe)) {
        // A chat template is a page long.
        let [was, is] = [was, is].map(|value| value.chars().take(SHOWN).collect::<String>());
        bail!(
            "{} holds a finished run of other settings: `{key}` was {was} there and is {is} now\n\
             help: choose another output_dir; {TRAIN_ANEW}",
            output_dir.display()
        );
    }
    Ok(if upload::is_pending(recipe) { Left::Upload } else { Left::Nothing })
}

/// The user's screen for rank 0; the others print nothing.
pub fn screen_of(ranks: &Ranks, quiet: bool) -> Screen {
    match ranks.is_first() {
        true => Screen::detect(quiet),
        false => Screen::new(false, true, Box::new(std::io::sink())),
    }
}

/// `history` is that of the run that goes on; where there is none, only lines are written.
fn reporters(
    recipe: &Recipe,
    screen: Screen,
    history: Option<Vec<LogRow>>,
    ranks: &Ranks,
) -> anyhow::Result<Reporters> {
    let tensorboard = ranks.is_first() && recipe.train.report_to.contains(&Reporter::TensorBoard);
    let options = ReporterOptions {
        output_dir: recipe.output_dir().into(),
        screen,
        tensorboard: tensorboard && history.is_some(),
        tensorboard_dir: recipe.train.logging_dir.clone(),
        history: history.unwrap_or_default(),
    };
    Reporters::new(options).context("cannot write the training record")
}

/// Where training starts from.
pub struct Start {
    pub model: Decoder,
    optimizer: Optimizer,
    state: crate::train::state::TrainerState,
    pub progress: Position,
    /// The checkpoint that a resumed run goes on from.
    pub checkpoint: Option<PathBuf>,
}

impl Start {
    fn new(
        prepared: &Prepared,
        device: &Device,
        checkpoint: Option<&Path>,
        observer: &mut dyn Observer,
        ranks: &Ranks,
    ) -> anyhow::Result<Self> {
        let settings = &prepared.recipe.train;
        if let Some(path) = checkpoint {
            let fresh = |model: &Decoder| Optimizer::new(model, settings, ranks);
            let (Restored { model, state, progress }, optimizer) = checkpoint::read(
                path,
                device,
                prepared.dtype,
                &identity::of_checkpoint(prepared),
                fresh,
            )?;
            let text = format!("resuming at step {} from {}", progress.global_step, path.display());
            observer.on(&Event::Message(&text))?;
            let checkpoint = Some(path.to_path_buf());
            return Ok(Self { model, optimizer, state, progress, checkpoint });
        }
        let model = load_model(&prepared.model_folder, device, prepared.dtype, observer)?;
        let optimizer = Optimizer::new(&model, settings, ranks);
        let state = Trainer::fresh_state(settings, &prepared.plan);
        let progress = Position {
            identity: identity::of_checkpoint(prepared),
            sharing: prepared.sharing(),
            ..Position::default()
        };
        Ok(Self { model, optimizer, state, progress, checkpoint: None })
    }
}

fn check_dtype(device: &Device, dtype: DType) -> anyhow::Result<()> {
    match device.supports_dtype(dtype) {
        true => Ok(()),
        false => {
            bail!("this device does not compute in {dtype:?}; set dtype: float32 and bf16: false")
        }
    }
}

/// The model in `folder` as it computes on `device` in `dtype`.
pub(super) fn load_model(
    folder: &Path,
    device: &Device,
    dtype: DType,
    observer: &mut dyn Observer,
) -> anyhow::Result<Decoder> {
    const NAME: &str = "loading weights";
    let mut told = Ok(());
    let model = Decoder::load(folder, device, dtype, |done, total| {
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
    ranks: &Ranks,
) -> anyhow::Result<Ending> {
    if ranks.is_first() {
        finish::write_plan(prepared)?;
    }
    let task = match task(prepared, rows, &start, stop, observer, ranks) {
        Ok(task) => task,
        Err(error) => {
            let stopped = error.downcast::<reference_pass::Stopped>()?;
            observer.on(&Event::Message(&stopped.to_string()))?;
            return Ok(Ending::Interrupted);
        }
    };
    let companions = |folder: &Path| {
        prepared.companions.write(&prepared.tokenizer, prepared.dtype, folder)?;
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
        ranks,
    };
    if prepared.recipe.train.do_train && trainer.run()? == Ending::Interrupted {
        let step = trainer.progress.global_step;
        let text =
            format!("stopped by a signal after step {step}; the same command goes on from there");
        trainer.observer.on(&Event::Message(&text))?;
        return Ok(Ending::Interrupted);
    }
    let best_is_loaded = load_best(&mut trainer, prepared.dtype)?;
    if prepared.recipe.train.do_eval && (best_is_loaded || is_not_evaluated(&trainer)) {
        trainer.evaluate()?;
    }
    ranks.at_work(|| "writing the model".into());
    if ranks.is_first() {
        finish::write(prepared, &mut trainer)?;
    }
    ranks.barrier("the model");
    Ok(Ending::Done)
}

/// Puts the best model in the place of the last, where the recipe asks for it and it is another one. Returns whether it did.
fn load_best(trainer: &mut Trainer, dtype: DType) -> anyhow::Result<bool> {
    let Some(best) = trainer.best_checkpoint() else { return Ok(false) };
    let is_there = best.is_dir();
    let text = match is_there {
        true => format!("the best model is {}", best.display()),
        false => format!(
            "the best model was {}, which is not there any more; the last one takes its place",
            best.display()
        ),
    };
    trainer.observer.on(&Event::Message(&text))?;
    if is_there {
        let device = trainer.model.device();
        trainer.model = load_model(&best, &device, dtype, trainer.observer)?;
    }
    Ok(is_there)
}

/// Whether the last model has not been evaluated.
fn is_not_evaluated(trainer: &Trainer) -> bool {
    let at_this_step = |row: &&LogRow| row.step == trainer.state.global_step;
    let mut rows = trainer.state.log_history.iter().filter(at_this_step);
    !rows.any(|row| row.get("eval_loss").is_some())
}

fn task(
    prepared: &Prepared,
    rows: Rows,
    start: &Start,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    ranks: &Ranks,
) -> anyhow::Result<Box<dyn Task>> {
    let objective = &prepared.recipe.objective;
    match (rows, objective) {
        (Rows::Sft(rows), _) => Ok(Box::new(SftTask { rows })),
        (Rows::Pairs(pairs), _) => {
            let reference = reference_pass::source(prepared, &pairs, start, stop, observer, ranks)?;
            let objective = match objective {
                Objective::Dpo(settings) => PairObjective::Dpo(settings.clone()),
                Objective::Orpo(settings) => PairObjective::Orpo(settings.clone()),
                Objective::Cpo(settings) => PairObjective::Cpo(settings.clone()),
                Objective::Sft(_) | Objective::Kto(_) => bail!("this objective has no pairs"),
            };
            Ok(Box::new(PreferenceTask { pairs, reference, objective }))
        }
        (Rows::Labelled(rows), Objective::Kto(settings)) => {
            let reference =
                reference_pass::source(prepared, &rows.pairs, start, stop, observer, ranks)?;
            Ok(Box::new(UnpairedTask { rows, reference, settings: settings.clone() }))
        }
        (Rows::Labelled(_), _) => bail!("this objective has no labelled responses"),
    }
}
