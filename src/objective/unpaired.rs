//! Objectives over labelled completions: KTO, unpaired APO-zero, and BCO.

use burn::tensor::Tensor;

use super::vector::{Arithmetic, constant, gradient, leaf, log_sigmoid, sigmoid, values};
use crate::recipe::{KtoLoss, KtoSettings};

/// Log-probs of the rows of a micro-batch, in nats, all `[r]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UnpairedLogps {
    pub policy: Vec<f64>,
    pub reference: Vec<f64>,
    /// The policy's log-prob of the completion of another row after this prompt, for the estimate
    /// of the KL.
    pub mismatched: Vec<f64>,
    pub reference_mismatched: Vec<f64>,
    /// Whether the completion is desirable.
    pub labels: Vec<bool>,
}

/// A loss over labelled completions with its gradient and its metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct UnpairedOutcome {
    /// Mean over the micro-batch.
    pub loss: f64,
    /// Gradient of the loss with respect to `policy`, `[r]`.
    pub d_policy: Vec<f64>,
    /// `β · (ln π − ln π_ref)`, `[r]`.
    pub rewards: Vec<f64>,
    /// The estimate of the KL, in nats; 0 if the loss has none.
    pub kl: f64,
}

/// KTO (arXiv 2402.01306), eq. 7 and 8: `λ_D (1 − σ(β(r − K)))` for a desirable completion and
/// `λ_U (1 − σ(β(K − r)))` for an undesirable one. `r` is the log-ratio; `K` is the mean log-ratio
/// of the mismatched completions, at least 0 and without gradient. `apo_zero_unpaired` (arXiv
/// 2408.06266) is the same with `K = 0`.
///
/// As in TRL, `K` is the mean over the micro-batch.
///
/// `bco` (arXiv 2404.04656), eq. 12: `−ln σ(βr − δ)` and `−ln σ(−(βr − δ))`, with `δ = shift`, the
/// running mean of the rewards `βr`, without gradient. Other losses do not read `shift`.
pub fn unpaired_loss(rows: &UnpairedLogps, settings: &KtoSettings, shift: f64) -> UnpairedOutcome {
    let kl = if settings.loss_type.has_kl() { kl_estimate(rows) } else { 0.0 };
    let policy = leaf(&rows.policy);
    let ratio = policy.clone() - constant(&rows.reference);
    let rewards = ratio.clone().times(settings.beta);
    // +1 for a desirable completion, −1 for an undesirable one.
    let of_label = |yes: f64, no: f64| {
        let values = rows.labels.iter().map(|label| if *label { yes } else { no });
        constant(&values.collect::<Vec<_>>())
    };
    let sign = of_label(1.0, -1.0);
    let each: Tensor<1> = match settings.loss_type {
        KtoLoss::Kto | KtoLoss::ApoZeroUnpaired => {
            let value = ratio.plus(-kl).times(settings.beta) * sign;
            sigmoid(value.neg())
        }
        KtoLoss::Bco => log_sigmoid(ratio.times(settings.beta).plus(-shift) * sign).neg(),
    };
    let weights = of_label(settings.desirable_weight, settings.undesirable_weight);
    let loss = (each * weights).mean();
    let mut gradients = loss.backward();
    UnpairedOutcome {
        loss: values(&loss)[0],
        d_policy: gradient(&policy, &mut gradients),
        rewards: values(&rewards),
        kl,
    }
}

fn kl_estimate(rows: &UnpairedLogps) -> f64 {
    let ratios = rows.mismatched.iter().zip(&rows.reference_mismatched).map(|(p, r)| p - r);
    (ratios.sum::<f64>() / rows.mismatched.len().max(1) as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{KtoLoss, Lengths, LogitsOver, Truncation};

    fn settings(loss_type: KtoLoss) -> KtoSettings {
        KtoSettings {
            beta: 0.1,
            loss_type,
            desirable_weight: 1.0,
            undesirable_weight: 0.5,
            sync_ref_model: None,
            lengths: Lengths {
                max_length: None,
                max_prompt_length: None,
                max_completion_length: None,
                truncation_mode: Truncation::KeepStart,
            },
            precompute_ref_log_probs: false,
            logits_over: LogitsOver::Response,
        }
    }

    fn rows(shift: f64) -> UnpairedLogps {
        UnpairedLogps {
            policy: vec![-50.0 + shift, -40.0, -12.0 - shift],
            reference: vec![-50.0, -40.0, -12.0],
            mismatched: vec![-70.0, -62.0, -90.0],
            reference_mismatched: vec![-70.0, -63.5, -93.0],
            labels: vec![true, false, true],
        }
    }

    #[test]
    fn the_loss_is_half_the_weight_if_policy_is_reference_without_a_kl() {
        let outcome = unpaired_loss(&rows(0.0), &settings(KtoLoss::ApoZeroUnpaired), 0.0);
        assert!((outcome.loss - (0.5 + 0.25 + 0.5) / 3.0).abs() < 1e-12);
        assert_eq!((outcome.kl, outcome.rewards[1]), (0.0, 0.0));
    }

    #[test]
    fn bco_compares_rewards_with_their_running_mean() {
        let outcome = unpaired_loss(&rows(3.0), &settings(KtoLoss::Bco), 0.2);
        // Rewards 0.3, 0 and −0.3; the second row is undesirable and weighs 0.5.
        let softplus = |x: f64| x.exp().ln_1p();
        let expected = (softplus(-0.1) + 0.5 * softplus(-0.2) + softplus(0.5)) / 3.0;
        assert!((outcome.loss - expected).abs() < 1e-12, "{}", outcome.loss);
        assert_eq!(outcome.kl, 0.0);
    }

    #[test]
    fn the_kl_is_the_mean_of_the_mismatched_and_never_negative() {
        assert_eq!(unpaired_loss(&rows(0.0), &settings(KtoLoss::Kto), 0.0).kl, 1.5);
        let mut rows = rows(0.0);
        rows.reference_mismatched = vec![-50.0; 3];
        assert_eq!(unpaired_loss(&rows, &settings(KtoLoss::Kto), 0.0).kl, 0.0);
    }

    #[test]
    fn gradients_are_those_of_central_differences_and_finite_far_out() {
        for loss_type in [KtoLoss::Kto, KtoLoss::ApoZeroUnpaired, KtoLoss::Bco] {
            let settings = settings(loss_type);
            let outcome = unpaired_loss(&rows(3.0), &settings, 0.2);
            for (index, gradient) in outcome.d_policy.iter().enumerate() {
                let at = |h: f64| {
                    let mut rows = rows(3.0);
                    rows.policy[index] += h;
                    unpaired_loss(&rows, &settings, 0.2).loss
                };
                let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((gradient - difference).abs() < 1e-8, "{loss_type:?} {index}");
            }
            for shift in [1e4, -1e4] {
                let outcome = unpaired_loss(&rows(shift), &settings, 0.2);
                assert!(outcome.loss.is_finite());
                assert!(outcome.d_policy.iter().all(|x| x.is_finite()));
            }
        }
    }
}
