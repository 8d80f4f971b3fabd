//! RMSNorm composed of Burn's own operations, for every device and precision.

use burn::tensor::{DType, Tensor};

/// [`rms_norm`](super::rms_norm()) composed of Burn's own operations. The mean is taken in float32
/// even if the input has fewer bits. The quotient is rounded to the type of the weight before the
/// scale, as in Hugging Face's layers.
pub fn rms_norm_composed(x_td: Tensor<2>, weight_d: Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = weight_d.dtype();
    let x = x_td.cast(DType::F32);
    let inverse = x.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip();
    (x * inverse).cast(dtype) * weight_d.unsqueeze()
}
