//! The training loop: step, log, evaluation, checkpoint, in this order, until all steps are done or
//! a signal asks to stop.

mod saving;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::balance::Balance;
use super::checkpoint::{Position, Start};
use super::clock::Clock;
use super::error::TrainError;
use super::evaluation::{HeldOut, evaluate};
use super::event::{Event, LogRow, Observer};
use super::gradients::{GradientSum, clip_factor};
use super::layerwise::{Keep, LayerwisePass, StepInputs};
use super::measured::{check_evaluation, check_finite, metric_for_best_model, with_tokens};
use super::metrics::MicroBatch;
use super::noise::EmbeddingNoise;
use super::optimizer::Optimizer;
use super::schedule::LearningRate;
use super::state::{Interval, TrainerState};
use super::steps::{Cadence, StepSchedule};
use super::task::{Part, Split, Task, in_parts};
use crate::data::Tokenizer;
use crate::kernels::dropout::TokenKeys;
use crate::kernels::timed;
use crate::model::adapter::lora::token_key;
use crate::model::decoder::Decoder;
use crate::model::files::ModelFiles;
use crate::parallel::Ranks;
use crate::parallel::drill::{Drill, drill};
use crate::parallel::ranks::Traffic;
use crate::recipe::{Schedule, TrainSettings};

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Done,
    /// A signal came. The run was saved and can be resumed.
    Interrupted,
}

/// The inputs of a training loop besides its [`Start`].
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub settings: &'a TrainSettings,
    pub schedule: &'a StepSchedule,
    /// The files beside the weights in a checkpoint.
    pub model_files: &'a ModelFiles,
    pub tokenizer: &'a Tokenizer,
    /// The load-balancing loss, if the model has sparse experts.
    pub balance: Option<Balance>,
    /// All ranks run this loop, with the same numbers; rank 0 writes.
    pub ranks: &'a Ranks,
    /// Set by a signal handler: finish the step, save, return.
    pub stop: &'a AtomicBool,
}

/// The training loop and its state.
pub struct Trainer<'a> {
    settings: &'a TrainSettings,
    schedule: &'a StepSchedule,
    model_files: &'a ModelFiles,
    tokenizer: &'a Tokenizer,
    balance: Option<Balance>,
    ranks: &'a Ranks,
    stop: &'a AtomicBool,
    task: Box<dyn Task + 'a>,
    model: Decoder,
    optimizer: Optimizer,
    state: TrainerState,
    position: Position,
}

/// The result of one update, for the progress bar and the log.
struct StepResult {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    margin: Option<f64>,
    tokens: usize,
    /// A signal came to one of the ranks.
    stop: bool,
}

impl<'a> Trainer<'a> {
    /// A loop before its first step.
    pub fn new(setup: Setup<'a>, start: Start, task: Box<dyn Task + 'a>) -> Self {
        let Setup { settings, schedule, model_files, tokenizer, balance, ranks, stop } = setup;
        let Start { model, optimizer, state, position } = start;
        Self {
            settings,
            schedule,
            model_files,
            tokenizer,
            balance,
            ranks,
            stop,
            task,
            model,
            optimizer,
            state,
            position,
        }
    }

    /// The policy after the steps so far.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Replaces the policy by another model, which is then evaluated and written.
    pub fn replace_model(&mut self, model: Decoder) {
        self.model = model;
    }

    /// The record so far.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// Whether the model of the last step has been evaluated.
    pub fn is_evaluated(&self) -> bool {
        let rows = self.state.log_history.iter();
        let mut rows = rows.filter(|row| row.step == self.state.global_step);
        rows.any(|row| row.get("eval_loss").is_some())
    }

    /// The state before the first step of `schedule`.
    pub fn fresh_state(settings: &TrainSettings, schedule: &StepSchedule) -> TrainerState {
        let interval = |cadence: Cadence| match cadence {
            Cadence::Steps(steps) => Interval::Whole(steps),
            Cadence::Never | Cadence::EpochEnd | Cadence::NewBest => Interval::Whole(500),
        };
        TrainerState {
            eval_steps: interval(schedule.evaluation),
            logging_steps: interval(schedule.logging),
            save_steps: interval(schedule.saving),
            max_steps: schedule.total,
            num_train_epochs: match settings.max_steps {
                Some(steps) => steps.div_ceil(schedule.steps_per_epoch),
                None => schedule.epochs.ceil() as u64,
            },
            train_batch_size: Some(settings.per_device_train_batch_size as u64),
            ..TrainerState::default()
        }
    }

