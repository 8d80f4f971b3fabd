//! What a run takes: memory of a rank against the device's, traffic, work, hours. For `favonius plan`.

use super::prepare::Rows;
use super::reference::Wanted;
use super::{quantity, take_value};
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::data::{PreferencePair, SftRow};
use crate::model::config::ModelConfig;
use crate::parallel::buckets::Layout;
use crate::recipe::{DeviceChoice, Objective, Optim, Recipe};
use crate::train::estimate::{BatchSize, Memory, Workload, forward_flops};
use crate::train::steps::StepPlan;

/// Share of a device's operations that is reached, where nobody says.
const USUAL_MFU: f64 = 0.4;
/// The program itself, its threads and buffers, in bytes of the host's memory.
const PROGRAM: f64 = 60e6;
/// The most ranks that are tried when a run does not fit.
const MOST_RANKS: usize = 1024;

/// The hardware, as the command line describes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hardware {
    pub ranks: usize,
    /// Bytes of one rank's device.
    pub device_memory: Option<f64>,
    /// Operations a second of one rank's device.
    pub flops: Option<f64>,
    /// Bytes a second between ranks.
    pub bandwidth: Option<f64>,
    pub mfu: Option<f64>,
    /// Training rows, where the data is not here.
    pub rows: Option<usize>,
}

impl Hardware {
    /// Takes its options out of what stands behind the recipe's name.
    pub fn take(overrides: &mut Vec<String>, ranks: usize) -> anyhow::Result<Self> {
        Ok(Self {
            ranks,
            device_memory: option(overrides, "--device-memory", quantity::bytes)?,
            flops: option(overrides, "--flops", quantity::operations)?,
            bandwidth: option(overrides, "--bandwidth", quantity::bytes_a_second)?,
            mfu: option(overrides, "--mfu", quantity::share)?,
            rows: option(overrides, "--rows", quantity::count)?,
        })
    }

    /// Operations a second that one rank reaches, where its rate is given.
    pub fn useful_rate(&self) -> Option<f64> {
        self.flops.map(|flops| flops * self.mfu.unwrap_or(USUAL_MFU))
    }
}

/// The value of `--key=value` or `--key value`, which is taken out.
pub fn option<T>(
    overrides: &mut Vec<String>,
    key: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> anyhow::Result<Option<T>> {
    let Some(value) = take_value(overrides, key) else { return Ok(None) };
    match read(&value) {
        Ok(value) => Ok(Some(value)),
        Err(wanted) => anyhow::bail!("`{key}` needs {wanted}, not `{value}`"),
    }
}

/// Sequences of a row, and what is known of their lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSize {
    /// Two of a preference pair.
    pub sequences: usize,
    /// Tokens that no sequence exceeds.
    pub length: usize,
    /// Tokens that the model computes for a training row on average, and how many others each of them sees;
    /// `None` where nobody knows.
    pub mean: Option<(f64, f64)>,
    /// The largest micro-batch of a rank.
    pub largest: BatchSize,
    /// Token ids of all rows, which lie in the host's memory; 0 where they are not counted.
    pub ids: usize,
}

impl RowSize {
    /// Of rows that nobody has seen. `tokens` is the mean of a sequence where it is known.
    pub fn unseen(recipe: &Recipe, config: &ModelConfig, tokens: Option<f64>) -> Self {
        let sequences = sequences(&recipe.objective);
        let length = longest(recipe, config);
        let micro_batch = recipe.train.per_device_train_batch_size;
        let budget = recipe.train.max_tokens_per_microbatch;
        let at_once =
            budget.map_or(micro_batch, |most| micro_batch.min(most / (sequences * length)));
        let at_once = at_once.max(1);
        let packed = matches!(&recipe.objective, Objective::Sft(sft) if sft.packing);
        let tokens = match packed {
            true => Some(length as f64),
            false => tokens.map(|tokens| tokens.min(length as f64)),
        };
        Self {
            sequences,
            length,
            mean: tokens.map(|tokens| (tokens * sequences as f64, tokens / 2.0)),
            largest: BatchSize::padded(at_once * sequences, length),
            ids: 0,
        }
    }

