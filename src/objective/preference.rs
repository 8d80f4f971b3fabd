//! Preference losses: plain functions of the log-probs of chosen and rejected responses.
//!
//! Everything here is a vector over the pairs of a micro-batch (`[p]`), in float64 on the CPU: a
//! graph of a few numbers, whose gradient Burn's autodiff gives.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::recipe::{DpoSettings, LossType};

/// Log-probs of whole responses, in nats, and their lengths in tokens; all `[p]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairLogps {
    pub chosen: Vec<f64>,
    pub rejected: Vec<f64>,
    pub reference_chosen: Vec<f64>,
    pub reference_rejected: Vec<f64>,
    pub chosen_tokens: Vec<usize>,
    pub rejected_tokens: Vec<usize>,
}

/// A loss over pairs with its gradient and the implicit rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceOutcome {
    /// Loss of each pair, `[p]`.
    pub losses: Vec<f64>,
    /// Gradient of the mean loss with respect to `chosen` and `rejected`, `[p]` each.
    pub d_chosen: Vec<f64>,
    pub d_rejected: Vec<f64>,
    /// `β · (log π − log π_ref)`, `[p]` each.
    pub chosen_rewards: Vec<f64>,
    pub rejected_rewards: Vec<f64>,
}

/// Log-ratios of policy to reference, as autodiff vectors, with the response lengths.
struct LogRatios {
    /// `[p]`.
    chosen: Tensor<1>,
    /// `[p]`.
    rejected: Tensor<1>,
    chosen_tokens: Tensor<1>,
    rejected_tokens: Tensor<1>,
}

/// The loss that `settings` name, over the pairs of one micro-batch.
pub fn preference_loss(pairs: &PairLogps, settings: &DpoSettings) -> PreferenceOutcome {
    let chosen = vector(&pairs.chosen).autodiff().require_grad();
    let rejected = vector(&pairs.rejected).autodiff().require_grad();
    let ratios = LogRatios {
        chosen: chosen.clone() - vector(&pairs.reference_chosen).autodiff(),
        rejected: rejected.clone() - vector(&pairs.reference_rejected).autodiff(),
        chosen_tokens: lengths(&pairs.chosen_tokens),
        rejected_tokens: lengths(&pairs.rejected_tokens),
    };
    let losses = losses(&ratios, settings);
    let mut gradients = losses.clone().mean().backward();
    let mut gradient = |leaf: &Tensor<1>| match leaf.grad_remove(&mut gradients) {
        Some(gradient) => values(gradient),
        None => vec![0.0; pairs.chosen.len()],
    };
    let reward = |policy: &[f64], reference: &[f64]| {
        policy.iter().zip(reference).map(|(p, r)| settings.beta * (p - r)).collect()
    };
    PreferenceOutcome {
        losses: values(losses.inner()),
        d_chosen: gradient(&chosen),
        d_rejected: gradient(&rejected),
        chosen_rewards: reward(&pairs.chosen, &pairs.reference_chosen),
        rejected_rewards: reward(&pairs.rejected, &pairs.reference_rejected),
    }
}

fn losses(ratios: &LogRatios, settings: &DpoSettings) -> Tensor<1> {
    match settings.loss_type {
        LossType::Sigmoid => sigmoid(ratios, settings.beta, settings.label_smoothing),
        LossType::Hinge => hinge(ratios, settings.beta),
        LossType::Ipo => ipo(ratios, settings.beta),
    }
}

/// DPO (arXiv 2305.18290), eq. 7: `−(1−ε) ln σ(βΔ) − ε ln σ(−βΔ)`, where `Δ` is the difference of the
/// log-ratios; `ε > 0` is conservative DPO.
fn sigmoid(ratios: &LogRatios, beta: f64, label_smoothing: f64) -> Tensor<1> {
    let logits = (ratios.chosen.clone() - ratios.rejected.clone()).mul_scalar(beta);
    let right = log_sigmoid(logits.clone()).mul_scalar(1.0 - label_smoothing);
    let flipped = log_sigmoid(logits.neg()).mul_scalar(label_smoothing);
    (right + flipped).neg()
}

/// SLiC (arXiv 2305.10425) in the form of RSO (arXiv 2309.06657): `max(0, 1 − βΔ)`.
fn hinge(ratios: &LogRatios, beta: f64) -> Tensor<1> {
    let logits = (ratios.chosen.clone() - ratios.rejected.clone()).mul_scalar(beta);
    logits.neg().add_scalar(1.0).clamp_min(0.0)
}

