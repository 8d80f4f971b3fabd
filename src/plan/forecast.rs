//! The needs of a run: memory of a rank, traffic between ranks, operations and hours.

#[cfg(test)]
mod tests;

use burn::tensor::DType;

use super::estimate::{Workload, forward_flops};
pub use super::row_size::RowSize;
use super::row_size::has_frozen_reference;
use super::traffic::{Computing, Traffic, exposed_gradients, exposed_weights};
use crate::kernels::{Form, attention};
use crate::model::adapter::LoraConfig;
use crate::model::config::ModelConfig;
use crate::parallel::buckets::{Layout, reduce_dtype};
use crate::recipe::{DeviceChoice, Objective, Recipe, ReferenceKind};
use crate::train::steps::StepSchedule;

/// Model FLOPs utilization (the share of the device's peak rate that training reaches), unless the
/// user gives one.
const USUAL_MFU: f64 = 0.4;
/// Bytes of the host's memory for the program, its threads and its buffers.
const PROGRAM: f64 = 60e6;

/// The hardware of a run, as the user describes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hardware {
    pub ranks: usize,
    /// Memory of one rank's device, in bytes.
    pub device_memory: Option<f64>,
    /// Peak rate of one rank's device, in floating-point operations a second.
    pub flops: Option<f64>,
    /// Bytes a second that one rank sends.
    pub bandwidth: Option<f64>,
    /// Model FLOPs utilization, between 0 and 1.
    pub mfu: Option<f64>,
    /// Training rows, if the data is not on this machine.
    pub rows: Option<usize>,
}

impl Hardware {
    /// Operations a second that one rank reaches; `None` if its peak rate is not given.
    pub fn useful_rate(&self) -> Option<f64> {
        self.flops.map(|flops| flops * self.mfu.unwrap_or(USUAL_MFU))
    }
}

/// A run on some hardware.
pub struct Forecast<'a> {
    pub recipe: &'a Recipe,
    pub config: &'a ModelConfig,
    /// The adapter that is trained; `None` if all weights are.
    pub adapter: Option<&'a LoraConfig>,
    /// Bytes of one number in the model's compute type.
    pub dtype_bytes: usize,
    /// Rows to train on and rows held out.
    pub rows: [usize; 2],
    pub size: RowSize,
    /// The steps of the run, shared among its ranks.
    pub schedule: StepSchedule,
    pub hardware: &'a Hardware,
}

/// Lines of a table: label and value.
type Lines = Vec<(String, String)>;

