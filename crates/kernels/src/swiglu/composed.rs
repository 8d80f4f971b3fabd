//! SwiGLU composed of Burn's own operations, for every device and precision.

use burn::tensor::{Tensor, activation::silu};

/// [`swiglu`](super::swiglu()) composed of Burn's own operations.
pub fn swiglu_composed(gate_tf: Tensor<2>, up_tf: Tensor<2>) -> Tensor<2> {
    silu(gate_tf) * up_tf
}
