//! The training of one plan: [`Run`] begins or resumes it, [`Trained`] finishes it.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::context::Context;
use super::error::RunError;
use super::load::{load_policy, policy, set_masters};
use super::reference_pass::{self, Found};
use super::start::remove_earlier_run;
use super::{facts, finish, identity};
use crate::data::{Splits, TwoResponses};
use crate::model::device;
use crate::objective::preference::PairObjective;
use crate::parallel::Ranks;
use crate::plan::{Plan, Rows};
use crate::recipe::{Objective, Schedule};
use crate::train::checkpoint::{self, CheckpointError, Position, Start};
use crate::train::event::{Event, Observer};
use crate::train::identity::text_of;
use crate::train::optimizer::Optimizer;
use crate::train::schedule::LearningRate;
use crate::train::state::TrainerState;
use crate::train::steps::StepSchedule;
use crate::train::task::Task;
use crate::train::tasks::{PreferenceTask, ReferenceSource, RewardSum, SftTask, UnpairedTask};
use crate::train::trainer::{self, Setup, Trainer};

/// The training of one plan, before its first step. See the [module](super).
pub struct Run<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    observer: &'a mut dyn Observer,
    device: Device,
    /// The checkpoint that the run continues from, and what it holds.
    resumed: Option<(PathBuf, Start)>,
    /// Whether an earlier run in the folder is removed before the first step.
    replaces: bool,
}

/// The result of [`Run::train`].
pub enum Training<'a> {
    /// All steps are done.
    Done(Box<Trained<'a>>),
    /// The run was asked to stop and is saved. Another run of the same plan continues it.
    Interrupted,
}

/// A run whose steps are all done.
pub struct Trained<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    observer: &'a mut dyn Observer,
    trainer: Trainer<'a>,
}

impl<'a> Run<'a> {
    /// A run on the plan's device. No weight is read yet.
    ///
    /// # Errors
    /// The device does not exist, or does not compute in the plan's type.
    pub fn new(
        plan: &'a Plan,
        context: &'a Context<'a>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, RunError> {
        let name = plan.recipe.train.device.of_rank(context.ranks.local_rank()).to_string();
        let device = device::find(&name)?;
        if !device.supports_dtype(plan.dtype) {
            return Err(RunError::Dtype(plan.dtype));
        }
        Ok(Self { plan, context, observer, device, resumed: None, replaces: false })
    }

    /// Lets the run remove the checkpoints and the mark of an earlier run in its folder, right
    /// before the first step. Until then everything that can fail has been checked.
    pub fn replace_earlier_run(&mut self) {
        self.replaces = true;
    }

    /// Continues from `checkpoint`, whose files must have been verified before.
    ///
    /// # Errors
    /// The checkpoint belongs to a run with other settings, or cannot be read.
    pub fn resume(&mut self, checkpoint: &Path) -> Result<(), RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        ranks.at_work(|| "loading weights".into());
        let identity = identity::of_checkpoint(plan);
        let (step, total) =
            (checkpoint::read_position(checkpoint)?.global_step, plan.schedule.total);
        if step > total && plan.recipe.train.do_train {
            let path = checkpoint.to_path_buf();
            return Err(CheckpointError::PastTheEnd { path, step, total }.into());
        }
        let load = |folder: &Path| policy(plan, Some(folder), &self.device, |_, _| ());
        let mut start = checkpoint::read(checkpoint, &identity, load, |model| {
            Optimizer::new(model, &plan.recipe.train, ranks)
        })?;
        let text = format!("resuming at step {step} from {}", checkpoint.display());
        self.observer.on(&Event::Message(&text))?;
        if let Some(text) = new_length(plan, step, start.state.max_steps) {
            self.observer.on(&Event::Message(&text))?;
        }
        start.state.follow(&Trainer::fresh_state(&plan.recipe.train, &plan.schedule));
        self.resumed = Some((checkpoint.to_path_buf(), start));
        Ok(())
    }