    /// Of rows that are here.
    pub fn counted(recipe: &Recipe, config: &ModelConfig, rows: &Rows, plan: &StepPlan) -> Self {
        let sizes: Vec<BatchSize> = match rows {
            Rows::Sft(rows) => rows.train.iter().map(size_of_row).collect(),
            Rows::Pairs(pairs) => {
                let with_prompts = matches!(recipe.objective, Objective::Orpo(_));
                pairs.train.iter().map(|pair| size_of_pair(pair, with_prompts)).collect()
            }
            Rows::Labelled(rows) => {
                rows.pairs.train.iter().map(|pair| size_of_pair(pair, false)).collect()
            }
        };
        let tokens: usize = sizes.iter().map(|size| size.tokens).sum();
        let scores: usize = sizes.iter().map(|size| size.scores).sum();
        let count = sizes.len().max(1) as f64;
        Self {
            sequences: sequences(&recipe.objective),
            length: longest(recipe, config).min(rows.longest()),
            // A token sees about half of the keys of its score matrix.
            mean: Some((tokens as f64 / count, scores as f64 / tokens.max(1) as f64 / 2.0)),
            largest: largest_part(&sizes, plan, recipe.train.max_tokens_per_microbatch),
            ids: tokens,
        }
    }
}

fn size_of_row(row: &SftRow) -> BatchSize {
    BatchSize::of(&RaggedBatch::sft([row]))
}

fn size_of_pair(pair: &PreferencePair, with_prompts: bool) -> BatchSize {
    BatchSize::of(&match with_prompts {
        true => RaggedBatch::preferences_with_prompts([pair]),
        false => RaggedBatch::preferences([pair]),
    })
}

/// Goes through all steps of the run in their order; a micro-batch beyond the `budget` of tokens is computed in
/// parts.
fn largest_part(sizes: &[BatchSize], plan: &StepPlan, budget: Option<usize>) -> BatchSize {
    let mut largest = BatchSize::default();
    let mut order = (u64::MAX, Vec::new());
    for done in 0..plan.total {
        let epoch = plan.epoch_of(done);
        if order.0 != epoch {
            order = (epoch, plan.order(epoch));
        }
        let window = plan.window(&order.1, done);
        let most = budget.unwrap_or(usize::MAX);
        let parts =
            window.iter().flat_map(|rows| within_budget(rows, most, |row| sizes[*row].tokens));
        for rows in parts {
            let size = rows.iter().fold(BatchSize::default(), |sum, row| sum + sizes[*row]);
            if size.tokens > largest.tokens {
                largest = size;
            }
        }
    }
    largest
}

/// Sequences of a row: a labelled response comes with a mismatched one where there is a KL to estimate.
fn sequences(objective: &Objective) -> usize {
    match objective {
        Objective::Sft(_) => 1,
        Objective::Kto(kto) if !kto.loss_type.has_kl() => 1,
        _ => 2,
    }
}

fn longest(recipe: &Recipe, config: &ModelConfig) -> usize {
    let limit = match &recipe.objective {
        Objective::Sft(sft) => sft.max_length,
        other => other.lengths().and_then(|lengths| lengths.max_length),
    };
    limit.unwrap_or(config.max_position_embeddings).min(config.max_position_embeddings)
}

/// A run on some hardware.
pub struct Forecast<'a> {
    pub recipe: &'a Recipe,
    pub config: &'a ModelConfig,
    /// Bytes of a number in which the model computes.
    pub width: usize,
    pub rows: [usize; 2],
    pub size: RowSize,
    /// Steps on [`Hardware::ranks`].
    pub plan: StepPlan,
    pub hardware: &'a Hardware,
}

type Lines = Vec<(String, String)>;

