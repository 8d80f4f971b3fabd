use burn::tensor::{Device, IndexingUpdateOp, Tensor, TensorData};

use super::*;
use crate::index_tensor;

fn vector(seed: u64, scale: f32, len: usize) -> Tensor<1> {
    let values: Vec<f32> = (0..len as u64)
        .map(|i| {
            let hash = (i * 2_654_435_761 + seed * 40_503 * 65_537) & 0xffff_ffff;
            ((hash as f64 / 4_294_967_296.0 - 0.5) as f32) * scale
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [len]), &Device::flex())
}

const LR: f64 = 1e-3;

fn adam(step: i32, [weight_decay, shrink]: [f32; 2]) -> UpdateRule {
    let kind = UpdateKind::Adam {
        weight1: 0.1,
        beta2: 0.999,
        weight2: 0.001,
        sqrt_correction2: (1.0 - 0.999f64.powi(step)).sqrt() as f32,
    };
    let step_size = (LR / (1.0 - 0.9f64.powi(step))) as f32;
    UpdateRule { kind, gradient_scale: 0.7, weight_decay, shrink, step_size, epsilon: 1e-8 }
}

fn rms_prop(_: i32) -> UpdateRule {
    let kind = UpdateKind::RmsProp { alpha: 0.99, weight: 0.01 };
    UpdateRule { kind, step_size: LR as f32, ..adam(1, [0.1, 1.0]) }
}

fn sgd(step: i32) -> UpdateRule {
    let kind = UpdateKind::Sgd { momentum: 0.9, weight: 0.9, nesterov: true, is_first: step == 1 };
    UpdateRule { kind, step_size: LR as f32, ..adam(1, [0.1, 1.0]) }
}

fn lion(_: i32) -> UpdateRule {
    let kind = UpdateKind::Lion { beta1: 0.9, weight1: 0.1, beta2: 0.99, weight2: 0.01 };
    UpdateRule { kind, step_size: LR as f32, ..adam(1, [0.0, 0.9999]) }
}

#[test]
fn both_forms_of_an_update_agree() {
    let len = 40_001;
    let rules: [fn(i32) -> UpdateRule; 5] =
        [|step| adam(step, [0.0, 0.9999]), |step| adam(step, [0.1, 1.0]), rms_prop, sgd, lion];
    for rule in rules {
        let start = || UpdateState {
            parameter: vector(0, 1.0, len),
            first: vector(0, 0.0, len),
            second: vector(0, 0.0, len),
        };
        let (mut fused, mut composed) = (start(), start());
        for step in 1..=20 {
            let rule = rule(step);
            fused = update(fused, vector(step as u64, 0.01, len), rule);
            composed = update_composed(composed, vector(step as u64, 0.01, len), rule);
        }
        let difference = (fused.parameter - composed.parameter).abs().max().into_scalar::<f32>();
        assert!(difference < 2e-7, "{difference}");
    }
}

/// Compares Adam with torch's formulas in double precision, for a gradient that changes its sign.
#[test]
fn adam_agrees_with_the_formulas() {
    let gradient = |step: i32| 0.5 * f64::from(step % 3 - 1) + 0.01;
    let (mut p, mut m, mut v) = (0.3f64, 0.0f64, 0.0f64);
    let one = |x: f64| Tensor::<1>::from_data([x as f32], &Device::flex());
    let mut state = UpdateState { parameter: one(p), first: one(m), second: one(v) };
    for step in 1..=20 {
        let scaled = f64::from(0.7f32) * gradient(step);
        m += (1.0 - 0.9) * (scaled - m);
        v = 0.999 * v + (1.0 - 0.999) * scaled * scaled;
        let [correction1, correction2] = [0.9f64, 0.999].map(|beta| 1.0 - beta.powi(step));
        p = p * 0.9999 - LR / correction1 * m / ((v / correction2).sqrt() + 1e-8);
        state = update(state, one(gradient(step)), adam(step, [0.0, 0.9999]));
    }
    let [parameter, first, second] = [state.parameter, state.first, state.second]
        .map(|vector| f64::from(vector.into_scalar::<f32>()));
    assert!((parameter / p - 1.0).abs() < 2e-6, "{parameter} for {p}");
    assert!((first / m - 1.0).abs() < 2e-6, "{first} for {m}");
    assert!((second / v - 1.0).abs() < 2e-6, "{second} for {v}");
}

#[test]
fn sums_and_squares() {
    let sum = add_into(vector(1, 1.0, 33_000), vector(2, 1.0, 33_000));
    let expected = vector(1, 1.0, 33_000) + vector(2, 1.0, 33_000);
    assert_eq!(sum.to_data(), expected.clone().into_data());
    let exact: f64 = expected.into_data().iter::<f32>().map(|x| f64::from(x).powi(2)).sum();
    let blocks = block_squares(&sum);
    assert!((blocks.iter().sum::<f64>() / exact - 1.0).abs() < 1e-12);
    let part = sum.clone().narrow(0, 2 * SQUARES_BLOCK, SQUARES_BLOCK);
    assert_eq!(block_squares(&part), blocks[2..3]);
}

#[test]
fn rows_are_added_at_their_ids() {
    let (ids, rows) = ([3, 0, 3], vector(5, 1.0, 12).reshape([3, 4]));
    let sum = add_rows_into(vector(6, 1.0, 20), &ids, rows.clone());
    let indices = index_tensor(ids.into_iter(), &Device::flex());
    let start = vector(6, 1.0, 20).reshape([5, 4]);
    let expected = start.select_assign(0, indices, rows, IndexingUpdateOp::Add);
    assert_eq!(sum.into_data(), expected.reshape([20]).into_data());
}

#[test]
fn updating_a_view_does_not_change_its_neighbors() {
    let whole = vector(3, 1.0, 10);
    let part = whole.clone().narrow(0, 2, 4);
    let sum = add_into(part, vector(4, 1.0, 4));
    assert_eq!(sum.dims(), [4]);
    assert_eq!(whole.to_data(), vector(3, 1.0, 10).into_data());
}