    /// Loads the weights, runs the reference pass and then the training loop. It ends at the last
    /// step, or at the end of the step in which the run is asked to stop.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn train(self) -> Result<Training<'a>, RunError> {
        self.train_with(Self::task)
    }

    /// [`Self::train`] with a task of the caller's own instead of the recipe's objective and
    /// without a reference pass.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn train_on(self, task: Box<dyn Task + 'a>) -> Result<Training<'a>, RunError> {
        self.train_with(|_, _, _| Ok(Some(task)))
    }

    fn train_with(
        mut self,
        make_task: impl FnOnce(
            &mut Self,
            &Start,
            Option<&Path>,
        ) -> Result<Option<Box<dyn Task + 'a>>, RunError>,
    ) -> Result<Training<'a>, RunError> {
        let (checkpoint, start) = match self.resumed.take() {
            Some((checkpoint, start)) => (Some(checkpoint), start),
            None => (None, self.fresh_start()?),
        };
        self.observer.on(&Event::Start { history: &start.state.log_history })?;
        let _guard = TimeoutGuard::new(self.context.ranks);
        if self.context.ranks.is_first() {
            facts::write(self.plan)?;
        }
        let Some(task) = make_task(&mut self, &start, checkpoint.as_deref())? else {
            return Ok(Training::Interrupted);
        };
        let Self { plan, context, observer, .. } = self;
        if self.replaces {
            let removed = || remove_earlier_run(plan.recipe.output_dir());
            context.ranks.decide("the earlier run", removed)?;
        }
        let setup = Setup {
            settings: &plan.recipe.train,
            schedule: &plan.schedule,
            model_files: &plan.model_files,
            tokenizer: &plan.tokenizer,
            balance: plan.balance,
            ranks: context.ranks,
            stop: context.stop,
        };
        let mut trainer = Trainer::new(setup, start, task);
        let trains = plan.recipe.train.do_train;
        if trains && trainer.run(observer)? == trainer::Ending::Interrupted {
            let step = trainer.state().global_step;
            let text =
                format!("stopped by a signal after step {step}; the same command continues there");
            observer.on(&Event::Message(&text))?;
            return Ok(Training::Interrupted);
        }
        Ok(Training::Done(Box::new(Trained { plan, context, observer, trainer })))
    }

    /// The start of a run without a checkpoint: the model of the recipe, no step done.
    fn fresh_start(&mut self) -> Result<Start, RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        ranks.at_work(|| "loading weights".into());
        let model = load_policy(plan, None, &self.device, self.observer)?;
        let mut optimizer = Optimizer::new(&model, &plan.recipe.train, ranks);
        set_masters(plan, &model, &mut optimizer)?;
        let state = Trainer::fresh_state(&plan.recipe.train, &plan.schedule);
        let position = Position {
            identity: identity::of_checkpoint(plan),
            sharing: plan.sharing,
            ..Position::default()
        };
        Ok(Start { model, optimizer, state, position })
    }

    /// The recipe's objective over the plan's rows, with its reference. `None` if the run was asked
    /// to stop during the reference pass.
    fn task(
        &mut self,
        start: &Start,
        checkpoint: Option<&Path>,
    ) -> Result<Option<Box<dyn Task + 'a>>, RunError> {
        let plan = self.plan;
        Ok(match (&plan.rows, &plan.recipe.objective) {
            (Rows::Sft(rows), Objective::Sft(settings)) => {
                Some(Box::new(SftTask { rows, settings: settings.clone() }))
            }
            (Rows::Sft(_), _) => unreachable!("`Plan::new` makes documents for SFT only"),
            (Rows::Pairs(pairs), objective) => {
                let objective = match objective {
                    Objective::Dpo(settings) => PairObjective::Dpo(settings.clone()),
                    Objective::Orpo(settings) => PairObjective::Orpo(settings.clone()),
                    Objective::Cpo(settings) => PairObjective::Cpo(settings.clone()),
                    Objective::Tpo(settings) => PairObjective::Tpo(settings.clone()),
                    Objective::Sft(_) | Objective::Kto(_) => {
                        unreachable!("`Plan::new` makes pairs for objectives over pairs only")
                    }
                };
                let reference = self.reference(pairs, start, checkpoint)?;
                reference.map(|reference| -> Box<dyn Task> {
                    Box::new(PreferenceTask { pairs, reference, objective })
                })
            }
            (Rows::Unpaired(rows), Objective::Kto(settings)) => {
                let rewards = match checkpoint {
                    Some(folder) if settings.loss_type.has_running_mean() => {
                        RewardSum::load(folder)
                            .map_err(|error| running_mean_is_gone(folder, &error))?
                    }
                    _ => RewardSum::default(),
                };
                let reference = self.reference(rows, start, checkpoint)?;
                let settings = settings.clone();
                reference.map(|reference| -> Box<dyn Task> {
                    let (rewards, shift) = (Cell::new(rewards), Cell::default());
                    Box::new(UnpairedTask { rows, reference, settings, rewards, shift })
                })
            }
            (Rows::Unpaired(_), _) => {
                unreachable!("`Plan::new` makes unpaired rows for KTO only")
            }
        })
    }

    /// The reference for `pairs`. `None` if the run was asked to stop.
    fn reference(
        &mut self,
        rows: &Splits<impl TwoResponses>,
        start: &Start,
        checkpoint: Option<&Path>,
    ) -> Result<Option<ReferenceSource>, RunError> {
        let (plan, context) = (self.plan, self.context);
        match reference_pass::find(plan, rows, start, checkpoint, context, self.observer)? {
            Found::Reference(reference) => Ok(Some(reference)),
            Found::Stopped(stopped) => {
                self.observer.on(&Event::Message(&stopped.to_string()))?;
                Ok(None)
            }
        }
    }
}

