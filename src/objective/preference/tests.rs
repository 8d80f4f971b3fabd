use super::*;
use crate::recipe::{FDivergence, Lengths, LogitsOver, Truncation, WeightedLoss};

fn lengths() -> Lengths {
    Lengths {
        max_length: None,
        max_prompt_length: None,
        max_completion_length: None,
        truncation_mode: Truncation::KeepStart,
    }
}

fn settings(losses: &[(LossType, f64)], label_smoothing: f64) -> DpoSettings {
    let losses = losses
        .iter()
        .map(|(loss_type, weight)| WeightedLoss { loss_type: *loss_type, weight: *weight });
    DpoSettings {
        beta: 0.1,
        losses: losses.collect(),
        label_smoothing,
        f_divergence: FDivergence::ReverseKl,
        ld_alpha: None,
        use_weighting: false,
        reference_free: false,
        discopop_tau: 0.05,
        sync_ref_model: None,
        lengths: lengths(),
        precompute_ref_log_probs: true,
        logits_over: LogitsOver::Response,
    }
}

/// Each loss with its label smoothing and its value if the policy is the reference and β = 0.1.
const LOSSES: [(LossType, f64, f64); 20] = [
    (LossType::Sigmoid, 0.0, std::f64::consts::LN_2),
    (LossType::Sigmoid, 0.1, std::f64::consts::LN_2),
    (LossType::Hinge, 0.0, 1.0),
    (LossType::Ipo, 0.0, 25.0),
    (LossType::ExoPair, 1e-3, 2.761230709097915),
    (LossType::NcaPair, 0.0, 2.0 * std::f64::consts::LN_2),
    (LossType::Robust, 0.0, std::f64::consts::LN_2),
    (LossType::Robust, 0.1, std::f64::consts::LN_2),
    (LossType::BcoPair, 0.0, 2.0 * std::f64::consts::LN_2),
    (LossType::SppoHard, 0.0, 50.0),
    (LossType::Aot, 0.0, std::f64::consts::LN_2),
    (LossType::Aot, 0.1, std::f64::consts::LN_2),
    (LossType::AotUnpaired, 0.0, std::f64::consts::LN_2),
    (LossType::AotUnpaired, 0.1, std::f64::consts::LN_2),
    (LossType::ApoZero, 0.0, 1.0),
    (LossType::ApoDown, 0.0, 1.0),
    (LossType::Discopop, 0.0, 0.5 + 0.5 * std::f64::consts::LN_2),
    (LossType::Sft, 0.0, 2.4),
    (LossType::SigmoidNorm, 0.0, std::f64::consts::LN_2),
    (LossType::KtoPair, 0.0, 0.5),
];

const DIVERGENCES: [FDivergence; 6] = [
    FDivergence::ReverseKl,
    FDivergence::ForwardKl,
    FDivergence::JsDivergence,
    FDivergence::AlphaDivergence(0.5),
    FDivergence::AlphaDivergence(1.0),
    FDivergence::AlphaDivergence(2.0),
];

/// Every objective of this file.
fn objectives() -> Vec<PairObjective> {
    let mut all = Vec::new();
    for (loss, smoothing, _) in LOSSES {
        for f_divergence in DIVERGENCES {
            if f_divergence == FDivergence::ReverseKl || loss.reads_scores() {
                let settings = settings(&[(loss, 1.0)], smoothing);
                all.push(PairObjective::Dpo(DpoSettings { f_divergence, ..settings }));
            }
        }
    }
    let mixed = [(LossType::Sigmoid, 0.8), (LossType::BcoPair, 0.2), (LossType::Sft, 1.0)];
    all.push(PairObjective::Dpo(settings(&mixed, 0.0)));
    all.push(PairObjective::Orpo(OrpoSettings {
        beta: 0.1,
        lengths: lengths(),
        logits_over: LogitsOver::All,
    }));
    for loss_type in [CpoLoss::Sigmoid, CpoLoss::Hinge, CpoLoss::Ipo, CpoLoss::Simpo] {
        for alpha in [0.0, 0.3] {
            all.push(PairObjective::Cpo(CpoSettings {
                beta: 0.5,
                loss_type,
                label_smoothing: 0.0,
                cpo_alpha: 1.0,
                simpo_gamma: 0.5,
                alpha,
                lengths: lengths(),
                logits_over: LogitsOver::All,
            }));
        }
    }
    for loss_type in [TpoLoss::Sigmoid, TpoLoss::Hinge, TpoLoss::Ipo, TpoLoss::TpoL] {
        all.push(PairObjective::Tpo(TpoSettings {
            beta: 0.5,
            loss_type,
            label_smoothing: if loss_type.reads_smoothing() { 0.1 } else { 0.0 },
            tpo_alpha: 0.7,
            tpo_l_gamma: 0.5,
            lengths: lengths(),
        }));
    }
    all
}

