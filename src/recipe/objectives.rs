//! The settings of the preference objectives. What each loss computes stands in `crate::objective`.

use serde::{Deserialize, Serialize};

use super::choice::{Choice, choices};

/// The stage's own settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    Sft(SftSettings),
    Dpo(DpoSettings),
    Orpo(OrpoSettings),
    Cpo(CpoSettings),
    Kto(KtoSettings),
}

/// What a recipe's objective asks of its reference.
pub enum Wanted {
    Nothing,
    /// Log-probs of a frozen model, with LD-DPO's α.
    Logps(Option<f64>),
    Following(SyncRefModel),
}

impl Wanted {
    pub fn of(objective: &Objective) -> Self {
        match objective {
            Objective::Sft(_) | Objective::Orpo(_) | Objective::Cpo(_) => Self::Nothing,
            Objective::Dpo(dpo) if dpo.reference_free => Self::Nothing,
            Objective::Dpo(dpo) => match dpo.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Logps(dpo.ld_alpha),
            },
            Objective::Kto(kto) => match kto.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Logps(None),
            },
        }
    }
}

impl Objective {
    /// How long responses may be; `None` for SFT, which has `max_length` alone.
    pub fn lengths(&self) -> Option<&Lengths> {
        match self {
            Objective::Sft(_) => None,
            Objective::Dpo(dpo) => Some(&dpo.lengths),
            Objective::Orpo(orpo) => Some(&orpo.lengths),
            Objective::Cpo(cpo) => Some(&cpo.lengths),
            Objective::Kto(kto) => Some(&kto.lengths),
        }
    }

    /// Why the loss of a micro-batch is not the mean over its rows, if it is not: which rows are in a micro-batch then
    /// decides about its numbers.
    pub fn rows_meet(&self) -> Option<String> {
        match self {
            Objective::Sft(_) => None,
            Objective::Dpo(dpo) => dpo.losses.iter().find_map(|loss| {
                let why = match loss.loss_type {
                    LossType::Aot | LossType::AotUnpaired => "sorts its pairs",
                    LossType::KtoPair => "compares each pair with all others",
                    LossType::Sft => "is a mean over tokens",
                    _ => return None,
                };
                Some(format!("`loss_type: {}` {why}", loss.loss_type.word()))
            }),
            Objective::Orpo(_) => Some("the NLL of ORPO is a mean over tokens".to_owned()),
            Objective::Cpo(cpo) => {
                (cpo.cpo_alpha != 0.0).then(|| "the NLL of CPO is a mean over tokens".to_owned())
            }
            Objective::Kto(kto) => {
                kto.loss_type.has_kl().then(|| "KTO compares each row with all others".to_owned())
            }
        }
    }
}

/// Supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SftSettings {
    /// Tokens a row; `None` is no cut.
    pub max_length: Option<usize>,
    pub packing: bool,
    pub packing_strategy: Packing,
    /// Whether the test rows are packed; as `packing` where the recipe is silent.
    pub eval_packing: bool,
    /// Labels on the completion only; `None` is yes exactly where rows have prompt and completion.
    pub completion_only_loss: Option<bool>,
    /// Labels on assistant turns only.
    pub assistant_only_loss: bool,
    /// The column that holds plain text, for rows without messages.
    pub dataset_text_field: Option<String>,
}

/// How documents are laid into rows of `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Best fit decreasing; a longer document is cut.
    Bfd,
    /// Best fit decreasing; a longer document goes on in a further row.
    BfdSplit,
    /// Joined end to end and cut into blocks.
    Wrapped,
}

choices!(Packing {
    "bfd" => Packing::Bfd, "bfd_split" => Packing::BfdSplit, "wrapped" => Packing::Wrapped,
    also "ffd" => Packing::Bfd,
} unsupported []);

/// How pairs are cut, in tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lengths {
    /// Prompt + response; `None` is no cut.
    pub max_length: Option<usize>,
    /// The prompt; `None` is no cut.
    pub max_prompt_length: Option<usize>,
    /// A response; `None` is no cut.
    pub max_completion_length: Option<usize>,
    pub truncation_mode: Truncation,
}

/// Direct preference optimization and its family.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DpoSettings {
    pub beta: f64,
    /// The losses whose weighted sum is minimised; mostly one.
    pub losses: Vec<WeightedLoss>,
    /// ε, 0 ≤ ε < 0.5: of conservative DPO (`sigmoid`), `robust`, `exo_pair`, `aot`, `aot_unpaired`.
    pub label_smoothing: f64,
    /// What takes the place of the log-ratio in losses of a difference.
    pub f_divergence: FDivergence,
    /// LD-DPO's α: the weight of response tokens beyond the length of the pair's shorter response.
    pub ld_alpha: Option<f64>,
    /// WPO: pairs weigh by how likely the policy itself is to write them.
    pub use_weighting: bool,
    /// Log-probs of the reference count as 0.
    pub reference_free: bool,
    /// τ of `discopop`.
    pub discopop_tau: f64,
    /// TR-DPO: the reference follows the policy.
    pub sync_ref_model: Option<SyncRefModel>,
    pub lengths: Lengths,
    /// As written; log-probs of a frozen reference are always computed first here.
    pub precompute_ref_log_probs: bool,
    /// Over which positions `logits/chosen` and `logits/rejected` are means.
    pub logits_over: LogitsOver,
}

/// One of the losses of a DPO recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WeightedLoss {
    pub loss_type: LossType,
    pub weight: f64,
}