impl Trained<'_> {
    /// The training record (`trainer_state.json`).
    pub fn state(&self) -> &TrainerState {
        self.trainer.state()
    }

    /// Loads the best model and evaluates the final one if the recipe says so. Writes model, record
    /// and card into the run's folder, and then the mark of a finished run.
    ///
    /// # Errors
    /// The best checkpoint cannot be read, or the folder cannot be written.
    pub fn finish(mut self) -> Result<(), RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        let _guard = TimeoutGuard::new(ranks);
        let is_replaced = self.load_best()?;
        let needs_evaluation = is_replaced || !self.trainer.is_evaluated();
        if plan.recipe.train.do_eval && needs_evaluation {
            self.trainer.evaluate(self.observer)?;
        }
        ranks.at_work(|| "writing the model".into());
        if ranks.is_first() {
            finish::write(plan, self.trainer.model(), self.trainer.state())?;
            self.observer.on(&Event::Saved { path: plan.recipe.output_dir() })?;
        }
        ranks.barrier("the model");
        Ok(())
    }

    /// Replaces the last model by the best one if the recipe says so (`load_best_model_at_end`) and
    /// another checkpoint is the best. Returns whether the model was replaced.
    fn load_best(&mut self) -> Result<bool, RunError> {
        let Some(best) = self.trainer.best_checkpoint() else { return Ok(false) };
        let checked = checkpoint::verify(&best);
        let text = match &checked {
            Ok(()) => format!("the best model is {}", best.display()),
            Err(error) => format!("the best model cannot be used: {error}; the last model is kept"),
        };
        self.observer.on(&Event::Message(&text))?;
        if checked.is_ok() {
            let device = self.trainer.model().device();
            let model = load_policy(self.plan, Some(&best), &device, self.observer)?;
            self.trainer.replace_model(model);
        }
        Ok(checked.is_ok())
    }
}

/// The error of a checkpoint whose running mean of BCO cannot be read.
fn running_mean_is_gone(checkpoint: &Path, error: &io::Error) -> CheckpointError {
    let reason = format!("{}: {error}", RewardSum::FILE);
    CheckpointError::Damaged { path: checkpoint.into(), reason }
}

/// A message if a run that continues after `step` steps has another length than the run that wrote
/// the checkpoint, which had `was` steps.
fn new_length(plan: &Plan, step: u64, was: u64) -> Option<String> {
    let (schedule, settings) = (&plan.schedule, &plan.recipe.train);
    let StepSchedule { total, warmup, .. } = *schedule;
    if was == total || step >= total {
        return None;
    }
    let change = if total > was { "extended" } else { "shortened" };
    let name = text_of(&settings.lr_scheduler_type);
    let first = match settings.lr_scheduler_type {
        // It follows the evaluations.
        Schedule::ReduceLrOnPlateau => String::new(),
        _ => format!(", {:e} at first", LearningRate::new(settings, schedule).at(step, &[])),
    };
    Some(format!(
        "the run is {change} from {was} to {total} steps; from step {} on the learning rate is \
         that of the new schedule ({name} over {total} steps, {warmup} of them warm-up){first}",
        step + 1
    ))
}

/// While the guard exists, a collective that takes longer than the timeout ends the job. Loading
/// the weights at the start and the upload may take longer, so no guard exists then.
struct TimeoutGuard<'a>(&'a Ranks);

impl<'a> TimeoutGuard<'a> {
    fn new(ranks: &'a Ranks) -> Self {
        ranks.guard(true);
        Self(ranks)
    }
}

impl Drop for TimeoutGuard<'_> {
    fn drop(&mut self) {
        self.0.guard(false);
    }
}