    /// Trains until all steps are done. After a signal it finishes the current step, saves and
    /// returns.
    ///
    /// # Errors
    /// The loss or the gradient norm is NaN or infinite, or a file cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Ending, TrainError> {
        let clock = Clock::start(&self.position);
        let sent = self.ranks.traffic();
        let total = self.schedule.total;
        observer.on(&Event::Phase { name: "training", total, unit: "steps" })?;
        if self.position.global_step == 0
            && self.settings.eval_on_start
            && let Some(row) = self.evaluate(observer)?
        {
            // As in transformers, the model before the first step is never the best one.
            metric_for_best_model(self.settings, &row)?;
        }
        let mut order = (u64::MAX, Vec::new());
        while self.position.global_step < total {
            let done = self.position.global_step;
            let epoch = self.schedule.epoch_of(done);
            if order.0 != epoch {
                order = (epoch, self.schedule.order(epoch));
            }
            let mut stop = self.one_step(&order.1, clock, observer)?;
            // Several ranks agree on a stop in the next update; one rank can stop at once.
            stop |= self.ranks.is_alone() && self.stop.load(Ordering::Relaxed);
            if stop && self.position.global_step < total {
                self.save(clock, observer)?;
                observer.on(&Event::PhaseEnd { name: "training" })?;
                return Ok(Ending::Interrupted);
            }
        }
        observer.on(&Event::PhaseEnd { name: "training" })?;
        if !self.is_finished() {
            self.report_traffic(sent, clock, observer)?;
            self.finish(clock, observer)?;
        }
        Ok(Ending::Done)
    }

    /// Whether the record has its summary. It has none if the run was killed after its last
    /// checkpoint and before its end.
    fn is_finished(&self) -> bool {
        self.state.log_history.iter().any(|row| row.get("train_runtime").is_some())
    }

    /// One update with the log, evaluation and checkpoint that are due after it. Returns whether
    /// the run was asked to stop.
    fn one_step(
        &mut self,
        order: &[usize],
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let started = Instant::now();
        self.ranks.at_step(self.position.global_step + 1);
        self.drill()?;
        let result = self.update(order)?;
        let step = self.position.global_step;
        observer.on(&Event::Step {
            step,
            max_steps: self.schedule.total,
            epoch: self.state.epoch,
            loss: result.loss,
            margin: result.margin,
            tokens_per_second: result.tokens as f64 / started.elapsed().as_secs_f64(),
        })?;
        let first = step == 1 && self.settings.logging_first_step;
        if first || self.schedule.logs_after(step) {
            self.log(&result, observer)?;
        }
        let mut is_best = false;
        if self.schedule.evaluates_after(step)
            && let Some(row) = self.evaluate(observer)?
        {
            is_best = self.remember_best(&row)?;
        }
        let saves_best = is_best && self.schedule.saving == Cadence::NewBest;
        if saves_best || self.schedule.saves_after(step) {
            self.remember_best_checkpoint();
            self.save(clock, observer)?;
        }
        Ok(result.stop)
    }

    /// Forward, backward and optimizer over one window of micro-batches.
    fn update(&mut self, order: &[usize]) -> Result<StepResult, TrainError> {
        timed!("step");
        let done = self.position.global_step;
        let window = self.schedule.window(order, done);
        self.ranks.at_work(|| "waiting for the rows of the step".into());
        self.task.wait(Split::Train, &window)?;
        let divisor = self.task.divisor(Split::Train, &window);
        let most = self.settings.max_tokens_per_microbatch;
        let parts = in_parts(&*self.task, Split::Train, &window, most);
        let keep = if self.settings.gradient_checkpointing { Keep::Inputs } else { Keep::Graphs };
        let ranks = self.ranks;
        let layout = self.optimizer.layout().clone();
        let mut gradients = GradientSum::over(ranks, &layout);
        let mut measured = Vec::new();
        for (round, of_ranks) in parts.chunks(ranks.world()).enumerate() {
            gradients.begin_round(of_ranks.len());
            if let Some(part) = of_ranks.get(ranks.rank()) {
                ranks.at_work(|| format!("forward and backward of micro-batch {}", round + 1));
                let mut batch = self.task.batch(Split::Train, part.rows);
                batch.reads_everywhere |= self.balance.is_some();
                let upstream = self.task.known_upstream(&batch, divisor);
                let inputs = StepInputs {
                    upstream,
                    smoothing: self.task.smoothing_upstream(divisor),
                    balance: self.balance.map(|balance| {
                        balance.inputs(&*self.task, Split::Train, part.rows, window.len())
                    }),
                    ..self.random_inputs(*part, &window, done)
                };
                let pass = LayerwisePass::forward_step(&self.model, &batch, keep, inputs);
                self.share(Some((*part, &pass)), of_ranks.len());
                let mut own = self.task.measure(Split::Train, *part, &pass, divisor);
                if let Some(balance) = self.balance {
                    balance.add_to(&mut own, &pass, part.rows.len(), window.len());
                }
                pass.backward(&own.upstream, &mut gradients);
                measured.push(MicroBatch::new(&own, batch.tokens(), part.rows.len()));
            } else {
                self.share(None, of_ranks.len());
            }
            gradients.end_round(&self.model.device());
        }
        ranks.at_work(|| "optimizer update".into());
        let measured = ranks.gather_in_turn("metrics", measured);
        let stop = ranks.any("stop signals", self.stop.load(Ordering::Relaxed));
        let loss = measured.iter().fold(0.0, |sum, batch| sum + batch.loss.0);
        let grad_norm = gradients.norm();
        check_finite(done + 1, loss, grad_norm)?;
        let rates = LearningRate::new(self.settings, self.schedule);
        let learning_rate = rates.at(done, &self.evaluations()?);
        let scale = clip_factor(grad_norm, self.settings.max_grad_norm);
        self.optimizer.step(&mut self.model, &mut gradients, learning_rate, scale, ranks);
        self.task.after_update(done + 1, &self.model);

        let micro_batches = MicroBatch::join_all(&parts, &measured);
        for (rows, batch) in window.iter().zip(&micro_batches) {
            self.position.num_tokens += self.task.num_tokens(Split::Train, rows) as u64;
            self.position.means_since_log.add_once(batch);
        }
        self.position.global_step = done + 1;
        self.position.loss_since_log += loss;
        self.position.steps_since_log += 1;
        self.position.total_loss += loss;
        self.state.global_step = done + 1;
        self.state.epoch = self.schedule.epoch_after(done + 1);
        let margins = micro_batches.iter().filter_map(|batch| batch.margin);
        let margins: Vec<f64> = margins.map(|margin| margin.0).collect();
        let margin =
            (!margins.is_empty()).then(|| margins.iter().sum::<f64>() / margins.len() as f64);
        let tokens = measured.iter().map(|batch| batch.tokens).sum();
        Ok(StepResult { loss, grad_norm, learning_rate, margin, tokens, stop })
    }

    /// Exchanges what the micro-batches of a round share before they are measured, if the objective
    /// needs that. `own` is this rank's micro-batch; the first `count` ranks have one.
    fn share(&self, own: Option<(Part, &LayerwisePass)>, count: usize) {
        if !self.task.shares() {
            return;
        }
        let share = own.map(|(part, pass)| self.task.share(part, pass)).unwrap_or_default();
        let shares = match self.ranks.is_alone() {
            true => vec![share],
            false => {
                let all = self.ranks.gather("shared numbers", bytemuck::cast_slice(&share));
                all.iter().map(|bytes| bytemuck::pod_read_unaligned(bytes)).collect()
            }
        };
        self.task.receive(&shares[..count], self.ranks.rank());
    }

    /// Dropout of adapters and noise on the embeddings for a part of a micro-batch of `window`,
    /// after
    /// `done` steps. Both depend on the key of each token, which does not depend on the other rows
    /// of the batch.
    fn random_inputs(&self, part: Part, window: &[&[usize]], done: u64) -> StepInputs {
        let alpha = self.settings.neftune_noise_alpha.filter(|alpha| *alpha > 0.0);
        if alpha.is_none() && !self.model.has_dropout() {
            return StepInputs::default();
        }
        let of_row = |row: &usize| {
            let (seed, row) = (self.settings.seed, *row);
            let tokens = 0..self.task.computed_tokens(Split::Train, row);
            tokens.map(move |token| token_key(seed, done, row, token))
        };
        let keys: TokenKeys = part.rows.iter().flat_map(of_row).collect();
        let keys = Arc::new(keys);
        let whole = window.iter().find(|rows| rows.contains(&part.rows[0]));
        let length = self.task.padded_length(whole.copied().unwrap_or(part.rows));
        StepInputs {
            dropout: self.model.has_dropout().then(|| keys.clone()),
            noise: alpha.map(|alpha| EmbeddingNoise::new(alpha, length, keys)),
            ..StepInputs::default()
        }
    }

    /// Fails if a failure drill says so, see [`crate::parallel::drill`].
    fn drill(&self) -> Result<(), TrainError> {
        match drill(self.ranks.rank(), self.position.global_step + 1) {
            None => Ok(()),
            Some(Drill::Panic) => panic!("a drill: FAVONIUS_DRILL asked for it"),
            Some(Drill::Error) => Err(TrainError::Drill),
            Some(Drill::Stall) => loop {
                std::thread::park();
            },
        }
    }

    /// Reports the cost of communication between ranks in one line.
    fn report_traffic(
        &mut self,
        before: Traffic,
        clock: Clock,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let steps = clock.steps(self.position.global_step);
        if self.ranks.is_alone() || steps == 0 {
            return Ok(());
        }
        let sent = self.ranks.traffic();
        let share = (sent.time - before.time).div_duration_f64(clock.started.elapsed());
        let text = format!(
            "{} ranks: {:.1} % of the time in collectives; rank 0 sent {} bytes of gradients and weights \
             a step, and {} of embedding rows",
            self.ranks.world(),
            100.0 * share,
            (sent.bytes - before.bytes) / steps,
            (sent.row_bytes - before.row_bytes) / steps,
        );
        Ok(observer.on(&Event::Message(&text))?)
    }

    /// The metric of the best model after each evaluation so far but that before the first step, if
    /// the learning rate follows the evaluations.
    fn evaluations(&self) -> Result<Vec<f64>, TrainError> {
        if self.settings.lr_scheduler_type != Schedule::ReduceLrOnPlateau {
            return Ok(Vec::new());
        }
        let rows = self.state.log_history.iter().filter(|row| row.step > 0);
        let rows = rows.filter(|row| row.get("eval_loss").is_some());
        rows.filter_map(|row| metric_for_best_model(self.settings, row).transpose()).collect()
    }

    fn log(&mut self, result: &StepResult, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let position = &mut self.position;
        let mut values = vec![
            ("loss".to_string(), position.loss_since_log / position.steps_since_log as f64),
            ("grad_norm".to_string(), result.grad_norm),
            ("learning_rate".to_string(), result.learning_rate),
        ];
        values.extend(with_tokens(position.means_since_log.take(""), "", position.num_tokens));
        position.loss_since_log = 0.0;
        position.steps_since_log = 0;
        self.record(values, observer)
    }

    /// Adds a row to the history and passes it to the observer.
    fn record(
        &mut self,
        values: Vec<(String, f64)>,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let row = LogRow { step: self.state.global_step, epoch: self.state.epoch, values };
        observer.on(&Event::Log(&row))?;
        self.state.log_history.push(row);
        Ok(())
    }

    /// Evaluates the test rows. Returns the new row of the record; `None` if the run has no test
    /// rows.
    ///
    /// # Errors
    /// The loss is NaN or infinite; the observer cannot write.
    pub fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<Option<LogRow>, TrainError> {
        let batch_size = self.settings.per_device_eval_batch_size;
        let rows = self.task.rows(Split::Test);
        let tokens = |row: usize| self.task.computed_tokens(Split::Test, row);
        let mut order = self.schedule.held_out_order(rows, batch_size, tokens);
        if self.settings.dataloader_drop_last {
            order.truncate(rows - rows % batch_size);
        }
        if order.is_empty() {
            return Ok(None);
        }
        let total = order.len() as u64;
        observer.on(&Event::Phase { name: "evaluation", total, unit: "rows" })?;
        let mut observed = Ok(());
        let most = self.settings.max_tokens_per_microbatch;
        let held_out =
            HeldOut { order: &order, batch_size, most_tokens: most, balance: self.balance };
        let values = evaluate(&self.model, &*self.task, held_out, self.ranks, |done| {
            let advance = Event::Advance { name: "evaluation", done: done as u64, message: "" };
            observed =
                std::mem::replace(&mut observed, Ok(())).and_then(|()| observer.on(&advance));
        });
        observed?;
        observer.on(&Event::PhaseEnd { name: "evaluation" })?;
        self.record(with_tokens(values, "eval_", self.position.num_tokens), observer)?;
        let row = self.state.log_history.last().cloned();
        row.iter().try_for_each(check_evaluation)?;
        Ok(row)
    }
}
