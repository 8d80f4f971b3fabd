//! The losses of DPO and its variants, each a small pure function.
//!
//! All vectors are `[p]`, over the pairs of a micro-batch. `aot`, `aot_unpaired` and `kto_pair`
//! combine different pairs. As in TRL, these are the pairs of one micro-batch, not of the
//! accumulation window or of other ranks.

use burn::tensor::Tensor;

use super::vector::{Arithmetic, bounded_exp, log_sigmoid, sigmoid, sorted};
use crate::recipe::{DpoSettings, FDivergence, LossType};

/// The inputs of the losses.
pub struct PairScores {
    /// Log-probs of policy and reference, in nats.
    pub chosen: Tensor<1>,
    pub rejected: Tensor<1>,
    pub reference_chosen: Tensor<1>,
    pub reference_rejected: Tensor<1>,
    /// Tokens of the responses.
    pub chosen_tokens: Tensor<1>,
    pub rejected_tokens: Tensor<1>,
    /// Mean NLL of a chosen token over the micro-batch, `[1]`.
    pub nll: Tensor<1>,
}

impl PairScores {
    /// `r_w = ln π/π_ref` of the chosen response.
    fn chosen_ratio(&self) -> Tensor<1> {
        self.chosen.clone() - self.reference_chosen.clone()
    }

    /// `r_l = ln π/π_ref` of the rejected response.
    fn rejected_ratio(&self) -> Tensor<1> {
        self.rejected.clone() - self.reference_rejected.clone()
    }

    /// `s_w, s_l`: the log-ratios, transformed by the f-divergence.
    fn scores(&self, divergence: FDivergence) -> [Tensor<1>; 2] {
        [self.chosen_ratio(), self.rejected_ratio()].map(|ratio| score(ratio, divergence))
    }

    /// `β (s_w − s_l)`.
    fn logits(&self, s: &DpoSettings) -> Tensor<1> {
        let [chosen, rejected] = self.scores(s.f_divergence);
        (chosen - rejected).times(s.beta)
    }

    /// `s_w / |y_w| − s_l / |y_l|`.
    fn mean_difference(&self, s: &DpoSettings) -> Tensor<1> {
        let [chosen, rejected] = self.scores(s.f_divergence);
        chosen / self.chosen_tokens.clone() - rejected / self.rejected_tokens.clone()
    }

    /// `β r_w, β r_l`: the implicit rewards.
    fn rewards(&self, s: &DpoSettings) -> [Tensor<1>; 2] {
        [self.chosen_ratio(), self.rejected_ratio()].map(|ratio| ratio.times(s.beta))
    }
}

/// The loss of each pair, `[p]`.
pub fn pair_loss(loss: LossType, pairs: &PairScores, s: &DpoSettings) -> Tensor<1> {
    match loss {
        LossType::Sigmoid => sigmoid_loss(pairs.logits(s), s.label_smoothing),
        LossType::Hinge => hinge(pairs.logits(s)),
        LossType::Ipo => ipo(pairs.mean_difference(s), s.beta),
        LossType::ExoPair => exo_pair(pairs.logits(s), s.label_smoothing),
        LossType::NcaPair => nca_pair(pairs.rewards(s)),
        LossType::Robust => robust(pairs.logits(s), s.label_smoothing),
        LossType::BcoPair => bco_pair(pairs.rewards(s)),
        LossType::SppoHard => sppo_hard(pairs, s.beta),
        LossType::Aot => aot(pairs, s),
        LossType::AotUnpaired => aot_unpaired(pairs, s),
        LossType::ApoZero => apo_zero(pairs.rewards(s)),
        LossType::ApoDown => apo_down(pairs.rewards(s)),
        LossType::Discopop => discopop(pairs.logits(s), s.discopop_tau),
        LossType::Sft => pairs.nll.clone().expand(pairs.chosen.dims()),
        LossType::SigmoidNorm => log_sigmoid(pairs.mean_difference(s).times(s.beta)).neg(),
        LossType::KtoPair => kto_pair(pairs, s.beta),
    }
}

