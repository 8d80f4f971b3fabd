//! Whether a run fits its device, and the first change with which it would.

use super::estimate::{BatchSize, Workload};
use super::forecast::{Forecast, in_bytes};

/// The most ranks that are tried when a run does not fit.
const MOST_RANKS: usize = 1024;

/// A run with some of its settings changed.
#[derive(Debug, Clone)]
pub(super) struct Trial<'a> {
    pub(super) run: Workload<'a>,
    /// Rows of a micro-batch and of an evaluation's batch.
    pub(super) rows: usize,
    eval_rows: usize,
}

impl Forecast<'_> {
    pub(super) fn trial(&self) -> Trial<'_> {
        let train = &self.recipe.train;
        Trial {
            run: self.workload(),
            rows: train.per_device_train_batch_size,
            eval_rows: train.per_device_eval_batch_size,
        }
    }

    /// Whether the run fits, and what would make it fit; `None` where the device's memory is not known.
    pub fn verdict(&self) -> Option<String> {
        let limit = self.hardware.device_memory?;
        let trial = self.trial();
        let peak = self.peak(&trial.run);
        let (needs, has) = (in_bytes(peak), in_bytes(limit));
        if peak <= limit {
            let share = 100.0 * peak / limit;
            return Some(format!("it fits: {needs} of {has} a rank ({share:.0} %)"));
        }
        let change = match (self.first_change(&trial, limit), self.recipe.objective.rows_meet()) {
            (Some((change, peak)), _) => format!("with {change} it would, in {}", in_bytes(peak)),
            (None, None) => {
                "no number of ranks or smaller batch helps: a smaller model would".into()
            }
            (None, Some(why)) => format!(
                "no number of ranks helps, and a smaller batch would change the loss ({why}): a smaller model would"
            ),
        };
        Some(format!("it does not fit: {needs} of {has} a rank; {change}"))
    }

    /// The first change that leaves the numbers as they are (rows a step apart, where the change says so) with which the
    /// run fits: one by itself, else one after the other.
    fn first_change(&self, trial: &Trial, limit: f64) -> Option<(String, f64)> {
        /// Changes the run and says how; nothing where it cannot.
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

    fn checkpointing(&self, trial: &mut Trial, _: f64) -> Option<String> {
        let text = "gradient_checkpointing: true".to_string();
        (!std::mem::replace(&mut trial.run.gradient_checkpointing, true)).then_some(text)
    }

    /// Where rows meet in the loss, a smaller micro-batch is another objective.
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

    /// Where rows meet in the loss, so they do in that of an evaluation.
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

    /// Rows a step stay what they are as long as there are micro-batches to share. No rank may be without any.
    pub(super) fn more_ranks(&self, trial: &mut Trial, limit: f64) -> Option<String> {
        let most = MOST_RANKS.min(self.schedule.rows.div_ceil(trial.rows));
        let run = &mut trial.run;
        let before = (run.ranks, run.accumulation);
        while 2 * run.ranks <= most && self.peak(run) > limit {
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
