use burn::tensor::Device;

use super::*;
use crate::model::parameter::{Parameter, ParameterIds, Weight};

const D: usize = 8;
const F: usize = 12;
const X: usize = 5;

/// A number in [-1, 1) for each index.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let number = |i: u32| {
        let mixed = (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(2_246_822_519);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len as u32).map(number).collect()
}

fn experts(per_token: usize) -> Experts {
    experts_in(DType::F32, per_token)
}

/// The same weights rounded to bfloat16, held in `dtype`.
fn experts_in(dtype: DType, per_token: usize) -> Experts {
    let (mut ids, mut seed) = (ParameterIds::default(), 0);
    let mut linear = |out: usize, width: usize| {
        seed += 1;
        let values = numbers(seed, out * width);
        let values = values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
        let value = Weight::from_values(values, &Device::flex(), dtype);
        let (name, shape) = ("weight".into(), vec![out, width]);
        let weight = Parameter { id: ids.assign(), name, shape, value, trainable: true };
        Linear { weight, bias: None, lora: None }
    };
    let router = linear(X, D);
    let expert = |_| Expert { gate: linear(F, D), down: linear(D, F), up: linear(F, D) };
    Experts { router, experts: (0..X).map(expert).collect(), per_token }
}

fn rows(rows: &[Vec<f32>]) -> Tensor<2> {
    let values: Vec<f32> = rows.concat();
    Tensor::from_data(TensorData::new(values, [rows.len(), D]), &Device::flex())
}

fn tokens(count: usize) -> Vec<Vec<f32>> {
    (0..count as u32).map(|token| numbers(100 + token, D)).collect()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The output for one token by the definition, in float64.
fn by_definition(experts: &Experts, token: &[f32]) -> Vec<f64> {
    let product = |linear: &Linear, x: &[f64]| -> Vec<f64> {
        let weight = values(linear.weight.matrix());
        let row = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        weight.chunks(x.len()).map(row).collect()
    };
    let x: Vec<f64> = token.iter().map(|x| f64::from(*x)).collect();
    let scores: Vec<f64> = product(&experts.router, &x).iter().map(|z| z.exp()).collect();
    let mut order: Vec<usize> = (0..X).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(experts.per_token);
    let sum: f64 = order.iter().map(|expert| scores[*expert]).sum();
    let mut out = vec![0.0; D];
    for index in order {
        let expert = &experts.experts[index];
        let (gate, up) = (product(&expert.gate, &x), product(&expert.up, &x));
        let inner: Vec<f64> =
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
        for (out, y) in out.iter_mut().zip(product(&expert.down, &inner)) {
            *out += scores[index] / sum * y;
        }
    }
    out
}

#[test]
fn the_output_is_that_of_the_definition() {
    for per_token in [1, 2, 3, X] {
        let experts = experts(per_token);
        let tokens = tokens(23);
        let (out, routed) = experts.forward(rows(&tokens));
        assert_eq!((routed.probs.len(), routed.chosen.len()), (23 * X, 23 * per_token));
        for (token, out) in tokens.iter().zip(values(out).chunks(D)) {
            for (ours, exact) in out.iter().zip(by_definition(&experts, token)) {
                assert!((f64::from(*ours) - exact).abs() < 1e-5, "{ours} for {exact}");
            }
        }
    }
}

/// Also if an expert computes one token only.
#[test]
fn the_bits_of_a_token_do_not_depend_on_the_others() {
    let experts = experts(2);
    let tokens = tokens(40);
    let all = values(experts.forward(rows(&tokens)).0);
    for count in [2, 3, 5, 39] {
        let some = values(experts.forward(rows(&tokens[..count])).0);
        assert_eq!(some, all[..count * D], "{count} tokens");
    }
}

#[test]
fn a_single_token_of_an_expert_is_computed_twice() {
    let groups = Groups::of(&[0, 2, 1, 2, 0, 2], 4, 2);
    assert_eq!(groups.rows, [vec![0, 2], vec![1, 1], vec![0, 1, 2], vec![]]);
    assert_eq!((groups.places(0), groups.places(1)), (vec![0, 2, 1], vec![4, 5, 6]));
    let one = Groups::of(&[1, 3], 4, 2);
    assert_eq!(one.rows, [vec![], vec![0], vec![], vec![0]], "the batch has one token");
}

#[test]
fn of_equal_probabilities_the_first_are_taken() {
    assert_eq!(most_probable(&[0.2, 0.3, 0.2, 0.3], 3), [0, 1, 3]);
}

#[test]
fn bfloat16_gives_the_numbers_of_float32_to_its_precision() {
    let tokens = rows(&tokens(23)).cast(DType::BF16);
    let of = |dtype: DType| {
        let x_td = tokens.clone().cast(dtype).autodiff().require_grad();
        let experts = experts_in(dtype, 2);
        let (out_td, routed) = experts.forward(x_td.clone());
        assert_eq!(out_td.dtype(), dtype);
        let mut gradients = out_td.clone().sum().backward();
        let gradient = x_td.grad_remove(&mut gradients).expect("the input is tracked");
        let numbers = [out_td.inner(), gradient].map(|x| values(x.cast(DType::F32)));
        (numbers, routed.chosen)
    };
    let (exact, chosen) = of(DType::F32);
    let (rounded, chosen_in_bf16) = of(DType::BF16);
    assert_eq!(chosen, chosen_in_bf16);
    for (exact, rounded) in exact.iter().zip(&rounded) {
        let largest = exact.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (a, b) in exact.iter().zip(rounded) {
            assert!((a - b).abs() < 0.02 * largest, "{a} {b}, of {largest}");
        }
    }
}
