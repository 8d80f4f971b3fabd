//! The training of one plan: start or resume, train, finish.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::context::Context;
use super::error::RunError;
use super::load::load_model;
use super::reference_pass::{self, Found};
use super::{facts, finish, identity};
use crate::data::{Splits, TwoResponses};
use crate::model::device;
use crate::objective::preference::PairObjective;
use crate::parallel::Ranks;
use crate::plan::{Plan, Rows};
use crate::recipe::Objective;
use crate::train::checkpoint::{self, Position, Start};
use crate::train::event::{Event, Observer};
use crate::train::optimizer::Optimizer;
use crate::train::state::TrainerState;
use crate::train::task::Task;
use crate::train::tasks::{PreferenceTask, ReferenceSource, SftTask, UnpairedTask};
use crate::train::trainer::{self, Setup, Trainer};

/// The training of one plan, not begun yet. See the [module](super).
pub struct Run<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    observer: &'a mut dyn Observer,
    device: Device,
    /// The checkpoint that the run continues from, and what it holds.
    resumed: Option<(PathBuf, Start)>,
}

/// What came of [`Run::train`].
pub enum Training<'a> {
    /// All steps are done.
    Done(Trained<'a>),
    /// A signal came, and everything was saved. Another run of the same plan continues.
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
        Ok(Self { plan, context, observer, device, resumed: None })
    }

    /// Continues from a checkpoint, whose files were verified.
    ///
    /// # Errors
    /// The checkpoint belongs to a run of other settings, or cannot be read.
    pub fn resume(&mut self, checkpoint: &Path) -> Result<(), RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        ranks.at_work(|| "loading weights".into());
        let identity = identity::of_checkpoint(plan);
        let start = checkpoint::read(checkpoint, &self.device, plan.dtype, &identity, |model| {
            Optimizer::new(model, &plan.recipe.train, ranks)
        })?;
        let (step, path) = (start.position.global_step, checkpoint.display());
        let text = format!("resuming at step {step} from {path}");
        self.observer.on(&Event::Message(&text))?;
        self.resumed = Some((checkpoint.to_path_buf(), start));
        Ok(())
    }

    /// Trains to the last step, or to the end of the step in which a signal comes: the weights are
    /// loaded, the reference pass is made, the training loop runs.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn train(self) -> Result<Training<'a>, RunError> {
        self.train_with(Self::task)
    }

    /// [`Self::train`] with an objective of the caller's own, over the plan's rows.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn train_on(self, task: Box<dyn Task + 'a>) -> Result<Training<'a>, RunError> {
        self.train_with(|_, _, _| Ok(Some(task)))
    }

    fn train_with(
        mut self,
        task: impl FnOnce(
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
        let _guard = Guard::new(self.context.ranks);
        if self.context.ranks.is_first() {
            facts::write(self.plan)?;
        }
        let Some(task) = task(&mut self, &start, checkpoint.as_deref())? else {
            return Ok(Training::Interrupted);
        };
        let Self { plan, context, observer, .. } = self;
        let setup = Setup {
            settings: &plan.recipe.train,
            schedule: &plan.schedule,
            model_files: &plan.model_files,
            tokenizer: &plan.tokenizer,
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
        Ok(Training::Done(Trained { plan, context, observer, trainer }))
    }

    fn fresh_start(&mut self) -> Result<Start, RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        ranks.at_work(|| "loading weights".into());
        let model = load_model(&plan.model_folder, &self.device, plan.dtype, self.observer)?;
        let optimizer = Optimizer::new(&model, &plan.recipe.train, ranks);
        let state = Trainer::fresh_state(&plan.recipe.train, &plan.schedule);
        let position = Position {
            identity: identity::of_checkpoint(plan),
            sharing: plan.sharing,
            ..Position::default()
        };
        Ok(Start { model, optimizer, state, position })
    }

    /// The objective over the plan's rows, with its reference; `None` if a signal ended the reference
    /// pass.
    fn task(
        &mut self,
        start: &Start,
        checkpoint: Option<&Path>,
    ) -> Result<Option<Box<dyn Task + 'a>>, RunError> {
        let plan = self.plan;
        Ok(match (&plan.rows, &plan.recipe.objective) {
            (Rows::Sft(rows), _) => Some(Box::new(SftTask { rows })),
            (Rows::Pairs(pairs), objective) => {
                let objective = match objective {
                    Objective::Dpo(settings) => PairObjective::Dpo(settings.clone()),
                    Objective::Orpo(settings) => PairObjective::Orpo(settings.clone()),
                    Objective::Cpo(settings) => PairObjective::Cpo(settings.clone()),
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
                let reference = self.reference(rows, start, checkpoint)?;
                let settings = settings.clone();
                reference.map(|reference| -> Box<dyn Task> {
                    Box::new(UnpairedTask { rows, reference, settings })
                })
            }
            (Rows::Unpaired(_), _) => {
                unreachable!("`Plan::new` makes unpaired rows for KTO only")
            }
        })
    }

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
    /// The training record.
    pub fn state(&self) -> &TrainerState {
        self.trainer.state()
    }

    /// Evaluates the final model, if the recipe says so and it was not evaluated yet, and writes the
    /// model, the record and the card into the run's folder. The mark of a finished run comes last.
    ///
    /// # Errors
    /// The best checkpoint cannot be read, or the folder cannot be written.
    pub fn finish(mut self) -> Result<(), RunError> {
        let (plan, ranks) = (self.plan, self.context.ranks);
        let _guard = Guard::new(ranks);
        let best_is_loaded = self.load_best()?;
        let is_new = best_is_loaded || !self.trainer.is_evaluated();
        if plan.recipe.train.do_eval && is_new {
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

    /// Replaces the last model by the best one, if the recipe asks for it (`load_best_model_at_end`)
    /// and it is another one. Returns whether it did.
    fn load_best(&mut self) -> Result<bool, RunError> {
        let Some(best) = self.trainer.best_checkpoint() else { return Ok(false) };
        let exists = best.is_dir();
        let text = match exists {
            true => format!("the best model is {}", best.display()),
            false => format!(
                "the best model was {}, which does not exist any more; the last one takes its place",
                best.display()
            ),
        };
        self.observer.on(&Event::Message(&text))?;
        if exists {
            let device = self.trainer.model().device();
            let model = load_model(&best, &device, self.plan.dtype, self.observer)?;
            self.trainer.replace_model(model);
        }
        Ok(exists)
    }
}

/// As long as it lives, a collective that takes longer than the timeout ends the job. Loading weights
/// and uploads are outside of it: they may take longer.
struct Guard<'a>(&'a Ranks);

impl<'a> Guard<'a> {
    fn new(ranks: &'a Ranks) -> Self {
        ranks.guard(true);
        Self(ranks)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.guard(false);
    }
}
