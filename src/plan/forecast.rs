//! What a run takes: memory of a rank against the device's, traffic, work, hours. For `favonius plan`.

#[cfg(test)]
mod tests;

use super::estimate::{Workload, forward_flops};
pub use super::row_size::RowSize;
use super::row_size::asks_once;
use crate::kernels::Form;
use crate::model::config::ModelConfig;
use crate::parallel::buckets::Layout;
use crate::recipe::{DeviceChoice, Objective, Optim, Recipe, ReferenceKind};
use crate::train::steps::StepSchedule;

/// Share of a device's operations that is reached, where nobody says.
const USUAL_MFU: f64 = 0.4;
/// The program itself, its threads and buffers, in bytes of the host's memory.
const PROGRAM: f64 = 60e6;

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
    /// Operations a second that one rank reaches, where its rate is given.
    pub fn useful_rate(&self) -> Option<f64> {
        self.flops.map(|flops| flops * self.mfu.unwrap_or(USUAL_MFU))
    }
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
    pub schedule: StepSchedule,
    pub hardware: &'a Hardware,
}

type Lines = Vec<(String, String)>;

impl Forecast<'_> {
    fn ranks(&self) -> usize {
        self.schedule.ranks
    }

    fn rows_a_step(&self) -> f64 {
        self.schedule.rows_a_step() as f64
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
        matches!(ReferenceKind::of(&self.recipe.objective), ReferenceKind::Following(_))
    }

    fn is_on_host(&self) -> bool {
        self.recipe.train.device == DeviceChoice::Cpu
    }

    /// The form of the operations: those of the CPU are float32.
    fn form(&self) -> Form {
        if self.is_on_host() && self.width == 4 { Form::Flex } else { Form::Composed }
    }

    pub(super) fn workload(&self) -> Workload<'_> {
        let Recipe { train, model, .. } = self.recipe;
        let reference = model.ref_model_name_or_path.as_ref();
        Workload {
            config: self.config,
            width: self.width,
            form: self.form(),
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
    pub(super) fn program(&self) -> f64 {
        if self.is_on_host() { PROGRAM + 4.0 * self.size.ids as f64 } else { 0.0 }
    }

    /// The largest memory of a rank at any time.
    pub(super) fn peak(&self, run: &Workload) -> f64 {
        run.peak() + self.program()
    }

    /// Memory of a rank by part in a step, and where it is larger at other times.
    pub fn memory_lines(&self) -> Lines {
        let run = self.workload();
        let memory = run.memory();
        let of = |state: bool| {
            let parts = memory.items.iter().filter(move |part| part.is_state == state);
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
        let all = self.schedule.total as f64 * (computing + sending) + reference;
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
        self.schedule.total as f64 * self.step_flops(passes, tokens, context)
    }

    /// Operations of the reference pass over the rows that the run asks for.
    pub fn reference_flops(&self) -> f64 {
        let (tokens, context) = self.size.mean.unwrap_or_else(|| self.padded());
        let train = self.schedule.few_rows().map_or(self.rows[0], |rows| rows.len());
        let rows = (train + self.rows[1]) as f64;
        if self.asks_once() { rows * forward_flops(self.config, tokens, context) } else { 0.0 }
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
