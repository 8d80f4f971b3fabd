//! What a run takes: memory of a rank against the device's, traffic, work, hours. For `favonius plan`.

use super::prepare::Rows;
use super::reference::Wanted;
use super::{quantity, take_value};
use crate::data::ragged::{RaggedBatch, within_budget};
use crate::data::{PreferencePair, SftRow, Splits};
use crate::model::config::ModelConfig;
use crate::objective::reference::TOKENS_A_BATCH;
use crate::parallel::buckets::Layout;
use crate::recipe::{DeviceChoice, Every, Objective, Optim, Recipe};
use crate::train::estimate::{BatchSize, Workload, forward_flops};
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
    /// The largest batch of an evaluation, where the run evaluates.
    pub evaluated: Option<BatchSize>,
    /// The largest batch of the pass over a frozen reference, where there is one.
    pub referenced: Option<BatchSize>,
    /// Token ids of all rows, which lie in the host's memory; 0 where they are not counted.
    pub ids: usize,
}

impl RowSize {
    /// Of rows that nobody has seen. `tokens` is the mean of a sequence where it is known.
    pub fn unseen(recipe: &Recipe, config: &ModelConfig, tokens: Option<f64>) -> Self {
        let sequences = sequences(&recipe.objective);
        let length = longest(recipe, config);
        let train = &recipe.train;
        let at_once = |rows: usize| {
            let most = train.max_tokens_per_microbatch;
            let rows = most.map_or(rows, |most| rows.min(most / (sequences * length)));
            BatchSize::padded(rows.max(1) * sequences, length)
        };
        // As many short rows as fit, or one that is longer than that.
        let reference_tokens = TOKENS_A_BATCH.max(sequences * length);
        let packed = matches!(&recipe.objective, Objective::Sft(sft) if sft.packing);
        let tokens = match packed {
            true => Some(length as f64),
            false => tokens.map(|tokens| tokens.min(length as f64)),
        };
        Self {
            sequences,
            length,
            mean: tokens.map(|tokens| (tokens * sequences as f64, tokens / 2.0)),
            largest: at_once(train.per_device_train_batch_size),
            evaluated: evaluates(recipe).then(|| at_once(train.per_device_eval_batch_size)),
            referenced: asks_once(&recipe.objective).then(|| BatchSize {
                tokens: reference_tokens,
                scored: reference_tokens,
                scores: reference_tokens * length,
            }),
            ids: 0,
        }
    }

    /// Of rows that are here.
    pub fn counted(recipe: &Recipe, config: &ModelConfig, rows: &Rows, plan: &StepPlan) -> Self {
        let with_prompts = matches!(recipe.objective, Objective::Orpo(_));
        let of_pairs = |pairs: &Splits<PreferencePair>| {
            let size = |pair: &PreferencePair| size_of_pair(pair, with_prompts);
            [&pairs.train, &pairs.test].map(|rows| rows.iter().map(size).collect())
        };
        let [sizes, held_out]: [Vec<BatchSize>; 2] = match rows {
            Rows::Sft(rows) => {
                [&rows.train, &rows.test].map(|rows| rows.iter().map(size_of_row).collect())
            }
            Rows::Pairs(pairs) => of_pairs(pairs),
            Rows::Labelled(rows) => of_pairs(&rows.pairs),
        };
        let most = recipe.train.max_tokens_per_microbatch;
        let evaluated = evaluates(recipe).then(|| {
            let batches = held_out.chunks(recipe.train.per_device_eval_batch_size);
            largest(batches.flat_map(|rows| divided(rows, most.unwrap_or(usize::MAX))))
        });
        let referenced = asks_once(&recipe.objective).then(|| {
            let few = plan.few_rows().map(|rows| rows.into_iter().map(|row| sizes[row]).collect());
            let train: Vec<BatchSize> = few.unwrap_or_else(|| sizes.clone());
            let sets = [train.as_slice(), held_out.as_slice()];
            largest(sets.into_iter().flat_map(|rows| divided(rows, TOKENS_A_BATCH)))
        });
        let tokens: usize = sizes.iter().map(|size| size.tokens).sum();
        let scores: usize = sizes.iter().map(|size| size.scores).sum();
        let count = sizes.len().max(1) as f64;
        Self {
            sequences: sequences(&recipe.objective),
            length: longest(recipe, config).min(rows.longest()),
            // A token sees about half of the keys of its score matrix.
            mean: Some((tokens as f64 / count, scores as f64 / tokens.max(1) as f64 / 2.0)),
            largest: largest_part(&sizes, plan, most),
            evaluated,
            referenced,
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

/// Batches of at most `most` tokens, as these rows are divided into them.
fn divided(rows: &[BatchSize], most: usize) -> Vec<&[BatchSize]> {
    within_budget(rows, most, |row| row.tokens)
}

/// The batch with most tokens.
fn largest<'a>(batches: impl Iterator<Item = &'a [BatchSize]>) -> BatchSize {
    let sum = |rows: &[BatchSize]| rows.iter().fold(BatchSize::default(), |sum, row| sum + *row);
    batches.map(sum).max_by_key(|size| size.tokens).unwrap_or_default()
}

/// Whether a run evaluates at any time.
fn evaluates(recipe: &Recipe) -> bool {
    recipe.train.eval != Every::No || recipe.train.do_eval || recipe.train.eval_on_start
}

/// Whether there is a frozen reference: one pass over the rows before training, then it is gone.
fn asks_once(objective: &Objective) -> bool {
    matches!(Wanted::of(objective), Wanted::Logps(_))
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

    fn asks_once(&self) -> bool {
        asks_once(&self.recipe.objective)
    }

    /// A reference that follows the policy.
    fn asks_at_every_step(&self) -> bool {
        matches!(Wanted::of(&self.recipe.objective), Wanted::Following(_))
    }

    fn is_on_host(&self) -> bool {
        self.recipe.train.device == DeviceChoice::Cpu
    }

    fn workload(&self) -> Workload<'_> {
        let Recipe { train, model, .. } = self.recipe;
        let reference = model.ref_model_name_or_path.as_ref();
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
            evaluation: self.size.evaluated,
            reference_pass: self.size.referenced,
            reference_is_another: reference.is_some_and(|name| *name != model.model_name_or_path),
        }
    }

