//! The GPU form of the linear layer: Burn's matrix product with a fixed strategy, without tuning.
//! The weight's gradient has the weight's layout.

use burn::backend::{Cube, tensor::FloatTensor};

use super::{LinearGrad, LinearNoBias};
use crate::cube::product::{product, transposed};

impl LinearNoBias for Cube {
    fn linear_no_bias(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = x.dtype;
        product(x, transposed(weight), dtype)
    }
}

impl LinearGrad for Cube {
    fn linear_input_grad(d: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = d.dtype;
        product(d, weight, dtype)
    }

    fn linear_weight_grad(d: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = d.dtype;
        product(transposed(d), x, dtype)
    }
}
