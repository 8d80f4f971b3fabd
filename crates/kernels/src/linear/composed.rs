//! The linear layer composed of Burn's own operations, for every device and precision.

use burn::tensor::Tensor;

/// [`linear`](super::linear()) composed of Burn's own operations.
pub fn linear_composed(x_ti: Tensor<2>, weight_oi: Tensor<2>) -> Tensor<2> {
    x_ti.matmul(weight_oi.transpose())
}
