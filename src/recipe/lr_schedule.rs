//! `lr_scheduler_type` and `lr_scheduler_kwargs`: the schedules of transformers and the entries
//! that each of them reads.

use serde::{Deserialize, Serialize};

use super::choice::{Choice, choices};
use super::number::{AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE};
use super::reader::Reader;

/// The learning-rate schedule after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Linear,
    Cosine,
    CosineWithRestarts,
    Polynomial,
    Constant,
    ConstantWithWarmup,
    InverseSqrt,
    /// Lower after evaluations that bring no improvement, without warm-up.
    ReduceLrOnPlateau,
    CosineWithMinLr,
    CosineWarmupWithMinLr,
    WarmupStableDecay,
}

choices!(Schedule {
    "linear" => Schedule::Linear, "cosine" => Schedule::Cosine,
    "cosine_with_restarts" => Schedule::CosineWithRestarts,
    "polynomial" => Schedule::Polynomial, "constant" => Schedule::Constant,
    "constant_with_warmup" => Schedule::ConstantWithWarmup,
    "inverse_sqrt" => Schedule::InverseSqrt,
    "reduce_lr_on_plateau" => Schedule::ReduceLrOnPlateau,
    "cosine_with_min_lr" => Schedule::CosineWithMinLr,
    "cosine_warmup_with_min_lr" => Schedule::CosineWarmupWithMinLr,
    "warmup_stable_decay" => Schedule::WarmupStableDecay,
} unsupported ["greedy"]);

impl Schedule {
    /// The value of `lr_scheduler_type`.
    pub fn name(self) -> &'static str {
        self.word()
    }

    /// The entries of `lr_scheduler_kwargs` that this schedule reads.
    pub(super) fn entries(self) -> &'static [&'static str] {
        match self {
            Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::Cosine | Self::CosineWithRestarts => &["num_cycles"],
            Self::Polynomial => &["lr_end", "power"],
            Self::InverseSqrt => &["timescale"],
            Self::ReduceLrOnPlateau => &[
                "mode",
                "factor",
                "patience",
                "threshold",
                "threshold_mode",
                "cooldown",
                "min_lr",
                "eps",
            ],
            Self::CosineWithMinLr => &["min_lr", "min_lr_rate", "num_cycles"],
            Self::CosineWarmupWithMinLr => {
                &["min_lr", "min_lr_rate", "num_cycles", "warmup_lr_rate"]
            }
            Self::WarmupStableDecay => &[
                "num_decay_steps",
                "num_stable_steps",
                "warmup_type",
                "decay_type",
                "min_lr_ratio",
                "num_cycles",
            ],
        }
    }

    /// Whether the schedule needs the lowest learning rate.
    pub(super) fn needs_min_lr(self) -> bool {
        matches!(self, Self::CosineWithMinLr | Self::CosineWarmupWithMinLr)
    }
}

/// The form of a rise or fall in `warmup_stable_decay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    Linear,
    Cosine,
    /// `1 - √`.
    OneMinusSqrt,
}

choices!(Curve {
    "linear" => Curve::Linear, "cosine" => Curve::Cosine, "1-sqrt" => Curve::OneMinusSqrt,
} unsupported []);

/// Whether a lower or a higher value of a metric is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Min,
    Max,
}

choices!(Better { "min" => Better::Min, "max" => Better::Max } unsupported []);

/// How an improvement is measured: as a share of the best value, or as a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    Rel,
    Abs,
}

choices!(ThresholdMode {
    "rel" => ThresholdMode::Rel, "abs" => ThresholdMode::Abs,
} unsupported []);