/// A preference loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    Sigmoid,
    Hinge,
    Ipo,
    ExoPair,
    NcaPair,
    Robust,
    BcoPair,
    SppoHard,
    Aot,
    AotUnpaired,
    ApoZero,
    ApoDown,
    Discopop,
    Sft,
    SigmoidNorm,
    KtoPair,
}

choices!(LossType {
    "sigmoid" => LossType::Sigmoid, "hinge" => LossType::Hinge, "ipo" => LossType::Ipo,
    "exo_pair" => LossType::ExoPair, "nca_pair" => LossType::NcaPair, "robust" => LossType::Robust,
    "bco_pair" => LossType::BcoPair, "sppo_hard" => LossType::SppoHard, "aot" => LossType::Aot,
    "aot_unpaired" => LossType::AotUnpaired, "apo_zero" => LossType::ApoZero, "apo_down" => LossType::ApoDown,
    "discopop" => LossType::Discopop, "sft" => LossType::Sft, "sigmoid_norm" => LossType::SigmoidNorm,
    "kto_pair" => LossType::KtoPair, also "aot_pair" => LossType::AotUnpaired,
} unsupported ["cdpo", "orpo", "simpo", "rpo", "kto"]);

impl LossType {
    /// Whether the loss is a function of the difference of the scores, so that an f-divergence may shape them.
    pub fn reads_scores(self) -> bool {
        use LossType::{Discopop, ExoPair, Hinge, Ipo, Robust, Sft, Sigmoid, SigmoidNorm};
        matches!(self, Sigmoid | SigmoidNorm | Hinge | Ipo | ExoPair | Robust | Discopop | Sft)
    }

    /// Whether the loss reads `label_smoothing`.
    pub fn reads_smoothing(self) -> bool {
        use LossType::{Aot, AotUnpaired, ExoPair, Robust, Sigmoid};
        matches!(self, Sigmoid | Robust | ExoPair | Aot | AotUnpaired)
    }
}

/// An f-divergence of the policy from the reference (f-DPO, arXiv 2309.16240).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    ReverseKl,
    ForwardKl,
    JsDivergence,
    /// With its α.
    AlphaDivergence(f64),
}

/// The words of `f_divergence_type`; α stands in a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FDivergenceType {
    ReverseKl,
    ForwardKl,
    JsDivergence,
    AlphaDivergence,
}

choices!(FDivergenceType {
    "reverse_kl" => FDivergenceType::ReverseKl, "forward_kl" => FDivergenceType::ForwardKl,
    "js_divergence" => FDivergenceType::JsDivergence, "alpha_divergence" => FDivergenceType::AlphaDivergence,
    also "FDivergenceType.REVERSE_KL" => FDivergenceType::ReverseKl,
} unsupported []);

/// TR-DPO (arXiv 2404.09656): every `steps` optimizer steps the reference becomes
/// `mixup_alpha · policy + (1 − mixup_alpha) · reference`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SyncRefModel {
    pub mixup_alpha: f64,
    pub steps: u64,
}

/// ORPO (arXiv 2403.07691).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OrpoSettings {
    /// The weight of the odds-ratio loss, λ in the paper.
    pub beta: f64,
    pub lengths: Lengths,
    pub logits_over: LogitsOver,
}

/// CPO (arXiv 2401.08417), SimPO (arXiv 2405.14734), AlphaPO (arXiv 2501.03884).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CpoSettings {
    pub beta: f64,
    pub loss_type: CpoLoss,
    pub label_smoothing: f64,
    /// The weight of the chosen responses' NLL.
    pub cpo_alpha: f64,
    /// SimPO's target margin.
    pub simpo_gamma: f64,
    /// AlphaPO's exponent; 0 is the log-prob itself.
    pub alpha: f64,
    pub lengths: Lengths,
    pub logits_over: LogitsOver,
}

/// A loss without reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    Sigmoid,
    Hinge,
    Ipo,
    Simpo,
}

choices!(CpoLoss {
    "sigmoid" => CpoLoss::Sigmoid, "hinge" => CpoLoss::Hinge, "ipo" => CpoLoss::Ipo, "simpo" => CpoLoss::Simpo,
} unsupported []);

/// KTO (arXiv 2402.01306) and the unpaired APO-zero (arXiv 2408.06266).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KtoSettings {
    pub beta: f64,
    pub loss_type: KtoLoss,
    pub desirable_weight: f64,
    pub undesirable_weight: f64,
    pub sync_ref_model: Option<SyncRefModel>,
    pub lengths: Lengths,
    pub precompute_ref_log_probs: bool,
    pub logits_over: LogitsOver,
}

/// A loss of single responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    Kto,
    ApoZeroUnpaired,
}

impl KtoLoss {
    /// Whether the loss measures log-ratios from an estimate of the KL.
    pub fn has_kl(self) -> bool {
        self == KtoLoss::Kto
    }
}

choices!(KtoLoss {
    "kto" => KtoLoss::Kto, "apo_zero_unpaired" => KtoLoss::ApoZeroUnpaired,
} unsupported ["bco"]);

/// Which end of an overlong sequence is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    KeepStart,
    KeepEnd,
}

choices!(Truncation {
    "keep_start" => Truncation::KeepStart, "keep_end" => Truncation::KeepEnd,
} unsupported []);

/// Key `logits_metric`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogitsOver {
    /// Response positions only (TRL since 0.12).
    Response,
    /// All positions (TRL up to 0.11; what the Zephyr-7B-β card shows).
    All,
}

choices!(LogitsOver { "response" => LogitsOver::Response, "all" => LogitsOver::All } unsupported []);
