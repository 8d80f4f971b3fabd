//! Objectives over preference pairs: DPO and its variants, ORPO, CPO and SimPO, TPO.
//!
//! All values are vectors over the pairs of a micro-batch (`[p]`), in float64 on the CPU. Burn's
//! autodiff gives the gradients of these small graphs.

use burn::tensor::Tensor;

use super::dpo::{PairScores, hinge, ipo, pair_loss, sigmoid_loss};
use super::vector::{
    Arithmetic, bounded_exp, constant, gradient, leaf, lengths, log_sigmoid, log1m_exp, values,
};
use crate::recipe::{
    CpoLoss, CpoSettings, DpoSettings, LossType, OrpoSettings, TpoLoss, TpoSettings,
};

/// Log-probs of whole responses, in nats, and their lengths in tokens; all `[p]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairLogps {
    pub chosen: Vec<f64>,
    pub rejected: Vec<f64>,
    /// The log-probs under the reference; 0 without a reference.
    pub reference_chosen: Vec<f64>,
    pub reference_rejected: Vec<f64>,
    pub chosen_tokens: Vec<usize>,
    pub rejected_tokens: Vec<usize>,
    /// Log-prob of the text of the NLL term, and its number of tokens. The text is the chosen
    /// response; for ORPO, the prompt and the chosen response; for TPO, the gold response.
    pub text: Vec<f64>,
    pub text_tokens: Vec<usize>,
    /// WPO's weights. `None`: all weights are 1.
    pub weights: Option<Vec<f64>>,
}

/// An objective over pairs, with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum PairObjective {
    Dpo(DpoSettings),
    Orpo(OrpoSettings),
    Cpo(CpoSettings),
    Tpo(TpoSettings),
}

/// A loss over pairs with its gradient and its metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceOutcome {
    /// Mean over the micro-batch.
    pub loss: f64,
    /// Gradient of the loss with respect to `chosen`, `rejected` and `text`, `[p]` each.
    pub d_chosen: Vec<f64>,
    pub d_rejected: Vec<f64>,
    pub d_text: Vec<f64>,
    /// Implicit rewards, `[p]` each.
    pub chosen_rewards: Vec<f64>,
    pub rejected_rewards: Vec<f64>,
    /// Log-probs as TRL logs them, `[p]` each: averaged over tokens if the objective averages them.
    pub chosen_logps: Vec<f64>,
    pub rejected_logps: Vec<f64>,
    /// The objective's own metrics.
    pub metrics: Vec<(&'static str, f64)>,
}

