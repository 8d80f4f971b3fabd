//! The GPU form of SwiGLU: one pass over vectors of elements each way.

use burn::backend::{Cube, tensor::FloatTensor};

use super::{Swiglu, SwigluGrad};
use crate::cube::gated::{Gate, gated, gated_grad};

impl Swiglu for Cube {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        gated(gate, up, Gate::Silu)
    }
}

impl SwigluGrad for Cube {
    fn swiglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        gated_grad([gate, up, d], wanted, Gate::Silu)
    }
}