/// Log-ratios `chosen` and `rejected` of policy to reference.
fn at(chosen: &[f64], rejected: &[f64]) -> PairLogps {
    let shifted = |base: f64, by: &[f64]| -> Vec<f64> { by.iter().map(|r| base + r).collect() };
    let pairs = chosen.len();
    PairLogps {
        chosen: shifted(-50.0, chosen),
        rejected: shifted(-40.0, rejected),
        reference_chosen: vec![-50.0; pairs],
        reference_rejected: vec![-40.0; pairs],
        chosen_tokens: vec![20; pairs],
        rejected_tokens: vec![10; pairs],
        text: vec![-60.0; pairs],
        text_tokens: vec![25; pairs],
        weights: None,
    }
}

/// A generator of numbers in [0, 1) that needs no crate: splitmix64.
fn noise(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn values_where_policy_is_reference() {
    for (loss_type, smoothing, expected) in LOSSES {
        let objective = PairObjective::Dpo(settings(&[(loss_type, 1.0)], smoothing));
        let outcome = preference_loss(&at(&[0.0, 0.0], &[0.0, 0.0]), &objective);
        assert!((outcome.loss - expected).abs() < 1e-9, "{loss_type:?}: {}", outcome.loss);
        assert_eq!(outcome.chosen_rewards, [0.0, 0.0]);
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    let mut state = 7;
    for objective in objectives() {
        for _ in 0..4 {
            let mut draw = |scale: f64| -> Vec<f64> {
                (0..3).map(|_| scale * (noise(&mut state) - 0.5)).collect()
            };
            let mut pairs = at(&draw(12.0), &draw(12.0));
            pairs.text = draw(8.0).into_iter().map(|x| x - 60.0).collect();
            let outcome = preference_loss(&pairs, &objective);
            let held = constants(&objective, &pairs);
            for pair in 0..3 {
                let difference = |vector: fn(&mut PairLogps) -> &mut Vec<f64>| {
                    let at = |h: f64| {
                        let mut moved = pairs.clone();
                        vector(&mut moved)[pair] += h;
                        held(&moved)
                    };
                    let h = 1e-5;
                    (at(h) - at(-h)) / (2.0 * h)
                };
                for (analytic, numeric) in [
                    (outcome.d_chosen[pair], difference(|p| &mut p.chosen)),
                    (outcome.d_rejected[pair], difference(|p| &mut p.rejected)),
                    (outcome.d_text[pair], difference(|p| &mut p.text)),
                ] {
                    let rounding = 1e-10 * outcome.loss.abs();
                    let close =
                        (analytic - numeric).abs() < 1e-6 * analytic.abs().max(1.0) + rounding;
                    assert!(close, "{objective:?}: {analytic} is not {numeric}");
                }
            }
        }
    }
}

/// The loss as a function of the pairs. `kto_pair` has a KL without gradient, so it is computed
/// with the KL at the point of the gradient.
fn constants<'a>(
    objective: &'a PairObjective,
    at: &PairLogps,
) -> Box<dyn Fn(&PairLogps) -> f64 + 'a> {
    let is_kto = match objective {
        PairObjective::Dpo(dpo) => dpo.losses[0].loss_type == LossType::KtoPair,
        _ => false,
    };
    if !is_kto {
        return Box::new(|pairs| preference_loss(pairs, objective).loss);
    }
    let mean = |policy: &[f64], reference: &[f64]| {
        let sum: f64 = policy.iter().zip(reference).map(|(p, r)| p - r).sum();
        (sum / policy.len() as f64).max(0.0)
    };
    let kl_chosen = mean(&at.chosen, &at.reference_chosen);
    let kl_rejected = mean(&at.rejected, &at.reference_rejected);
    Box::new(move |pairs| {
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let losses = (0..pairs.chosen.len()).map(|i| {
            let chosen = pairs.chosen[i] - pairs.reference_chosen[i];
            let rejected = pairs.rejected[i] - pairs.reference_rejected[i];
            let of_chosen = 1.0 - sigma(0.1 * (chosen - kl_rejected));
            (of_chosen + 1.0 - sigma(0.1 * (kl_chosen - rejected))) / 2.0
        });
        losses.sum::<f64>() / pairs.chosen.len() as f64
    })
}