/// The results of an objective as tensors, before the gradients are computed.
struct Terms {
    /// `[1]`.
    loss: Tensor<1>,
    /// `[p]` each: chosen and rejected.
    rewards: [Tensor<1>; 2],
    logps: [Tensor<1>; 2],
    /// `[1]` each.
    metrics: Vec<(&'static str, Tensor<1>)>,
}

/// The loss of one micro-batch, with gradients and metrics.
pub fn preference_loss(pairs: &PairLogps, objective: &PairObjective) -> PreferenceOutcome {
    let [chosen, rejected, text] = [&pairs.chosen, &pairs.rejected, &pairs.text].map(|v| leaf(v));
    let tokens: usize = pairs.text_tokens.iter().sum();
    let scores = PairScores {
        chosen: chosen.clone(),
        rejected: rejected.clone(),
        reference_chosen: constant(&pairs.reference_chosen),
        reference_rejected: constant(&pairs.reference_rejected),
        chosen_tokens: lengths(&pairs.chosen_tokens),
        rejected_tokens: lengths(&pairs.rejected_tokens),
        nll: text.clone().sum().neg().over(tokens.max(1) as f64),
    };
    let terms = match objective {
        PairObjective::Dpo(settings) => dpo(&scores, pairs.weights.as_deref(), settings),
        PairObjective::Orpo(settings) => orpo(&scores, settings),
        PairObjective::Cpo(settings) => cpo(&scores, settings),
        PairObjective::Tpo(settings) => tpo(&scores, settings),
    };
    let number = |tensor: &Tensor<1>| values(tensor)[0];
    let mut gradients = terms.loss.backward();
    let [chosen_rewards, rejected_rewards] = terms.rewards.map(|v| values(&v));
    let [chosen_logps, rejected_logps] = terms.logps.map(|v| values(&v));
    PreferenceOutcome {
        loss: number(&terms.loss),
        d_chosen: gradient(&chosen, &mut gradients),
        d_rejected: gradient(&rejected, &mut gradients),
        d_text: gradient(&text, &mut gradients),
        chosen_rewards,
        rejected_rewards,
        chosen_logps,
        rejected_logps,
        metrics: terms.metrics.iter().map(|(name, value)| (*name, number(value))).collect(),
    }
}

/// `Σ weight_i · mean(loss_i · w)` over the losses of the recipe (MPO, arXiv 2411.10442; RPO is the
/// list `sigmoid`, `sft`). `w` are WPO's weights (arXiv 2406.11827, eq. 2).
fn dpo(pairs: &PairScores, weights: Option<&[f64]>, settings: &DpoSettings) -> Terms {
    let weights = weights.map(constant);
    let mut loss = constant(&[0.0]);
    for term in &settings.losses {
        let mut of_pairs = pair_loss(term.loss_type, pairs, settings);
        if let Some(weights) = &weights {
            of_pairs = of_pairs * weights.clone();
        }
        loss = loss + of_pairs.mean().times(term.weight);
    }
    let ratio = |policy: &Tensor<1>, reference: &Tensor<1>| {
        (policy.clone() - reference.clone()).times(settings.beta)
    };
    let with_sft = settings.losses.iter().any(|term| term.loss_type == LossType::Sft);
    Terms {
        loss,
        rewards: [
            ratio(&pairs.chosen, &pairs.reference_chosen),
            ratio(&pairs.rejected, &pairs.reference_rejected),
        ],
        logps: [pairs.chosen.clone(), pairs.rejected.clone()],
        metrics: with_sft.then(|| ("nll_loss", pairs.nll.clone())).into_iter().collect(),
    }
}

/// Log-probs averaged over the tokens of the responses.
fn averages(pairs: &PairScores) -> [Tensor<1>; 2] {
    [
        pairs.chosen.clone() / pairs.chosen_tokens.clone(),
        pairs.rejected.clone() / pairs.rejected_tokens.clone(),
    ]
}

/// ORPO (arXiv 2403.07691), eq. 6 and 7: NLL of prompt and chosen response, minus
/// `β ln σ(ln odds(chosen) − ln odds(rejected))`, where `odds = p / (1 − p)` of the mean log-prob.
fn orpo(pairs: &PairScores, settings: &OrpoSettings) -> Terms {
    let [chosen, rejected] = averages(pairs);
    let log_odds = chosen.clone()
        - log1m_exp(chosen.clone())
        - (rejected.clone() - log1m_exp(rejected.clone()));
    let ratio = log_sigmoid(log_odds.clone()).mean();
    Terms {
        loss: pairs.nll.clone() - ratio.clone().times(settings.beta),
        rewards: [&chosen, &rejected].map(|logp| logp.clone().times(settings.beta)),
        metrics: vec![
            ("nll_loss", pairs.nll.clone()),
            ("log_odds_ratio", ratio),
            ("log_odds_chosen", log_odds.mean()),
        ],
        logps: [chosen, rejected],
    }
}

/// CPO (arXiv 2401.08417), eq. 3 and 5: the DPO loss without a reference, plus `cpo_alpha` times
/// the NLL of the chosen responses. SimPO (arXiv 2405.14734), eq. 6:
/// `−ln σ(β(mean ln π_w − mean ln π_l) − γ)`. With `alpha` > 0 the reward is that of AlphaPO (arXiv
/// 2501.03884), `(1 − π^{−α}) / α`.
fn cpo(pairs: &PairScores, settings: &CpoSettings) -> Terms {
    let logps = match settings.loss_type {
        CpoLoss::Simpo | CpoLoss::Ipo => averages(pairs),
        CpoLoss::Sigmoid | CpoLoss::Hinge => [pairs.chosen.clone(), pairs.rejected.clone()],
    };
    let [chosen, rejected] = logps.clone().map(|logp| alpha_reward(logp, settings.alpha));
    let difference = chosen.clone() - rejected.clone();
    let beta = settings.beta;
    let losses = match settings.loss_type {
        CpoLoss::Sigmoid => sigmoid_loss(difference.times(beta), settings.label_smoothing),
        CpoLoss::Simpo => sigmoid_loss(
            difference.times(beta).plus(-settings.simpo_gamma),
            settings.label_smoothing,
        ),
        CpoLoss::Hinge => hinge(difference.times(beta)),
        CpoLoss::Ipo => ipo(difference, beta),
    };
    // TRL logs 0 if the term is off.
    let nll = pairs.nll.clone();
    let logged = if settings.cpo_alpha > 0.0 { nll.clone() } else { constant(&[0.0]) };
    Terms {
        loss: losses.mean() + nll.times(settings.cpo_alpha),
        rewards: [chosen, rejected].map(|reward| reward.times(beta)),
        logps,
        metrics: vec![("nll_loss", logged)],
    }
}

/// TPO (arXiv 2405.16681), eq. 8: `−ln σ(β(ln π_w − ln π_l))`, plus `tpo_alpha` times the NLL of
/// the gold responses. TPO-L averages the log-probs over tokens and has a target margin γ:
/// `−ln σ(β(mean ln π_w − mean ln π_l) − γ)`. As in TRL, the NLL is not logged by itself.
fn tpo(pairs: &PairScores, settings: &TpoSettings) -> Terms {
    let logps = match settings.loss_type {
        TpoLoss::Ipo | TpoLoss::TpoL => averages(pairs),
        TpoLoss::Sigmoid | TpoLoss::Hinge => [pairs.chosen.clone(), pairs.rejected.clone()],
    };
    let difference = logps[0].clone() - logps[1].clone();
    let (beta, smoothing) = (settings.beta, settings.label_smoothing);
    let losses = match settings.loss_type {
        TpoLoss::Sigmoid => sigmoid_loss(difference.times(beta), smoothing),
        TpoLoss::TpoL => {
            sigmoid_loss(difference.times(beta).plus(-settings.tpo_l_gamma), smoothing)
        }
        TpoLoss::Hinge => hinge(difference.times(beta)),
        TpoLoss::Ipo => ipo(difference, beta),
    };
    Terms {
        loss: losses.mean() + pairs.nll.clone().times(settings.tpo_alpha),
        rewards: logps.clone().map(|logp| logp.times(beta)),
        logps,
        metrics: Vec::new(),
    }
}

fn alpha_reward(logp: Tensor<1>, alpha: f64) -> Tensor<1> {
    match alpha {
        0.0 => logp,
        alpha => {
            let power = bounded_exp(logp.times(-alpha));
            power.neg().plus(1.0).over(alpha)
        }
    }
}

#[cfg(test)]
#[path = "preference/tests.rs"]
mod tests;