/// f-DPO (arXiv 2309.16240): `f'(π/π_ref)` as a function of the log-ratio `r`, with the same
/// constants as in TRL. Exponents are limited to 80.
///
/// Reverse KL: `r`. Forward KL: `1 − e^{−r}`. Jensen-Shannon: `ln 2 + ln σ(r)`. α-divergence:
/// `(e^{(α−1) r} − 1)/(α−1)`, which is `r` for α = 1.
fn score(ratio: Tensor<1>, divergence: FDivergence) -> Tensor<1> {
    match divergence {
        FDivergence::ReverseKl => ratio,
        FDivergence::ForwardKl => bounded_exp(ratio.neg()).neg().plus(1.0),
        FDivergence::JsDivergence => log_sigmoid(ratio).plus(std::f64::consts::LN_2),
        FDivergence::AlphaDivergence(alpha) if (alpha - 1.0).abs() < 1e-6 => ratio,
        FDivergence::AlphaDivergence(alpha) => {
            bounded_exp(ratio.times(alpha - 1.0)).plus(-1.0).over(alpha - 1.0)
        }
    }
}

/// The DPO loss (arXiv 2305.18290), eq. 7: `−ln σ(x)` with `x = β (s_w − s_l)`. With label
/// smoothing ε > 0 it is conservative DPO, `−(1−ε) ln σ(x) − ε ln σ(−x)`.
pub fn sigmoid_loss(logits: Tensor<1>, smoothing: f64) -> Tensor<1> {
    let right = log_sigmoid(logits.clone()).times(1.0 - smoothing);
    let flipped = log_sigmoid(logits.neg()).times(smoothing);
    (right + flipped).neg()
}

/// SLiC (arXiv 2305.10425) in the form of RSO (arXiv 2309.06657): `max(0, 1 − x)`.
pub fn hinge(logits: Tensor<1>) -> Tensor<1> {
    logits.neg().plus(1.0).clamp_min(0.0)
}

/// IPO (arXiv 2310.12036), eq. 17: `(Δ − 1/(2β))²`. For DPO recipes, `Δ` is the difference of
/// log-ratios that are averaged over tokens.
pub fn ipo(difference: Tensor<1>, beta: f64) -> Tensor<1> {
    difference.plus(-(1.0 / (2.0 * beta))).square()
}

/// EXO (arXiv 2402.00856), eq. 16: the KL divergence of `q = σ(x)` from the label distribution
/// `(1−ε, ε)`, `q (ln q − ln(1−ε)) + (1−q)(ln(1−q) − ln ε)`.
fn exo_pair(logits: Tensor<1>, smoothing: f64) -> Tensor<1> {
    let (log_q, log_rest) = (log_sigmoid(logits.clone()), log_sigmoid(logits.neg()));
    let chosen = log_q.clone().exp() * log_q.plus(-((-smoothing).ln_1p()));
    chosen + log_rest.clone().exp() * log_rest.plus(-(smoothing.ln()))
}

/// NCA (arXiv 2402.05369): `−ln σ(βr_w) − ½ ln σ(−βr_w) − ½ ln σ(−βr_l)`.
fn nca_pair([chosen, rejected]: [Tensor<1>; 2]) -> Tensor<1> {
    let halves = log_sigmoid(chosen.clone().neg()) + log_sigmoid(rejected.neg());
    (log_sigmoid(chosen) + halves.times(0.5)).neg()
}

/// Robust DPO (arXiv 2403.00409): `[−(1−ε) ln σ(x) + ε ln σ(−x)] / (1 − 2ε)`. It is unbiased if
/// labels are flipped with probability ε.
fn robust(logits: Tensor<1>, smoothing: f64) -> Tensor<1> {
    let right = log_sigmoid(logits.clone()).times(1.0 - smoothing);
    let flipped = log_sigmoid(logits.neg()).times(smoothing);
    (flipped - right).over(1.0 - 2.0 * smoothing)
}