/// Key `lr_scheduler_kwargs`: only the entries that the chosen schedule reads may be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LrSchedulerKwargs {
    /// Schedules with a lowest learning rate: this rate.
    pub min_lr: Option<f64>,
    /// Schedules with a lowest learning rate: this rate as a share of the peak.
    pub min_lr_rate: Option<f64>,
    /// Cosines: the number of waves; 0.5, the default, decays once from the peak to the end.
    /// `cosine_with_restarts`: the number of decays, 1 by default.
    pub num_cycles: Option<f64>,
    /// `inverse_sqrt`: the time scale in steps; `None` is the number of warm-up steps.
    pub timescale: Option<f64>,
    /// `polynomial`: the learning rate at the end; `None` is 1e-7.
    pub lr_end: Option<f64>,
    /// `polynomial`: the exponent; `None` is 1.
    pub power: Option<f64>,
    /// `cosine_warmup_with_min_lr`: the first learning rate as a share of the peak; `None` is one
    /// part of the warm-up steps.
    pub warmup_lr_rate: Option<f64>,
    /// `warmup_stable_decay`: the steps of the decay.
    pub num_decay_steps: Option<usize>,
    /// `warmup_stable_decay`: the steps at the peak; `None` is what warm-up and decay leave.
    pub num_stable_steps: Option<usize>,
    /// `warmup_stable_decay`; `None` is linear.
    pub warmup_type: Option<Curve>,
    /// `warmup_stable_decay`; `None` is cosine.
    pub decay_type: Option<Curve>,
    /// `warmup_stable_decay`: the lowest learning rate as a share of the peak; `None` is 0.
    pub min_lr_ratio: Option<f64>,
    /// `reduce_lr_on_plateau`; `None` is min.
    pub mode: Option<Better>,
    /// `reduce_lr_on_plateau`: what multiplies the learning rate; `None` is 0.1.
    pub factor: Option<f64>,
    /// `reduce_lr_on_plateau`: evaluations without improvement that change nothing; `None` is 10.
    pub patience: Option<usize>,
    /// `reduce_lr_on_plateau`: the smallest improvement that counts; `None` is 1e-4.
    pub threshold: Option<f64>,
    /// `reduce_lr_on_plateau`; `None` is rel.
    pub threshold_mode: Option<ThresholdMode>,
    /// `reduce_lr_on_plateau`: evaluations after a reduction that are not counted; `None` is 0.
    pub cooldown: Option<usize>,
    /// `reduce_lr_on_plateau`: a smaller reduction is not made; `None` is 1e-8.
    pub eps: Option<f64>,
}

impl LrSchedulerKwargs {
    /// Reads the key.
    pub(super) fn read(r: &mut Reader) -> Self {
        let Some(entry) = r.take("lr_scheduler_kwargs") else { return Self::default() };
        r.within("lr_scheduler_kwargs", entry.value, |r| Self {
            min_lr: r.optional_float("min_lr", NOT_NEGATIVE),
            min_lr_rate: r.optional_float("min_lr_rate", SHARE),
            num_cycles: r.optional_float("num_cycles", POSITIVE),
            timescale: r.optional_float("timescale", POSITIVE),
            lr_end: r.optional_float("lr_end", NOT_NEGATIVE),
            power: r.optional_float("power", NOT_NEGATIVE),
            warmup_lr_rate: r.optional_float("warmup_lr_rate", SHARE),
            num_decay_steps: r.optional_count("num_decay_steps", AT_LEAST_1),
            num_stable_steps: r.optional_count("num_stable_steps", NOT_NEGATIVE),
            warmup_type: r.optional_choice("warmup_type"),
            decay_type: r.optional_choice("decay_type"),
            min_lr_ratio: r.optional_float("min_lr_ratio", SHARE),
            mode: r.optional_choice("mode"),
            factor: r.optional_float("factor", BELOW_1),
            patience: r.optional_count("patience", NOT_NEGATIVE),
            threshold: r.optional_float("threshold", NOT_NEGATIVE),
            threshold_mode: r.optional_choice("threshold_mode"),
            cooldown: r.optional_count("cooldown", NOT_NEGATIVE),
            eps: r.optional_float("eps", NOT_NEGATIVE),
        })
    }

    /// The entries that are set, with their values as text.
    pub fn set_entries(&self) -> Vec<(&'static str, String)> {
        let float = |value: Option<f64>| value.map(|value| value.to_string());
        let count = |value: Option<usize>| value.map(|value| value.to_string());
        let word = |value: Option<&str>| value.map(str::to_owned);
        let entries = [
            ("min_lr", float(self.min_lr)),
            ("min_lr_rate", float(self.min_lr_rate)),
            ("num_cycles", float(self.num_cycles)),
            ("timescale", float(self.timescale)),
            ("lr_end", float(self.lr_end)),
            ("power", float(self.power)),
            ("warmup_lr_rate", float(self.warmup_lr_rate)),
            ("num_decay_steps", count(self.num_decay_steps)),
            ("num_stable_steps", count(self.num_stable_steps)),
            ("warmup_type", word(self.warmup_type.map(Curve::word))),
            ("decay_type", word(self.decay_type.map(Curve::word))),
            ("min_lr_ratio", float(self.min_lr_ratio)),
            ("mode", word(self.mode.map(Better::word))),
            ("factor", float(self.factor)),
            ("patience", count(self.patience)),
            ("threshold", float(self.threshold)),
            ("threshold_mode", word(self.threshold_mode.map(ThresholdMode::word))),
            ("cooldown", count(self.cooldown)),
            ("eps", float(self.eps)),
        ];
        entries.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// transformers' default for the end of `polynomial`.
pub const LR_END: f64 = 1e-7;