/// IPO (arXiv 2310.12036), eq. 17, on log-ratios averaged over the response's tokens:
/// `(Δ̄ − 1 / (2β))²`.
fn ipo(ratios: &LogRatios, beta: f64) -> Tensor<1> {
    let chosen = ratios.chosen.clone() / ratios.chosen_tokens.clone();
    let rejected = ratios.rejected.clone() / ratios.rejected_tokens.clone();
    (chosen - rejected).sub_scalar(1.0 / (2.0 * beta)).square()
}

/// `ln σ(x) = −(m + ln(e^{−m} + e^{−x−m}))` with `m = max(−x, 0)` held constant: finite for every `x`, and
/// its gradient is `σ(−x)` everywhere, at 0 too.
fn log_sigmoid(x: Tensor<1>) -> Tensor<1> {
    let m = x.clone().detach().neg().clamp_min(0.0);
    let sum = m.clone().neg().exp() + (x.neg() - m.clone()).exp();
    (m + sum.log()).neg()
}

fn vector(values: &[f64]) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

fn lengths(tokens: &[usize]) -> Tensor<1> {
    let lengths: Vec<f64> = tokens.iter().map(|n| (*n).max(1) as f64).collect();
    vector(&lengths).autodiff()
}

fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().try_into_vec::<f64>().expect("objectives are computed in float64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{LogitsOver, Truncation};

    fn settings(loss_type: LossType, label_smoothing: f64) -> DpoSettings {
        DpoSettings {
            beta: 0.1,
            loss_type,
            label_smoothing,
            max_length: None,
            max_prompt_length: None,
            max_completion_length: None,
            truncation_mode: Truncation::KeepStart,
            precompute_ref_log_probs: true,
            logits_over: LogitsOver::Response,
        }
    }

    fn at(chosen: f64, rejected: f64) -> PairLogps {
        PairLogps {
            chosen: vec![chosen],
            rejected: vec![rejected],
            reference_chosen: vec![-50.0],
            reference_rejected: vec![-40.0],
            chosen_tokens: vec![20],
            rejected_tokens: vec![10],
        }
    }

    const ALL: [(LossType, f64, f64); 4] = [
        (LossType::Sigmoid, 0.0, std::f64::consts::LN_2),
        (LossType::Sigmoid, 0.1, std::f64::consts::LN_2),
        (LossType::Hinge, 0.0, 1.0),
        (LossType::Ipo, 0.0, 25.0),
    ];

    #[test]
    fn values_where_policy_is_reference() {
        for (loss_type, smoothing, expected) in ALL {
            let outcome = preference_loss(&at(-50.0, -40.0), &settings(loss_type, smoothing));
            assert!((outcome.losses[0] - expected).abs() < 1e-12, "{loss_type:?}");
            assert_eq!(outcome.chosen_rewards, [0.0]);
        }
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        for (loss_type, smoothing, _) in ALL {
            let settings = settings(loss_type, smoothing);
            for (chosen, rejected) in [(-50.0, -40.0), (-47.0, -42.5), (-61.0, -33.0)] {
                let outcome = preference_loss(&at(chosen, rejected), &settings);
                let loss = |c: f64, r: f64| preference_loss(&at(c, r), &settings).losses[0];
                let h = 1e-5;
                let dc = (loss(chosen + h, rejected) - loss(chosen - h, rejected)) / (2.0 * h);
                let dr = (loss(chosen, rejected + h) - loss(chosen, rejected - h)) / (2.0 * h);
                assert!((outcome.d_chosen[0] - dc).abs() < 1e-7, "{loss_type:?} {chosen}");
                assert!((outcome.d_rejected[0] - dr).abs() < 1e-7, "{loss_type:?} {rejected}");
            }
        }
    }

    #[test]
    fn extreme_log_ratios_stay_finite() {
        for (loss_type, smoothing, _) in ALL {
            for shift in [1e4, -1e4] {
                let outcome =
                    preference_loss(&at(-50.0 + shift, -40.0), &settings(loss_type, smoothing));
                let numbers = [outcome.losses[0], outcome.d_chosen[0], outcome.d_rejected[0]];
                assert!(
                    numbers.iter().all(|x| x.is_finite()),
                    "{loss_type:?} {shift}: {numbers:?}"
                );
            }
        }
    }
}
