//! Short float64 vectors on the CPU with autodiff, in which objectives are written. A micro-batch
//! has only a few pairs, so a graph over them is cheap.

use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};

/// Exponents are limited to this value, with `e^x` = 5.5e34. So losses and gradients stay finite in
/// float32 too. TRL has the same limit for α-divergences.
const LARGEST_EXPONENT: f64 = 80.0;

/// A vector whose gradient can be computed.
pub fn leaf(values: &[f64]) -> Tensor<1> {
    plain(values).autodiff().require_grad()
}

/// A vector without a gradient that can be combined with leaves.
pub fn constant(values: &[f64]) -> Tensor<1> {
    plain(values).autodiff()
}

/// Numbers of tokens, at least 1 each.
pub fn lengths(tokens: &[usize]) -> Tensor<1> {
    let lengths: Vec<f64> = tokens.iter().map(|n| (*n).max(1) as f64).collect();
    constant(&lengths)
}

/// Arithmetic with numbers, exact in float64. In its backward pass, Burn's own division by a number
/// rounds the inverse of the number to float32.
pub trait Arithmetic {
    /// `self · by`.
    fn times(self, by: f64) -> Self;
    /// `self + by`.
    fn plus(self, by: f64) -> Self;
    /// `self / by`.
    fn over(self, by: f64) -> Self;
}

impl Arithmetic for Tensor<1> {
    fn times(self, by: f64) -> Self {
        self * constant(&[by])
    }

    fn plus(self, by: f64) -> Self {
        self + constant(&[by])
    }

    fn over(self, by: f64) -> Self {
        self / constant(&[by])
    }
}

/// The values of a vector.
pub fn values(tensor: &Tensor<1>) -> Vec<f64> {
    let data = tensor.clone().into_data();
    data.try_into_vec::<f64>().expect("objectives are computed in float64")
}

/// The gradient of a leaf; zeros if the result does not depend on it.
pub fn gradient(leaf: &Tensor<1>, gradients: &mut Gradients) -> Vec<f64> {
    match leaf.grad_remove(gradients) {
        Some(gradient) => values(&gradient),
        None => vec![0.0; leaf.dims()[0]],
    }
}

/// `ln σ(x) = −(m + ln(e^{−m} + e^{−x−m}))` with the constant `m = max(−x, 0)`. It is finite for
/// every `x`, and its gradient is `σ(−x)` everywhere, also at 0.
pub fn log_sigmoid(x: Tensor<1>) -> Tensor<1> {
    let m = x.clone().detach().neg().clamp_min(0.0);
    let sum = m.clone().neg().exp() + (x.neg() - m.clone()).exp();
    (m + sum.log()).neg()
}

/// `σ(x)`, exact for every `x`.
pub fn sigmoid(x: Tensor<1>) -> Tensor<1> {
    log_sigmoid(x).exp()
}

/// `e^x`, with `x` limited to [`LARGEST_EXPONENT`].
pub fn bounded_exp(x: Tensor<1>) -> Tensor<1> {
    x.clamp_max(LARGEST_EXPONENT).exp()
}

/// `ln(1 − e^x)` for `x < 0`, without cancellation near 0 or for large negative `x`.
pub fn log1m_exp(x: Tensor<1>) -> Tensor<1> {
    // Near 0, 1 − e^x cancels. For |x| < 0.01, the first eight terms of its power series are exact
    // to float64.
    let near = values(&x).into_iter().map(|x| if x > -0.01 { 1.0 } else { 0.0 });
    let near = constant(&near.collect::<Vec<_>>());
    let far = near.clone().neg().plus(1.0);
    // Each branch computes with a harmless value for elements that the other branch handles.
    let x_near = x.clone() * near.clone() - far.clone().times(0.005);
    let x_far = x * far.clone() - near.clone();
    let mut series = constant(&vec![1.0; x_near.dims()[0]]);
    for k in (2..=8).rev() {
        series = (x_near.clone() * series).over(f64::from(k)).plus(1.0);
    }
    let by_series = (x_near.neg() * series).log();
    let direct = x_far.exp().neg().plus(1.0).log();
    by_series * near + direct * far
}

/// The values in ascending order, with their gradients.
pub fn sorted(x: Tensor<1>) -> Tensor<1> {
    let values = values(&x);
    let mut order: Vec<i64> = (0..values.len() as i64).collect();
    order.sort_by(|a, b| values[*a as usize].total_cmp(&values[*b as usize]));
    let len = order.len();
    let order = Tensor::<1, Int>::from_data(TensorData::new(order, [len]), &x.device());
    x.select(0, order)
}

fn plain(values: &[f64]) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}
