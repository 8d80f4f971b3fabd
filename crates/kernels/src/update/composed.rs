//! Sums, squares and updates composed of Burn's own operations, for every device and precision.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use super::rule::{UpdateKind, UpdateRule, UpdateState};
use crate::index_tensor;

/// [`add_rows_into`](super::add_rows_into) composed of Burn's own operations.
pub fn add_rows_into_composed(sum: Tensor<1>, ids: &[u32], rows: Tensor<2>) -> Tensor<1> {
    let (len, width) = (sum.dims()[0], rows.dims()[1]);
    let ids = index_tensor(ids.iter().copied(), &sum.device());
    let sum = sum.reshape([len / width, width]);
    sum.select_assign(0, ids, rows, IndexingUpdateOp::Add).reshape([len])
}

/// `Σ x²` of the whole vector in float32, `[1]`.
pub fn squares_composed(x: &Tensor<1>) -> Tensor<1> {
    x.clone().cast(DType::F32).square().sum()
}

/// [`update`](super::update()) composed of Burn's own operations.
pub fn update_composed(state: UpdateState, g: Tensor<1>, rule: UpdateRule) -> UpdateState {
    let UpdateState { mut parameter, mut first, second } = state;
    let mut g = g.mul_scalar(rule.gradient_scale);
    if rule.weight_decay != 0.0 {
        g = g + parameter.clone().mul_scalar(rule.weight_decay);
    }
    if rule.shrink != 1.0 {
        parameter = parameter.mul_scalar(rule.shrink);
    }
    let mean_square = |beta: f32, weight: f32, second: Tensor<1>, g: Tensor<1>| {
        second.mul_scalar(beta) + g.clone().mul_scalar(weight) * g
    };
    let (second, step) = match rule.kind {
        UpdateKind::Adam { weight1, beta2, weight2, sqrt_correction2 } => {
            first = first.clone() + (g.clone() - first).mul_scalar(weight1);
            let second = mean_square(beta2, weight2, second, g);
            let root = second.clone().sqrt().div_scalar(sqrt_correction2).add_scalar(rule.epsilon);
            (second, first.clone().mul_scalar(rule.step_size) / root)
        }
        UpdateKind::RmsProp { alpha, weight } => {
            let second = mean_square(alpha, weight, second, g.clone());
            let root = second.clone().sqrt().add_scalar(rule.epsilon);
            (second, g.mul_scalar(rule.step_size) / root)
        }
        UpdateKind::Sgd { momentum, weight, nesterov, is_first } => {
            let mut step = g.clone();
            if momentum != 0.0 {
                first = match is_first {
                    true => g.clone(),
                    false => first.mul_scalar(momentum) + g.clone().mul_scalar(weight),
                };
                step = match nesterov {
                    true => g + first.clone().mul_scalar(momentum),
                    false => first.clone(),
                };
            }
            (second, step.mul_scalar(rule.step_size))
        }
        UpdateKind::Lion { beta1, weight1, beta2, weight2 } => {
            let mean = first.clone().mul_scalar(beta1) + g.clone().mul_scalar(weight1);
            first = first.mul_scalar(beta2) + g.mul_scalar(weight2);
            (second, mean.sign().mul_scalar(rule.step_size))
        }
    };
    UpdateState { parameter: parameter - step, first, second }
}
