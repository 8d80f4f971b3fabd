//! The arithmetic of a run: how many steps, which rows at which step, when to evaluate and save.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::sampler::{epoch_order, grouped_by_length};
use crate::recipe::{Every, Sampling, TrainSettings, Warmup};

/// How often something happens, with every share turned into steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cadence {
    Never,
    EpochEnd,
    /// Every n optimizer steps.
    Steps(u64),
    /// After each evaluation that is better than all before it.
    NewBest,
}

impl Cadence {
    fn new(every: Every, total: u64) -> Self {
        match every {
            Every::No => Self::Never,
            Every::Epoch => Self::EpochEnd,
            Every::Best => Self::NewBest,
            Every::Steps(share) if share < 1.0 => {
                Self::Steps(((total as f64 * share).ceil() as u64).max(1))
            }
            Every::Steps(steps) => Self::Steps((steps as u64).max(1)),
        }
    }

    fn is_due(self, step: u64, ends_epoch: bool) -> bool {
        match self {
            Self::Never | Self::NewBest => false,
            Self::EpochEnd => ends_epoch,
            Self::Steps(every) => step.is_multiple_of(every),
        }
    }
}

/// How the ranks share the rows of a step:
/// `ranks · per_device_train_batch_size · gradient_accumulation_steps`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    pub ranks: usize,
    pub per_device_train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
}

impl Sharing {
    /// The recipe's settings on `ranks` ranks.
    pub fn of(settings: &TrainSettings, ranks: usize) -> Self {
        Self {
            ranks,
            per_device_train_batch_size: settings.per_device_train_batch_size,
            gradient_accumulation_steps: settings.gradient_accumulation_steps,
        }
    }

    /// Rows of an optimizer step.
    pub fn rows(self) -> usize {
        self.ranks * self.per_device_train_batch_size * self.gradient_accumulation_steps
    }
}

/// Steps of a run over `rows` training rows.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSchedule {
    pub rows: usize,
    /// Rows of a micro-batch, which one rank computes.
    pub micro_batch: usize,
    /// Micro-batches of a step that each rank computes, one after the other.
    pub accumulation: usize,
    pub ranks: usize,
    /// Micro-batches of an epoch; the last one may be short, unless short ones are left out.
    pub micro_batches: usize,
    pub steps_per_epoch: u64,
    /// Steps of the run, `T`.
    pub total: u64,
    /// Warm-up steps, `W`.
    pub warmup: u64,
    pub epochs: f64,
    pub logging: Cadence,
    pub evaluation: Cadence,
    pub saving: Cadence,
    /// Steps, or epochs if evaluations are by epoch, before the first evaluation.
    eval_delay: f64,
    seed: u64,
    sampling: Sampling,
    /// Tokens of each training row, if rows are grouped by length and have been read.
    lengths: Option<Arc<[usize]>>,
}

impl StepSchedule {
    /// transformers' arithmetic: `T = max_steps`, else
    /// `ceil(epochs · ceil(micro-batches / accumulation))`; `W = warmup_steps`, else
    /// `ceil(T · warmup_ratio)`.
    ///
    /// A step takes `accumulation · ranks` micro-batches. Everything here depends on that product
    /// only. So the same number of rows per step gives the same run on any number of ranks. With
    /// `dataloader_drop_last`, an epoch has `floor(rows / micro-batch)` micro-batches.
    pub fn new(settings: &TrainSettings, rows: usize, ranks: usize) -> Self {
        Self::shared(settings, rows, Sharing::of(settings, ranks))
    }

    /// [`Self::new`] with a `sharing` that may differ from the recipe's, because the run continues
    /// on another number of ranks.
    pub fn shared(settings: &TrainSettings, rows: usize, sharing: Sharing) -> Self {
        let Sharing { ranks, per_device_train_batch_size: micro_batch, .. } = sharing;
        let accumulation = sharing.gradient_accumulation_steps;
        let micro_batches = match settings.dataloader_drop_last {
            true => rows / micro_batch,
            false => rows.div_ceil(micro_batch),
        };
        let window = accumulation * ranks;
        let steps_per_epoch = (micro_batches.div_ceil(window) as u64).max(1);
        let by_epochs = (settings.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        let total = settings.max_steps.unwrap_or(by_epochs);
        Self {
            rows,
            micro_batch,
            accumulation,
            ranks,
            micro_batches,
            steps_per_epoch,
            total,
            warmup: match settings.warmup {
                Warmup::Steps(steps) => steps,
                Warmup::Ratio(ratio) => (total as f64 * ratio).ceil() as u64,
            },
            epochs: settings.num_train_epochs,
            logging: Cadence::new(settings.logging, total),
            evaluation: Cadence::new(settings.eval, total),
            saving: Cadence::new(settings.save, total),
            eval_delay: settings.eval_delay,
            seed: settings.data_seed.unwrap_or(settings.seed),
            sampling: settings.train_sampling_strategy,
            lengths: None,
        }
    }

    /// The same schedule for training rows of these `lengths` in tokens. Only an order that groups
    /// rows by length depends on them.
    pub fn with_lengths(mut self, lengths: impl Iterator<Item = usize>) -> Self {
        let is_read = self.sampling == Sampling::GroupByLength;
        self.lengths = is_read.then(|| lengths.collect());
        self
    }

    /// Micro-batches of a step.
    pub fn window_len(&self) -> usize {
        self.accumulation * self.ranks
    }

    /// Rows of a step.
    pub fn rows_a_step(&self) -> usize {
        self.micro_batch * self.window_len()
    }

    /// The epoch, from 0, of the update after `done` updates.
    pub fn epoch_of(&self, done: u64) -> u64 {
        done / self.steps_per_epoch
    }

    /// The order of the rows in an epoch. Rows of a short micro-batch that is left out are not in
    /// it. Rows are grouped by length only if their lengths are known ([`Self::with_lengths`]).
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order = match &self.lengths {
            Some(lengths) => {
                let seed = self.seed.wrapping_add(epoch);
                grouped_by_length(lengths, self.rows_a_step(), seed)
            }
            None => {
                let sequential = self.sampling == Sampling::Sequential;
                epoch_order(self.rows, self.seed, epoch, sequential)
            }
        };
        order.truncate(self.micro_batches * self.micro_batch);
        order
    }