impl Forecast<'_> {
    fn ranks(&self) -> usize {
        self.schedule.ranks
    }

    fn rows_a_step(&self) -> f64 {
        self.schedule.rows_a_step() as f64
    }

    /// The buckets of weights, and the shard of each bucket that a rank owns.
    pub fn layout(&self) -> Layout {
        self.workload().layout()
    }

    fn has_frozen_reference(&self) -> bool {
        has_frozen_reference(self.recipe)
    }

    /// Whether the reference is in memory, and computes log-probs in every step.
    fn reference_is_resident(&self) -> bool {
        matches!(
            self.recipe.reference_kind(),
            ReferenceKind::Following(_) | ReferenceKind::Resident
        )
    }

    fn is_on_host(&self) -> bool {
        matches!(self.recipe.train.device, DeviceChoice::Cpu | DeviceChoice::CubeCpu)
    }

    /// The form of the operations. The CPU's own form exists for float32 only; the GPU's takes
    /// every type in which a model is trained.
    fn form(&self) -> Form {
        match self.recipe.train.device {
            DeviceChoice::Cpu if self.dtype_bytes == 4 => Form::Flex,
            DeviceChoice::Cuda(_) | DeviceChoice::CubeCpu
                if attention::cube_takes(self.config.head_dim) =>
            {
                Form::Cube
            }
            _ => Form::Composed,
        }
    }

    /// Whether graphs keep the score matrices of attention. LibTorch's own attention for GPUs, which
    /// has no soft cap, keeps none.
    fn keeps_scores(&self) -> bool {
        let is_torch = matches!(self.recipe.train.device, DeviceChoice::TchCuda(_));
        let is_capped = self.config.family.attention_softcap.is_some();
        self.form() == Form::Composed && (!is_torch || is_capped)
    }

    /// The type of the trained weights. The matrices of an adapter are float32.
    fn trained_dtype(&self) -> DType {
        if self.adapter.is_none() && self.dtype_bytes == 2 { DType::BF16 } else { DType::F32 }
    }

    pub(super) fn workload(&self) -> Workload<'_> {
        let Recipe { train, model, .. } = self.recipe;
        let reference = model.ref_model_name_or_path.as_ref();
        Workload {
            config: self.config,
            dtype_bytes: self.dtype_bytes,
            quantization: self.config.quantization.or(model.quantization),
            form: self.form(),
            keeps_scores: self.keeps_scores(),
            ranks: self.ranks(),
            batch: self.size.largest,
            accumulation: train.gradient_accumulation_steps,
            reduce: reduce_dtype(train, self.trained_dtype()),
            gradient_checkpointing: train.gradient_checkpointing,
            upstream_is_known: matches!(self.recipe.objective, Objective::Sft(_)),
            moments: train.optim.running_means(&train.sgd).into_iter().filter(|has| *has).count(),
            reference_is_resident: self.reference_is_resident(),
            evaluation: self.size.evaluated,
            reference_pass: self.size.referenced,
            reference_has_own_weights: reference
                .is_some_and(|name| *name != model.model_name_or_path),
            adapter: self.adapter,
        }
    }

    /// Bytes of the host's memory beside the model: the program, and 4 for each token id.
    pub(super) fn program(&self) -> f64 {
        if self.is_on_host() { PROGRAM + 4.0 * self.size.ids as f64 } else { 0.0 }
    }

    /// The largest memory of a rank at any time, in bytes.
    pub(super) fn peak(&self, run: &Workload) -> f64 {
        run.peak() + self.program()
    }

    /// The memory of a rank: each item in a training step, then evaluation, reference pass and
    /// peak.
    pub fn memory_lines(&self) -> Lines {
        let run = self.workload();
        let memory = run.memory();
        let lines_of = |state: bool| {
            let items = memory.items.iter().filter(move |item| item.is_state == state);
            items.map(|item| (item.name.to_string(), in_bytes(item.bytes)))
        };
        let mut lines: Lines = lines_of(true).collect();
        lines.push(("state together".into(), in_bytes(memory.state())));
        if self.has_frozen_reference() {
            let weights = memory.bytes_of("weights");
            let text = format!(
                "not in memory: its log-probs are computed before training (in memory it would \
                 take {}, state together {})",
                in_bytes(weights),
                in_bytes(memory.state() + weights)
            );
            lines.push(("reference".into(), text));
        }
        lines.extend(lines_of(false));
        if self.is_on_host() {
            lines.push(("program and token ids".into(), in_bytes(self.program())));
        }
        let others = [
            ("evaluation", run.evaluation_peak(), run.evaluation),
            ("reference pass", run.reference_peak(), run.reference_pass),
        ];
        for (name, bytes, batch) in others {
            if let (Some(bytes), Some(batch)) = (bytes, batch) {
                let bytes = in_bytes(bytes + self.program());
                let text = format!("{bytes} together, with {} tokens at a time", batch.tokens);
                lines.push((name.into(), text));
            }
        }
        lines.push(("peak".into(), in_bytes(self.peak(&run))));
        lines
    }

    /// Operations and traffic of a step and, if the device's rate is given, the time of the run.
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
            let traffic = Traffic::of(&run);
            let text = format!(
                "{} ({} of {} gradients, {} of weights)",
                in_bytes(traffic.bytes()),
                in_bytes(traffic.gradients),
                traffic.reduce_name(),
                in_bytes(traffic.weights)
            );
            lines.push(("sent by a rank a step".into(), text));
        }
        lines.extend(self.time_lines(&run, step));
        lines
    }

    /// Times of a step of `step` operations and of the whole run; none if the device's rate is
    /// unknown.
    fn time_lines(&self, run: &Workload, step: f64) -> Lines {
        let Some(flops) = self.hardware.flops else { return Vec::new() };
        let mfu = self.hardware.mfu.unwrap_or(USUAL_MFU);
        let rate = flops * mfu * self.ranks() as f64;
        let computing = step / rate;
        let mut lines = vec![("computing a step".into(), format!("{computing:.2} s"))];
        let mut waiting = 0.0;
        match self.hardware.bandwidth {
            _ if self.ranks() == 1 => {}
            None => lines.push(("sending a step".into(), "unknown; give --bandwidth".into())),
            Some(bandwidth) => {
                let all = Traffic::of(run).bytes() / bandwidth;
                waiting = self.waiting(run, computing, bandwidth);
                lines.push(("sending a step".into(), format!("{all:.2} s")));
                let text = format!(
                    "{:.2} s of it, behind computing; a step waits for {waiting:.2} s",
                    all - waiting
                );
                lines.push(("hidden a step".into(), text));
            }
        }
        let reference = self.reference_flops() / rate;
        let all = self.schedule.total as f64 * (computing + waiting) + reference;
        let text = format!(
            "{} ({} steps, {:.0} % of {} a second a rank{}; evaluations and checkpoints apart)",
            in_hours(all),
            self.schedule.total,
            100.0 * mfu,
            in_flop(flops),
            if reference > 0.0 { ", the reference pass" } else { "" }
        );
        lines.push(("the run".into(), text));
        lines
    }

    /// Seconds that a step waits for data of other ranks. The backward pass hides gradients. On
    /// GPUs the forward pass also hides weights.
    fn waiting(&self, run: &Workload, computing: f64, bandwidth: f64) -> f64 {
        let computing = Computing::of(run, computing, self.passes(run));
        let weights = match self.recipe.train.device.gpu() {
            Some(_) => exposed_weights(run, computing, bandwidth),
            None => Traffic::of(run).weights / bandwidth,
        };
        exposed_gradients(run, computing, bandwidth) + weights
    }

    /// Tokens of a row of the greatest length, and other tokens that each of them attends to.
    fn padded(&self) -> (f64, f64) {
        let length = self.size.length as f64;
        (self.size.sequences as f64 * length, length / 2.0)
    }

    /// The cost of a step in forward passes of its rows. A reference that follows the policy adds
    /// one.
    fn passes(&self, run: &Workload) -> f64 {
        run.forward_passes() + if self.reference_is_resident() { 1.0 } else { 0.0 }
    }

    fn step_flops(&self, passes: f64, tokens: f64, context: f64) -> f64 {
        passes * self.rows_a_step() * forward_flops(self.config, tokens, context)
    }

    /// Operations of all steps: expected ones if the lengths of the rows are known, else an upper
    /// bound.
    pub fn training_flops(&self) -> f64 {
        let (tokens, context) = self.size.mean.unwrap_or_else(|| self.padded());
        let passes = self.passes(&self.workload());
        self.schedule.total as f64 * self.step_flops(passes, tokens, context)
    }

    /// Operations of the reference pass over the rows that the run visits; 0 without a frozen
    /// reference.
    pub fn reference_flops(&self) -> f64 {
        if !self.has_frozen_reference() {
            return 0.0;
        }
        let (tokens, context) = self.size.mean.unwrap_or_else(|| self.padded());
        let train = self.schedule.few_rows().map_or(self.rows[0], |rows| rows.len());
        let rows = (train + self.rows[1]) as f64;
        rows * forward_flops(self.config, tokens, context)
    }
}

/// A number of operations with a readable unit.
pub fn in_flop(flop: f64) -> String {
    let units = [(1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")];
    let (size, unit) = units.into_iter().find(|(size, _)| flop >= *size).unwrap_or((1e6, "MFLOP"));
    format!("{:.2} {unit}", flop / size)
}

/// A time with a readable unit.
pub fn in_hours(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A number of bytes with a readable unit.
pub fn in_bytes(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.2} GB", bytes / 1e9) }
}