    /// What lies in the host's memory beside the model.
    fn program(&self) -> f64 {
        if self.is_on_host() { PROGRAM + 4.0 * self.size.ids as f64 } else { 0.0 }
    }

    /// The largest memory of a rank at any time.
    fn peak(&self, run: &Workload) -> f64 {
        run.peak() + self.program()
    }

    /// Memory of a rank by part in a step, and where it is larger at other times.
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
        let moments = [
            ("evaluation", run.evaluation_peak(), run.evaluation),
            ("reference pass", run.reference_peak(), run.reference_pass),
        ];
        for (name, bytes, batch) in moments {
            if let (Some(bytes), Some(batch)) = (bytes, batch) {
                let bytes = in_bytes(bytes + self.program());
                let text = format!("{bytes} together, with {} tokens at a time", batch.tokens);
                lines.push((name.into(), text));
            }
        }
        lines.push(("peak".into(), in_bytes(self.peak(&run))));
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

    fn trial(&self) -> Trial<'_> {
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
    fn smaller_batch(&self, trial: &mut Trial, limit: f64) -> Option<String> {
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
    fn more_ranks(&self, trial: &mut Trial, limit: f64) -> Option<String> {
        let most = MOST_RANKS.min(self.plan.rows.div_ceil(trial.rows));
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

/// A run with some of its settings changed.
#[derive(Debug, Clone)]
struct Trial<'a> {
    run: Workload<'a>,
    /// Rows of a micro-batch and of an evaluation's batch.
    rows: usize,
    eval_rows: usize,
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
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::recipe::Stage;

    /// A small model, next to whose state a batch is large.
    fn config() -> ModelConfig {
        let raw = json!({"model_type": "mistral", "vocab_size": 1000, "hidden_size": 256,
            "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0});
        ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
    }

    fn recipe(stage: Stage, more: &[&str]) -> Recipe {
        let text = "model_name_or_path: m\ndataset_name: d\nmax_length: 512\n";
        let more: Vec<String> = more.iter().map(|setting| format!("--{setting}")).collect();
        Recipe::parse(text, Path::new("r.yaml"), stage, &more).unwrap()
    }

    /// A run over 100 rows on one rank.
    fn forecast<'a>(
        recipe: &'a Recipe,
        config: &'a ModelConfig,
        hardware: &'a Hardware,
    ) -> Forecast<'a> {
        Forecast {
            recipe,
            config,
            width: 4,
            rows: [100, 100],
            size: RowSize::unseen(recipe, config, None),
            plan: StepPlan::new(&recipe.train, 100, 1),
            hardware,
        }
    }

    fn peak(recipe: &Recipe) -> f64 {
        let (config, hardware) = (config(), Hardware::default());
        let run = forecast(recipe, &config, &hardware);
        run.peak(&run.workload())
    }

    fn verdict(recipe: &Recipe, device_memory: f64) -> String {
        let hardware = Hardware { device_memory: Some(device_memory), ..Hardware::default() };
        forecast(recipe, &config(), &hardware).verdict().unwrap()
    }

    #[test]
    fn a_micro_batch_is_not_made_smaller_where_its_rows_meet() {
        let of = |stage, loss: &str| {
            let loss = format!("loss_type={loss}");
            let recipe = recipe(stage, &["per_device_train_batch_size=8", &loss]);
            verdict(&recipe, 0.9 * peak(&recipe))
        };
        for (stage, loss) in
            [(Stage::Dpo, "sigmoid"), (Stage::Dpo, "bco_pair"), (Stage::Kto, "apo_zero_unpaired")]
        {
            let smaller =
                "with per_device_train_batch_size: 4 and gradient_accumulation_steps: 2 it would";
            let said = of(stage, loss);
            assert!(said.contains(smaller), "{loss}: {said}");
        }
        for (stage, loss) in [
            (Stage::Dpo, "aot"),
            (Stage::Dpo, "aot_unpaired"),
            (Stage::Dpo, "kto_pair"),
            (Stage::Kto, "kto"),
        ] {
            let said = of(stage, loss);
            assert!(said.contains("a smaller batch would change the loss ("), "{loss}: {said}");
            assert!(!said.contains("batch_size"), "{loss}: {said}");
        }
    }

    #[test]
    fn no_rank_is_proposed_that_would_have_no_row() {
        let recipe = recipe(Stage::Dpo, &["per_device_train_batch_size=8"]);
        let (config, hardware) = (config(), Hardware::default());
        let run = forecast(&recipe, &config, &hardware);
        // 100 rows are 13 micro-batches of 8 rows.
        let mut trial = run.trial();
        let said = run.more_ranks(&mut trial, 0.0).unwrap();
        assert_eq!((said.as_str(), trial.run.ranks), ("--ranks 8 (8 × as many rows a step)", 8));
        // Smaller ones are more.
        let mut trial = run.trial();
        run.smaller_batch(&mut trial, 0.0).unwrap();
        assert_eq!((trial.rows, trial.run.accumulation), (1, 8));
        run.more_ranks(&mut trial, 0.0).unwrap();
        assert_eq!(trial.run.ranks, 64);
    }

    #[test]
    fn an_evaluation_must_fit_too() {
        let mut settings = vec!["per_device_train_batch_size=1"];
        let alone = peak(&recipe(Stage::Dpo, &settings));
        settings.extend(["eval_strategy=epoch", "per_device_eval_batch_size=64"]);
        let with = recipe(Stage::Dpo, &settings);
        assert!(peak(&with) > 2.0 * alone, "{:e} {alone:e}", peak(&with));
        let said = verdict(&with, 1.5 * alone);
        assert!(said.contains("with per_device_eval_batch_size: "), "{said}");
        // In parts it takes what a row takes.
        settings.push("max_tokens_per_microbatch=1024");
        assert_eq!(peak(&recipe(Stage::Dpo, &settings)), alone);
    }

    #[test]
    fn rows_that_are_here_are_measured_as_they_are_batched() {
        use crate::data::RowReport;
        let pair = |prompt: usize| PreferencePair {
            prompt: vec![1; prompt],
            chosen: vec![2; 3],
            rejected: vec![3; 2],
        };
        let pairs = |rows: &[usize]| rows.iter().map(|prompt| pair(*prompt)).collect();
        let rows = Rows::Pairs(Splits {
            train: pairs(&[10, 10, 10, 10]),
            test: pairs(&[5, 2_000, 2_000, 5, 5]),
            train_report: RowReport::default(),
            test_report: RowReport::default(),
            fingerprint: [0; 32],
        });
        let size = |more: &[&str]| {
            let settings = [&["per_device_train_batch_size=2"][..], more].concat();
            let recipe = recipe(Stage::Dpo, &settings);
            let plan = StepPlan::new(&recipe.train, 4, 1);
            let size = RowSize::counted(&recipe, &config(), &rows, &plan);
            let tokens = |size: Option<BatchSize>| size.map(|size| size.tokens);
            (size.largest.tokens, tokens(size.evaluated), tokens(size.referenced))
        };
        // All test rows together are within the reference pass's 4096 tokens.
        assert_eq!(size(&[]), (30, None, Some(4_040)));
        let evaluation = ["eval_strategy=epoch", "per_device_eval_batch_size=2"];
        assert_eq!(size(&evaluation), (30, Some(2_015), Some(4_040)));
        let free = [&evaluation[..], &["reference_free=true"]].concat();
        assert_eq!(size(&free), (30, Some(2_015), None));
        let divided = [&evaluation[..], &["max_tokens_per_microbatch=20"]].concat();
        assert_eq!(size(&divided), (15, Some(2_005), Some(4_040)));
    }

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