    /// The order of `rows` held-out rows: the order of the file or, as in transformers, groups of
    /// `batch` rows of similar length. `tokens` gives the length of a row.
    pub fn held_out_order(
        &self,
        rows: usize,
        batch: usize,
        tokens: impl Fn(usize) -> usize,
    ) -> Vec<usize> {
        match self.sampling {
            Sampling::GroupByLength => {
                let lengths: Vec<usize> = (0..rows).map(tokens).collect();
                grouped_by_length(&lengths, batch, self.seed)
            }
            Sampling::Random | Sampling::Sequential => (0..rows).collect(),
        }
    }

    /// Rows of an epoch.
    pub fn rows_an_epoch(&self) -> usize {
        self.rows.min(self.micro_batches * self.micro_batch)
    }

    /// Whether every epoch has the rows in the same order.
    pub fn has_one_order(&self) -> bool {
        self.sampling == Sampling::Sequential
    }

    /// Micro-batches of the update after `done` updates, as parts of `order`, the order of the rows
    /// in its epoch. In round `k`, rank `r` computes micro-batch `k · ranks + r`.
    pub fn window<'a>(&self, order: &'a [usize], done: u64) -> Vec<&'a [usize]> {
        let first = (done % self.steps_per_epoch) as usize * self.window_len();
        order.chunks(self.micro_batch).skip(first).take(self.window_len()).collect()
    }

    /// Indices of the rows that the run visits, if they are less than a tenth of all rows. Then it
    /// pays to compute the reference log-probs of these rows only. Otherwise `None`: log-probs of
    /// all rows can be shared with runs of other seeds.
    pub fn few_rows(&self) -> Option<Vec<usize>> {
        let visited = usize::try_from(self.total).ok()?.checked_mul(self.rows_a_step())?;
        if visited >= self.rows / 10 {
            return None;
        }
        let mut rows = self.order(0);
        rows.truncate(visited);
        rows.sort_unstable();
        Some(rows)
    }

    /// The epoch after `done` updates as a fraction: whole epochs plus the share of micro-batches.
    pub fn epoch_after(&self, done: u64) -> f64 {
        let epoch = done / self.steps_per_epoch;
        let in_epoch = (done % self.steps_per_epoch) as usize * self.window_len();
        epoch as f64 + in_epoch as f64 / self.micro_batches.max(1) as f64
    }

    /// Whether update `done` was the last one of its epoch or of the run.
    fn ends_epoch(&self, done: u64) -> bool {
        done.is_multiple_of(self.steps_per_epoch) || done == self.total
    }

    /// Whether to log after update `done`.
    pub fn logs_after(&self, done: u64) -> bool {
        self.logging.is_due(done, self.ends_epoch(done))
    }

    /// Whether to evaluate after update `done`. As in transformers, also after the last one.
    pub fn evaluates_after(&self, done: u64) -> bool {
        let is_late_enough = match self.evaluation {
            Cadence::EpochEnd => self.eval_delay <= self.epoch_after(done),
            _ => self.eval_delay <= done as f64,
        };
        is_late_enough && self.is_due_or_last(self.evaluation, done)
    }

    /// Whether to write a checkpoint after update `done`. As in transformers, also after the last
    /// one.
    pub fn saves_after(&self, done: u64) -> bool {
        self.is_due_or_last(self.saving, done)
    }

    fn is_due_or_last(&self, cadence: Cadence, done: u64) -> bool {
        let is_last =
            done == self.total && matches!(cadence, Cadence::Steps(_) | Cadence::EpochEnd);
        is_last || cadence.is_due(done, self.ends_epoch(done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Recipe, Stage};
    use std::path::Path;

    fn settings(overrides: &[&str]) -> TrainSettings {
        let text = "model_name_or_path: m\ndataset_name: d\noutput_dir: o\n";
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        Recipe::parse(text, Path::new("r.yaml"), Stage::Dpo, &overrides).unwrap().train
    }

    #[test]
    fn a_short_run_knows_its_few_rows() {
        let settings = settings(&["--per_device_train_batch_size=4", "--max_steps=3"]);
        assert_eq!(StepSchedule::new(&settings, 120, 1).few_rows(), None);
        let schedule = StepSchedule::new(&settings, 130, 1);
        let few = schedule.few_rows().unwrap();
        assert!(few.is_sorted() && few.len() == 12, "{few:?}");
        let order = schedule.order(0);
        for done in 0..3 {
            let rows = schedule.window(&order, done).concat();
            assert!(rows.iter().all(|row| few.binary_search(row).is_ok()), "{rows:?}");
        }
        assert_eq!(
            StepSchedule::new(&settings, 130, 2).few_rows(),
            None,
            "two ranks visit 24 rows"
        );
    }

    #[test]
    fn the_published_zephyr_run_has_5811_steps() {
        let settings = settings(&[
            "--per_device_train_batch_size=2",
            "--num_train_epochs=3",
            "--warmup_ratio=0.1",
        ]);
        let schedule = StepSchedule::new(&settings, 61_966, 16);
        assert_eq!((schedule.steps_per_epoch, schedule.total, schedule.warmup), (1937, 5811, 582));
    }

    #[test]
    fn windows_cover_every_row_once_and_the_last_may_be_short() {
        let settings = settings(&[
            "--per_device_train_batch_size=3",
            "--gradient_accumulation_steps=2",
            "--num_train_epochs=2",
        ]);
        let schedule = StepSchedule::new(&settings, 10, 1);
        assert_eq!((schedule.micro_batches, schedule.steps_per_epoch, schedule.total), (4, 2, 4));
        let order = schedule.order(1);
        let sizes =
            |done| schedule.window(&order, done).iter().map(|m| m.len()).collect::<Vec<_>>();
        assert_eq!(sizes(2), [3, 3]);
        assert_eq!(sizes(3), [3, 1]);
        assert_eq!(schedule.epoch_after(3), 1.5);
        assert_eq!(schedule.epoch_after(4), 2.0);
        assert!(schedule.ends_epoch(4) && !schedule.ends_epoch(3));
    }

    #[test]
    fn a_run_is_evaluated_and_saved_at_its_end() {
        let due = |strategy: &str, max_steps: u64| {
            let of = |key: &str| format!("--{key}_strategy={strategy}");
            let steps = ["logging", "eval", "save"].map(|key| format!("--{key}_steps=10"));
            let overrides: Vec<String> =
                ["logging", "eval", "save"].map(of).into_iter().chain(steps).collect();
            let mut overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let max_steps = format!("--max_steps={max_steps}");
            overrides.push(&max_steps);
            // Two epochs of 16 steps.
            let schedule = StepSchedule::new(&settings(&overrides), 128, 1);
            let at = |is_due: &dyn Fn(u64) -> bool| {
                (1..=schedule.total).filter(|s| is_due(*s)).collect()
            };
            let logs: Vec<u64> = at(&|step| schedule.logs_after(step));
            let evaluations: Vec<u64> = at(&|step| schedule.evaluates_after(step));
            assert_eq!(at(&|step| schedule.saves_after(step)), evaluations);
            (logs, evaluations)
        };
        assert_eq!(due("steps", 25), (vec![10, 20], vec![10, 20, 25]));
        assert_eq!(due("epoch", 25), (vec![16, 25], vec![16, 25]));
        assert_eq!(due("no", 25), (vec![], vec![]));
    }

    #[test]
    fn the_same_rows_a_step_give_the_same_run_on_any_number_of_ranks() {
        let schedule = |ranks: usize| {
            let accumulation = format!("--gradient_accumulation_steps={}", 16 / ranks);
            let settings = settings(&["--per_device_train_batch_size=2", &accumulation]);
            StepSchedule::new(&settings, 1_003, ranks)
        };
        let one = schedule(1);
        let order = one.order(0);
        for other in [2, 4, 16].map(schedule) {
            assert_eq!((other.total, other.warmup), (one.total, one.warmup));
            for done in 0..one.steps_per_epoch {
                assert_eq!(other.window(&order, done), one.window(&order, done));
                assert_eq!(other.epoch_after(done), one.epoch_after(done));
            }
        }
    }

    #[test]
    fn shares_of_a_run_become_steps() {
        assert_eq!(Cadence::new(Every::Steps(0.1), 95), Cadence::Steps(10));
        assert_eq!(Cadence::new(Every::Steps(50.0), 95), Cadence::Steps(50));
        assert!(Cadence::Steps(10).is_due(20, false));
        assert!(!Cadence::EpochEnd.is_due(20, false));
    }
}
