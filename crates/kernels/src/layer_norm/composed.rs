//! LayerNorm composed of Burn's own operations, for every device and precision.

use burn::tensor::{DType, Tensor};

/// [`layer_norm`](super::layer_norm()) composed of Burn's own operations. Mean and variance are
/// taken in float32 even if the input has fewer bits. The quotient is rounded to the type of the
/// weight before the scale.
pub fn layer_norm_composed(
    x_td: Tensor<2>,
    weight_d: Tensor<1>,
    bias_d: Tensor<1>,
    eps: f64,
) -> Tensor<2> {
    let dtype = weight_d.dtype();
    let x = x_td.cast(DType::F32);
    let centered = x.clone() - x.mean_dim(1);
    let inverse = centered.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip();
    (centered * inverse).cast(dtype) * weight_d.unsqueeze() + bias_d.unsqueeze()
}