/// BCO (arXiv 2404.04656) without its shift: `−ln σ(βr_w) − ln σ(−βr_l)`.
fn bco_pair([chosen, rejected]: [Tensor<1>; 2]) -> Tensor<1> {
    (log_sigmoid(chosen) + log_sigmoid(rejected.neg())).neg()
}

/// SPPO (arXiv 2405.00675), eq. 4.7 with hard labels: `(r_w − 1/(2β))² + (r_l + 1/(2β))²`.
fn sppo_hard(pairs: &PairScores, beta: f64) -> Tensor<1> {
    let target = 0.5 / beta;
    pairs.chosen_ratio().plus(-target).square() + pairs.rejected_ratio().plus(target).square()
}

/// AOT (arXiv 2406.05882), paired: the DPO loss of the sorted margins of the policy minus the
/// sorted margins of the reference.
fn aot(pairs: &PairScores, s: &DpoSettings) -> Tensor<1> {
    let policy = sorted(pairs.chosen.clone() - pairs.rejected.clone());
    let reference = sorted(pairs.reference_chosen.clone() - pairs.reference_rejected.clone());
    sigmoid_loss((policy - reference).times(s.beta), s.label_smoothing)
}

/// AOT, unpaired: the DPO loss of the sorted log-ratios of the chosen responses minus those of the
/// rejected ones.
fn aot_unpaired(pairs: &PairScores, s: &DpoSettings) -> Tensor<1> {
    let difference = sorted(pairs.chosen_ratio()) - sorted(pairs.rejected_ratio());
    sigmoid_loss(difference.times(s.beta), s.label_smoothing)
}

/// APO-zero (arXiv 2408.06266), eq. 7: `1 − σ(βr_w) + σ(βr_l)`.
fn apo_zero([chosen, rejected]: [Tensor<1>; 2]) -> Tensor<1> {
    sigmoid(chosen.neg()) + sigmoid(rejected)
}

/// APO-down (arXiv 2408.06266), eq. 8: `σ(βr_w) + 1 − σ(β(r_w − r_l))`.
fn apo_down([chosen, rejected]: [Tensor<1>; 2]) -> Tensor<1> {
    sigmoid(chosen.clone()) + sigmoid(rejected - chosen)
}

/// DiscoPOP (arXiv 2406.08414), eq. 5: `−(1−m) ln σ(x) + m e^{−x}` with `m = σ(x/τ)`. The product
/// is computed as `e^{ln m − x}`, so that a large negative `x` does not overflow.
fn discopop(logits: Tensor<1>, tau: f64) -> Tensor<1> {
    let modulation = logits.clone().over(tau);
    let logistic = log_sigmoid(logits.clone()).neg() * sigmoid(modulation.clone().neg());
    logistic + bounded_exp(log_sigmoid(modulation) - logits)
}

/// KTO (arXiv 2402.01306) on the pairs of a micro-batch, as in TRL until 0.12:
/// `1 − σ(β(r_w − K_l))` and `1 − σ(β(K_w − r_l))`. `K` is the mean log-ratio of a side, at least
/// 0, and has no gradient, as in the paper. A pair's loss is the mean of the two.
fn kto_pair(pairs: &PairScores, beta: f64) -> Tensor<1> {
    let (chosen, rejected) = (pairs.chosen_ratio(), pairs.rejected_ratio());
    let kl = |ratio: &Tensor<1>| ratio.clone().detach().mean().clamp_min(0.0);
    let (kl_chosen, kl_rejected) = (kl(&chosen), kl(&rejected));
    let of_chosen = sigmoid((kl_rejected - chosen).times(beta));
    let of_rejected = sigmoid((rejected - kl_chosen).times(beta));
    (of_chosen + of_rejected).times(0.5)
}