#[test]
fn extreme_log_ratios_stay_finite() {
    for objective in objectives() {
        for (chosen, rejected) in [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4), (-1e4, -1e4), (0.0, 1e4)] {
            let mut pairs = at(&[chosen, 0.5], &[rejected, -0.5]);
            // Log-probs are at most 0, so log-ratios of this size need a reference with much lower
            // log-probs.
            for (policy, reference) in [
                (&mut pairs.chosen, &mut pairs.reference_chosen),
                (&mut pairs.rejected, &mut pairs.reference_rejected),
            ] {
                for (policy, reference) in policy.iter_mut().zip(reference) {
                    let above = (*policy + 1.0).max(0.0);
                    *policy -= above;
                    *reference -= above;
                }
            }
            let outcome = preference_loss(&pairs, &objective);
            let gradients = outcome.d_chosen.iter().chain(&outcome.d_rejected);
            let fits = |x: &f64| x.abs() < f64::from(f32::MAX);
            let finite = gradients.chain(&outcome.d_text).all(fits) && outcome.loss.is_finite();
            assert!(finite, "{objective:?} {chosen} {rejected}: {outcome:?}");
        }
    }
}

#[test]
fn several_losses_are_added_with_their_weights() {
    let pairs = at(&[1.0, -2.0], &[-0.5, 3.0]);
    let alone = |loss| {
        let objective = PairObjective::Dpo(settings(&[(loss, 1.0)], 0.0));
        preference_loss(&pairs, &objective)
    };
    let both = PairObjective::Dpo(settings(&[(LossType::Sigmoid, 1.0), (LossType::Sft, 0.2)], 0.0));
    let both = preference_loss(&pairs, &both);
    let (sigmoid, sft) = (alone(LossType::Sigmoid), alone(LossType::Sft));
    assert!((both.loss - sigmoid.loss - 0.2 * sft.loss).abs() < 1e-12);
    assert!((both.d_chosen[0] - sigmoid.d_chosen[0]).abs() < 1e-12);
    assert!((both.d_text[1] - 0.2 * sft.d_text[1]).abs() < 1e-12);
    assert_eq!(both.metrics, [("nll_loss", 2.4)]);
}

#[test]
fn weights_multiply_the_losses_of_their_pairs() {
    let objective = PairObjective::Dpo(settings(&[(LossType::Sigmoid, 1.0)], 0.0));
    let mut pairs = at(&[1.0, -2.0], &[-0.5, 3.0]);
    let plain = preference_loss(&pairs, &objective);
    pairs.weights = Some(vec![0.25, 0.0]);
    let weighted = preference_loss(&pairs, &objective);
    assert!((weighted.d_chosen[0] - 0.25 * plain.d_chosen[0]).abs() < 1e-12);
    assert_eq!(weighted.d_chosen[1], 0.0);
}

#[test]
fn orpos_odds_keep_their_digits_at_both_ends() {
    for mean in [-1e-9, -1e-4, -0.009, -0.011, -2.0, -300.0] {
        let log1m = values(&log1m_exp(constant(&[mean])))[0];
        let exact = (-(mean.exp_m1())).ln();
        assert!((log1m - exact).abs() <= 1e-12 * exact.abs().max(1e-3), "{mean}: {log1m} {exact}");
    }
}
