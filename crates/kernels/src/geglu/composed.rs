//! GeGLU composed of Burn's own operations, for every device and precision.

use burn::tensor::{Tensor, activation::sigmoid};

use super::{CUBIC, SLOPE};

/// [`geglu`](super::geglu()) composed of Burn's own operations.
pub fn geglu_composed(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    let cubed = gate_tf.clone() * gate_tf.clone() * gate_tf.clone();
    let z = (gate_tf.clone() + cubed.mul_scalar(CUBIC)).mul_scalar(SLOPE);
    gate_tf * sigmoid(z) * up_tf
}
