//! The settings of the objectives. The losses themselves are in `crate::objective`.

use serde::{Deserialize, Serialize};

use super::choice::{Choice, choices};

/// The objective of a recipe with its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    Sft(SftSettings),
    Dpo(DpoSettings),
    Orpo(OrpoSettings),
    Cpo(CpoSettings),
    Tpo(TpoSettings),
    Kto(KtoSettings),
}

/// The reference model that an objective needs.
pub enum ReferenceKind {
    /// No reference.
    None,
    /// A model that does not change. Its log-probs are computed once, before training. Holds the α
    /// of LD-DPO, if it is set.
    Frozen(Option<f64>),
    /// A model that does not change. Its log-probs are computed in each step, because the rows are
    /// not known before.
    Resident,
    /// A model that follows the policy during training (TR-DPO).
    Following(SyncRefModel),
}

impl ReferenceKind {
    pub fn of(objective: &Objective) -> Self {
        match objective {
            Objective::Sft(_) | Objective::Orpo(_) | Objective::Cpo(_) | Objective::Tpo(_) => {
                Self::None
            }
            Objective::Dpo(dpo) if dpo.reference_free => Self::None,
            Objective::Dpo(dpo) => match dpo.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Frozen(dpo.ld_alpha),
            },
            Objective::Kto(kto) => match kto.sync_ref_model {
                Some(sync) => Self::Following(sync),
                None => Self::Frozen(None),
            },
        }
    }
}

impl Objective {
    /// The length limits of the preference objectives; `None` for SFT, which only has `max_length`.
    pub fn lengths(&self) -> Option<&Lengths> {
        match self {
            Objective::Sft(_) => None,
            Objective::Dpo(dpo) => Some(&dpo.lengths),
            Objective::Orpo(orpo) => Some(&orpo.lengths),
            Objective::Cpo(cpo) => Some(&cpo.lengths),
            Objective::Tpo(tpo) => Some(&tpo.lengths),
            Objective::Kto(kto) => Some(&kto.lengths),
        }
    }

    /// Why the loss of a micro-batch is not the mean over its rows, or `None` if it is. If it is
    /// not, splitting a micro-batch would change the loss.
    pub fn rows_meet(&self) -> Option<String> {
        match self {
            Objective::Sft(_) => None,
            Objective::Dpo(dpo) => dpo.losses.iter().find_map(|loss| {
                let why = match loss.loss_type {
                    LossType::Aot | LossType::AotUnpaired => "sorts its pairs",
                    LossType::KtoPair => "compares each pair with all others of its micro-batch",
                    LossType::Sft => "is a mean over tokens",
                    _ => return None,
                };
                Some(format!("`loss_type: {}` {why}", loss.loss_type.word()))
            }),
            Objective::Orpo(_) => Some("the NLL of ORPO is a mean over tokens".to_owned()),
            Objective::Cpo(cpo) => {
                (cpo.cpo_alpha != 0.0).then(|| "the NLL of CPO is a mean over tokens".to_owned())
            }
            Objective::Tpo(tpo) => {
                tpo.has_nll().then(|| "the NLL of TPO is a mean over tokens".to_owned())
            }
            Objective::Kto(kto) => match kto.loss_type {
                KtoLoss::Kto => {
                    Some("KTO compares each row with all others of its micro-batch".to_owned())
                }
                KtoLoss::Bco => Some(
                    "BCO compares each row with the mean reward of the micro-batches so far"
                        .to_owned(),
                ),
                KtoLoss::ApoZeroUnpaired => None,
            },
        }
    }
}

