//! GELU composed of Burn's own operations, for every device and precision.

use burn::tensor::{Tensor, activation::sigmoid};

use crate::geglu::{CUBIC, SLOPE};

/// [`gelu`](super::gelu()) composed of Burn's own operations.
pub fn gelu_composed(x_tf: Tensor<2>) -> Tensor<2> {
    let cubed = x_tf.clone() * x_tf.clone() * x_tf.clone();
    let z = (x_tf.clone() + cubed.mul_scalar(CUBIC)).mul_scalar(SLOPE);
    x_tf * sigmoid(z)
}