impl Forecast<'_> {
    fn ranks(&self) -> usize {
        self.plan.ranks
    }

    fn rows_a_step(&self) -> f64 {
        self.plan.rows_a_step() as f64
    }

    /// Who owns what.
    pub fn layout(&self) -> Layout {
        self.workload().layout()
    }

    /// A frozen reference: one pass over the rows before training, then it is gone.
    fn asks_once(&self) -> bool {
        matches!(Wanted::of(&self.recipe.objective), Wanted::Logps(_))
    }

    /// A reference that follows the policy.
    fn asks_at_every_step(&self) -> bool {
        matches!(Wanted::of(&self.recipe.objective), Wanted::Following(_))
    }

    fn is_on_host(&self) -> bool {
        self.recipe.train.device == DeviceChoice::Cpu
    }

    fn workload(&self) -> Workload<'_> {
        let train = &self.recipe.train;
        Workload {
            config: self.config,
            width: self.width,
            fused: self.is_on_host() && self.width == 4,
            ranks: self.ranks(),
            batch: self.size.largest,
            accumulation: train.gradient_accumulation_steps,
            gradient_checkpointing: train.gradient_checkpointing,
            upstream_is_known: matches!(self.recipe.objective, Objective::Sft(_)),
            moments: if train.optim == Optim::RmsProp { 1 } else { 2 },
            reference_is_resident: self.asks_at_every_step(),
        }
    }

    /// What lies in the host's memory beside the model.
    fn program(&self) -> f64 {
        if self.is_on_host() { PROGRAM + 4.0 * self.size.ids as f64 } else { 0.0 }
    }

    fn peak(&self, memory: &Memory) -> f64 {
        memory.peak() + self.program()
    }

    /// Memory of a rank by part.
    pub fn memory_lines(&self) -> Lines {
        let run = self.workload();
        let memory = run.memory();
        let of = |state: bool| {
            let parts = memory.parts.iter().filter(move |part| part.is_state == state);
            parts.map(|part| (part.name.to_string(), in_bytes(part.bytes)))
        };
        let mut lines: Lines = of(true).collect();
        lines.push(("state together".into(), in_bytes(memory.state())));
        if self.asks_once() {
            let weights = memory.of("weights");
            let text = format!(
                "gone by then: log-probs are computed first (a resident one: {}, {} together)",
                in_bytes(weights),
                in_bytes(memory.state() + weights)
            );
            lines.push(("reference".into(), text));
        }
        lines.extend(of(false));
        if self.is_on_host() {
            lines.push(("program and token ids".into(), in_bytes(self.program())));
        }
        lines.push(("peak".into(), in_bytes(self.peak(&memory))));
        lines
    }

    /// Operations, bytes and hours.
    pub fn work_lines(&self) -> Lines {
        let run = self.workload();
        let passes = self.passes(&run);
        let (tokens, context) = self.padded();
        let padded = self.step_flops(passes, tokens, context);
        let mut lines = vec![(
            "a step at most".into(),
            format!(
                "{} ({passes:.2} forward passes of {} rows at {} tokens a sequence)",
                in_flop(padded),
                self.rows_a_step(),
                self.size.length
            ),
        )];
        let mut step = padded;
        if let Some((tokens, context)) = self.size.mean {
            step = self.step_flops(passes, tokens, context);
            let text = format!("{} (rows of {tokens:.0} tokens on average)", in_flop(step));
            lines.push(("a step, expected".into(), text));
        }
        if self.reference_flops() > 0.0 {
            let text = format!("{} before training", in_flop(self.reference_flops()));
            lines.push(("reference, once".into(), text));
        }
        if self.ranks() > 1 {
            let text = format!("{} (float32 gradients, weights)", in_bytes(run.step_bytes()));
            lines.push(("sent by a rank a step".into(), text));
        }
        lines.extend(self.time_lines(&run, step));
        lines
    }

    fn time_lines(&self, run: &Workload, step: f64) -> Lines {
        let Some(flops) = self.hardware.flops else { return Vec::new() };
        let mfu = self.hardware.mfu.unwrap_or(USUAL_MFU);
        let rate = flops * mfu * self.ranks() as f64;
        let computing = step / rate;
        let mut lines = vec![("computing a step".into(), format!("{computing:.2} s"))];
        let mut sending = 0.0;
        if self.ranks() > 1 {
            let text = match self.hardware.bandwidth {
                Some(bandwidth) => {
                    sending = run.step_bytes() / bandwidth;
                    format!("{sending:.2} s")
                }
                None => "not known: give --bandwidth".into(),
            };
            lines.push(("sending a step".into(), text));
        }
        let reference = self.reference_flops() / rate;
        let all = self.plan.total as f64 * (computing + sending) + reference;
        let text = format!(
            "{} ({} steps, {:.0} % of {} a second a rank{}; evaluations and checkpoints apart)",
            in_hours(all),
            self.plan.total,
            100.0 * mfu,
            in_flop(flops),
            if reference > 0.0 { ", the reference pass" } else { "" }
        );
        lines.push(("the run".into(), text));
        lines
    }

    /// Tokens of a padded row, and what each sees.
    fn padded(&self) -> (f64, f64) {
        let length = self.size.length as f64;
        (self.size.sequences as f64 * length, length / 2.0)
    }

    fn passes(&self, run: &Workload) -> f64 {
        run.forwards() + if self.asks_at_every_step() { 1.0 } else { 0.0 }
    }

    fn step_flops(&self, passes: f64, tokens: f64, context: f64) -> f64 {
        passes * self.rows_a_step() * forward_flops(self.config, tokens, context)
    }

    /// Operations of all steps, expected where the rows' lengths are known, else at most.
    pub fn training_flops(&self) -> f64 {
        let (tokens, context) = self.size.mean.unwrap_or_else(|| self.padded());
        let passes = self.passes(&self.workload());
        self.plan.total as f64 * self.step_flops(passes, tokens, context)
    }

    /// Operations of the reference pass over the rows that the run asks for.
    pub fn reference_flops(&self) -> f64 {
        let (tokens, context) = self.size.mean.unwrap_or_else(|| self.padded());
        let train = self.plan.few_rows().map_or(self.rows[0], |rows| rows.len());
        let rows = (train + self.rows[1]) as f64;
        if self.asks_once() { rows * forward_flops(self.config, tokens, context) } else { 0.0 }
    }

    /// Whether the run fits, and what would make it fit; `None` where the device's memory is not known.
    pub fn verdict(&self) -> Option<String> {
        let limit = self.hardware.device_memory?;
        let run = self.workload();
        let peak = self.peak(&run.memory());
        let (needs, has) = (in_bytes(peak), in_bytes(limit));
        if peak <= limit {
            let share = 100.0 * peak / limit;
            return Some(format!("it fits: {needs} of {has} a rank ({share:.0} %)"));
        }
        let change = match self.first_change(&run, limit) {
            Some((change, peak)) => format!("with {change} it would, in {}", in_bytes(peak)),
            None => "no number of ranks or smaller batch helps: a smaller model would".into(),
        };
        Some(format!("it does not fit: {needs} of {has} a rank; {change}"))
    }

    /// The first change that leaves the numbers as they are with which the run fits: one by itself, else
    /// one after the other.
    fn first_change(&self, run: &Workload, limit: f64) -> Option<(String, f64)> {
        /// Changes the workload and says how; nothing where it cannot.
        type Change<S> = fn(&S, &mut Workload, f64) -> Option<String>;
        let changes: [Change<Self>; 3] =
            [Self::checkpointing, Self::smaller_batch, Self::more_ranks];
        let fits = |run: &Workload| self.peak(&run.memory()) <= limit;
        for change in changes {
            let mut changed = run.clone();
            if let Some(text) = change(self, &mut changed, limit)
                && fits(&changed)
            {
                return Some((text, self.peak(&changed.memory())));
            }
        }
        let mut changed = run.clone();
        let mut texts = Vec::new();
        for change in changes {
            texts.extend(change(self, &mut changed, limit));
            if fits(&changed) {
                return Some((texts.join(", "), self.peak(&changed.memory())));
            }
        }
        None
    }

    fn checkpointing(&self, run: &mut Workload, _: f64) -> Option<String> {
        let text = "gradient_checkpointing: true".to_string();
        (!std::mem::replace(&mut run.gradient_checkpointing, true)).then_some(text)
    }

    fn smaller_batch(&self, run: &mut Workload, limit: f64) -> Option<String> {
        let (mut rows, before) = (self.recipe.train.per_device_train_batch_size, run.accumulation);
        while rows.is_multiple_of(2) && self.peak(&run.memory()) > limit {
            rows /= 2;
            run.accumulation *= 2;
            run.batch = run.batch.halved();
        }
        let text = format!(
            "per_device_train_batch_size: {rows} and gradient_accumulation_steps: {}",
            run.accumulation
        );
        (run.accumulation > before).then_some(text)
    }

    /// Rows a step stay what they are as long as there are micro-batches to share.
    fn more_ranks(&self, run: &mut Workload, limit: f64) -> Option<String> {
        let before = (run.ranks, run.accumulation);
        while run.ranks < MOST_RANKS && self.peak(&run.memory()) > limit {
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

/// Operations as a person reads them.
pub fn in_flop(flop: f64) -> String {
    let units = [(1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")];
    let (size, unit) = units.into_iter().find(|(size, _)| flop >= *size).unwrap_or((1e6, "MFLOP"));
    format!("{:.2} {unit}", flop / size)
}

/// A time as a person reads it.
pub fn in_hours(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Bytes as a person reads them.
pub fn in_bytes(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.2} GB", bytes / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_out_and_wrong_ones_named() {
        let mut given: Vec<String> =
            ["--beta=0.1", "--device-memory=80GB", "--flops", "312e12"].map(String::from).into();
        let hardware = Hardware::take(&mut given, 16).unwrap();
        assert_eq!(given, ["--beta=0.1"]);
        assert_eq!((hardware.ranks, hardware.device_memory), (16, Some(80e9)));
        assert_eq!((hardware.flops, hardware.mfu), (Some(312e12), None));
        for (wrong, word) in [
            ("--rows=0", "whole number"),
            ("--device-memory=lots", "80GB"),
            ("--mfu=40", "share"),
            ("--flops", "312e12"),
        ] {
            let error = Hardware::take(&mut vec![wrong.to_string()], 1).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(in_bytes(2.5e9), "2.50 GB");
        assert_eq!(in_flop(4.84e15), "4.84 PFLOP");
        assert_eq!((in_hours(60.0), in_hours(3600.0)), ("60 s".into(), "60 min".into()));
        assert_eq!(in_hours(14040.0), "3.9 h");
    }
}
