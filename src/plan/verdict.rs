//! Whether a run fits the memory of its device and, if it does not, settings with which it does.

use super::estimate::{BatchSize, Workload};
use super::forecast::{Forecast, in_bytes};

/// The most ranks that are tried when a run does not fit.
const MOST_RANKS: usize = 1024;

/// A run with some of its settings changed, to try whether it fits.
#[derive(Debug, Clone)]
pub(super) struct Trial<'a> {
    pub(super) run: Workload<'a>,
    /// Rows of a micro-batch.
    pub(super) rows: usize,
    /// Rows of an evaluation batch.
    eval_rows: usize,
}

impl Forecast<'_> {
    /// The run as the recipe says.
    pub(super) fn trial(&self) -> Trial<'_> {
        let train = &self.recipe.train;
        Trial {
            run: self.workload(),
            rows: train.per_device_train_batch_size,
            eval_rows: train.per_device_eval_batch_size,
        }
    }

    /// Says whether the run fits, and if not, with which change it would. `None` if the memory of
    /// the device is not given.
    pub fn verdict(&self) -> Option<String> {
        let limit = self.hardware.device_memory?;
        let trial = self.trial();
        let peak = self.peak(&trial.run);
        let (needed, available) = (in_bytes(peak), in_bytes(limit));
        if peak <= limit {
            let share = 100.0 * peak / limit;
            return Some(format!("it fits: {needed} of {available} a rank ({share:.0} %)"));
        }
        let change = match (self.first_change(&trial, limit), self.recipe.objective.rows_meet()) {
            (Some((change, peak)), _) => format!("with {change} it would, in {}", in_bytes(peak)),
            (None, None) => {
                "neither more ranks nor a smaller batch would be enough; use a smaller model".into()
            }
            (None, Some(why)) => format!(
                "more ranks would not be enough, and a smaller batch would change the loss \
                 ({why}); use a smaller model"
            ),
        };
        Some(format!("it does not fit: {needed} of {available} a rank; {change}"))
    }

    /// The first change with which the run fits, and the peak with it: a single change if one is
    /// enough, else several together. No change alters the numbers of the run, except more rows a
    /// step, which the text then mentions.
    fn first_change(&self, trial: &Trial, limit: f64) -> Option<(String, f64)> {
        /// Changes the trial and describes the change; `None` if it cannot change anything.
        type Change<S> = fn(&S, &mut Trial, f64) -> Option<String>;
        let changes: [Change<Self>; 4] =
            [Self::checkpointing, Self::smaller_batch, Self::smaller_evaluation, Self::more_ranks];
        for change in changes {
            let mut changed = trial.clone();
            if let Some(text) = change(self, &mut changed, limit)
                && self.peak(&changed.run) <= limit
            {
                return Some((text, self.peak(&changed.run)));
            }
        }
        let mut changed = trial.clone();
        let mut texts = Vec::new();
        for change in changes {
            texts.extend(change(self, &mut changed, limit));
            if self.peak(&changed.run) <= limit {
                return Some((texts.join(", "), self.peak(&changed.run)));
            }
        }
        None
    }

    /// Turns gradient checkpointing on.
    fn checkpointing(&self, trial: &mut Trial, _: f64) -> Option<String> {
        let was_on = std::mem::replace(&mut trial.run.gradient_checkpointing, true);
        (!was_on).then(|| "gradient_checkpointing: true".to_string())
    }

    /// Halves the micro-batch and doubles the accumulation until the run fits. Not possible if the
    /// loss depends on which rows share a micro-batch.
    pub(super) fn smaller_batch(&self, trial: &mut Trial, limit: f64) -> Option<String> {
        if self.recipe.objective.rows_meet().is_some() {
            return None;
        }
        let Trial { run, rows, .. } = trial;
        let before = run.accumulation;
        while rows.is_multiple_of(2) && run.memory().peak() + self.program() > limit {
            *rows /= 2;
            run.accumulation *= 2;
            run.batch = run.batch.halved();
        }
        let text = format!(
            "per_device_train_batch_size: {rows} and gradient_accumulation_steps: {}",
            run.accumulation
        );
        (run.accumulation > before).then_some(text)
    }

    /// Halves the evaluation batch until the run fits. Not possible if the loss depends on which
    /// rows share a batch.
    fn smaller_evaluation(&self, trial: &mut Trial, limit: f64) -> Option<String> {
        if self.recipe.objective.rows_meet().is_some() {
            return None;
        }
        let Trial { run, eval_rows, .. } = trial;
        let before = *eval_rows;
        let fits = |run: &Workload| {
            run.evaluation_peak().is_none_or(|peak| peak + self.program() <= limit)
        };
        while eval_rows.is_multiple_of(2) && !fits(run) {
            *eval_rows /= 2;
            run.evaluation = run.evaluation.map(BatchSize::halved);
        }
        let text = format!("per_device_eval_batch_size: {eval_rows}");
        (*eval_rows < before).then_some(text)
    }

    /// Doubles the ranks until the run fits. As long as the accumulation can be halved, a step
    /// keeps its rows. Every rank keeps at least one micro-batch.
    pub(super) fn more_ranks(&self, trial: &mut Trial, limit: f64) -> Option<String> {
        let max_ranks = MOST_RANKS.min(self.schedule.rows.div_ceil(trial.rows));
        let run = &mut trial.run;
        let before = (run.ranks, run.accumulation);
        while 2 * run.ranks <= max_ranks && self.peak(run) > limit {
            run.ranks *= 2;
            if run.accumulation.is_multiple_of(2) {
                run.accumulation /= 2;
            }
        }
        let rows = run.ranks * run.accumulation / (before.0 * before.1);
        let step = match (run.accumulation == before.1, rows) {
            (true, 1) => String::new(),
            (_, 1) => format!(" and gradient_accumulation_steps: {}", run.accumulation),
            (_, more) => format!(" ({more} × as many rows a step)"),
        };
        (run.ranks > before.0).then(|| format!("--ranks {}{step}", run.ranks))
    }
}
