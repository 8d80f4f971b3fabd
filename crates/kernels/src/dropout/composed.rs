//! Dropout composed of Burn's own operations, for every device and precision.

use burn::tensor::{Tensor, TensorData};

use super::Mask;
use crate::flex::fresh::filled;

/// [`dropout`](super::dropout()) composed of Burn's own operations: the mask is computed on the
/// host and multiplied with the input.
pub fn dropout_composed(x_ti: Tensor<2>, mask: &Mask) -> Tensor<2> {
    let [tokens, width] = x_ti.dims();
    let ones = vec![1.0; width];
    let factors = filled(tokens * width, width, |token, out| mask.apply(token, &ones, out));
    let target = (&x_ti.device(), x_ti.dtype());
    let factors = Tensor::from_data(TensorData::new(factors, [tokens, width]), target);
    x_ti * factors
}
