//! Dropout composed of Burn's own operations, for every device and precision.

use burn::tensor::{Tensor, TensorData};

use super::Mask;
use crate::flex::fresh::filled;
use crate::host;

/// [`dropout`](super::dropout()) composed of Burn's own operations: the mask is computed on the
/// host and multiplied with the input.
pub fn dropout_composed(x_ti: Tensor<2>, mask: &Mask) -> Tensor<2> {
    let [tokens, width] = x_ti.dims();
    let ones = vec![1.0; width];
    let factors = filled(tokens * width, width, |token, out| mask.apply(token, &ones, out));
    let factors = TensorData::new(factors, [tokens, width]);
    let factors = host::upload(factors, &x_ti.device(), x_ti.dtype());
    x_ti * factors
}