/// Supervised fine-tuning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SftSettings {
    pub loss_type: SftLoss,
    /// Tokens per row; `None` means no limit.
    pub max_length: Option<usize>,
    pub packing: bool,
    pub packing_strategy: Packing,
    /// Whether evaluation rows are packed; defaults to `packing`.
    pub eval_packing: bool,
    /// Compute the loss on the completion only; `None` means yes if rows have a prompt and a
    /// completion.
    pub completion_only_loss: Option<bool>,
    /// Compute the loss on assistant turns only.
    pub assistant_only_loss: bool,
    /// The column with plain text, for rows without messages.
    pub dataset_text_field: Option<String>,
    /// Shuffle documents before packing and rows after it, with the seed of the run. As in TRL,
    /// this orders the rows of the data set; the order of training is another setting.
    pub shuffle_dataset: bool,
    /// ε: the loss is (1−ε) of the cross-entropy of the labels and ε of that of all tokens of the
    /// vocabulary. `loss_type: dft` does not read it.
    pub label_smoothing_factor: f64,
}

/// The loss of supervised fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SftLoss {
    /// Cross-entropy of the labels.
    Nll,
    /// Dynamic fine-tuning: cross-entropy in which each label has its own probability as a constant
    /// weight ([arXiv 2508.05629](https://arxiv.org/abs/2508.05629)).
    Dft,
}

choices!(SftLoss {
    "nll" => SftLoss::Nll, "dft" => SftLoss::Dft, also "chunked_nll" => SftLoss::Nll,
} unsupported []);

/// How documents are packed into rows of `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Best fit decreasing; a longer document is truncated.
    Bfd,
    /// Best fit decreasing; a longer document continues in further rows.
    BfdSplit,
    /// Concatenated and cut into blocks.
    Wrapped,
}

choices!(Packing {
    "bfd" => Packing::Bfd, "bfd_split" => Packing::BfdSplit, "wrapped" => Packing::Wrapped,
    also "ffd" => Packing::Bfd,
} unsupported []);

/// Length limits of prompts and responses, in tokens. `None` means no limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lengths {
    /// Prompt + response.
    pub max_length: Option<usize>,
    /// The prompt.
    pub max_prompt_length: Option<usize>,
    /// The response.
    pub max_completion_length: Option<usize>,
    pub truncation_mode: Truncation,
}

/// DPO (arXiv 2305.18290) and its variants.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DpoSettings {
    pub beta: f64,
    /// The losses; their weighted sum is minimized. Usually one.
    pub losses: Vec<WeightedLoss>,
    /// ε, 0 ≤ ε < 0.5, of conservative DPO (`sigmoid`), `robust`, `exo_pair`, `aot`,
    /// `aot_unpaired`.
    pub label_smoothing: f64,
    /// The f-divergence; it replaces the log-ratio in losses of a difference of scores.
    pub f_divergence: FDivergence,
    /// LD-DPO's α: the weight of response tokens beyond the length of the pair's shorter response.
    pub ld_alpha: Option<f64>,
    /// WPO (arXiv 2406.11827): weight each pair by its probability under the policy.
    pub use_weighting: bool,
    /// Use 0 in place of the reference's log-probs.
    pub reference_free: bool,
    /// τ of `discopop` (arXiv 2406.08414).
    pub discopop_tau: f64,
    /// TR-DPO: update the reference from the policy.
    pub sync_ref_model: Option<SyncRefModel>,
    pub lengths: Lengths,
    /// As written in the recipe. Log-probs of a frozen reference are always computed before
    /// training.
    pub precompute_ref_log_probs: bool,
    /// The positions over which `logits/chosen` and `logits/rejected` are averaged.
    pub logits_over: LogitsOver,
}

/// One loss of a DPO recipe with its weight.
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
    "aot_unpaired" => LossType::AotUnpaired, "apo_zero" => LossType::ApoZero,
    "apo_down" => LossType::ApoDown,
    "discopop" => LossType::Discopop, "sft" => LossType::Sft,
    "sigmoid_norm" => LossType::SigmoidNorm,
    "kto_pair" => LossType::KtoPair, also "aot_pair" => LossType::AotUnpaired,
} unsupported ["cdpo", "orpo", "simpo", "rpo", "kto"]);

impl LossType {
    /// Whether the loss is a function of the difference of the two scores, so that an f-divergence
    /// can replace the log-ratio.
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
    /// The α-divergence with its α.
    AlphaDivergence(f64),
}

/// The values of `f_divergence_type`; α is a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FDivergenceType {
    ReverseKl,
    ForwardKl,
    JsDivergence,
    AlphaDivergence,
}

choices!(FDivergenceType {
    "reverse_kl" => FDivergenceType::ReverseKl, "forward_kl" => FDivergenceType::ForwardKl,
    "js_divergence" => FDivergenceType::JsDivergence,
    "alpha_divergence" => FDivergenceType::AlphaDivergence,
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
    /// The weight of the NLL of the chosen responses.
    pub cpo_alpha: f64,
    /// SimPO's target margin γ.
    pub simpo_gamma: f64,
    /// AlphaPO's exponent; 0 uses the log-prob itself.
    pub alpha: f64,
    pub lengths: Lengths,
    pub logits_over: LogitsOver,
}

/// A CPO loss; none of them needs a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpoLoss {
    Sigmoid,
    Hinge,
    Ipo,
    Simpo,
}

choices!(CpoLoss {
    "sigmoid" => CpoLoss::Sigmoid, "hinge" => CpoLoss::Hinge, "ipo" => CpoLoss::Ipo,
    "simpo" => CpoLoss::Simpo,
} unsupported []);

/// TPO (arXiv 2405.16681): pairs with a third response to the same prompt, the gold response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TpoSettings {
    pub beta: f64,
    pub loss_type: TpoLoss,
    pub label_smoothing: f64,
    /// The weight of the NLL of the gold responses.
    pub tpo_alpha: f64,
    /// The target margin γ of TPO-L.
    pub tpo_l_gamma: f64,
    pub lengths: Lengths,
}

impl TpoSettings {
    /// Whether the loss has the NLL of the gold responses. Without it, they are not computed.
    pub fn has_nll(&self) -> bool {
        self.tpo_alpha != 0.0
    }
}

/// A TPO loss; none of them needs a reference model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TpoLoss {
    #[serde(rename = "sigmoid")]
    Sigmoid,
    #[serde(rename = "hinge")]
    Hinge,
    #[serde(rename = "ipo")]
    Ipo,
    /// Log-probs averaged over tokens, and a target margin.
    #[serde(rename = "tpo-l")]
    TpoL,
}

impl TpoLoss {
    /// Whether the loss reads `label_smoothing`.
    pub fn reads_smoothing(self) -> bool {
        matches!(self, Self::Sigmoid | Self::TpoL)
    }
}

choices!(TpoLoss {
    "sigmoid" => TpoLoss::Sigmoid, "hinge" => TpoLoss::Hinge, "ipo" => TpoLoss::Ipo,
    "tpo-l" => TpoLoss::TpoL, also "tpo_l" => TpoLoss::TpoL,
} unsupported []);

/// KTO (arXiv 2402.01306), the unpaired APO-zero (arXiv 2408.06266) and BCO (arXiv 2404.04656).
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

/// A loss on single labelled responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KtoLoss {
    Kto,
    ApoZeroUnpaired,
    /// BCO (arXiv 2404.04656), with the running mean of rewards as its shift.
    Bco,
}

impl KtoLoss {
    /// Whether the loss subtracts an estimate of the KL divergence from log-ratios.
    pub fn has_kl(self) -> bool {
        self == KtoLoss::Kto
    }

    /// Whether the loss subtracts the running mean of rewards.
    pub fn has_running_mean(self) -> bool {
        self == KtoLoss::Bco
    }
}

choices!(KtoLoss {
    "kto" => KtoLoss::Kto, "apo_zero_unpaired" => KtoLoss::ApoZeroUnpaired,
    "bco" => KtoLoss::Bco,
} unsupported []);

/// Which end of a long sequence is kept.
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

choices!(LogitsOver {
    "response" => LogitsOver::Response, "all" => LogitsOver::All,
} unsupported []);
