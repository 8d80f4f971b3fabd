//! The GPU form of GeGLU: one pass over vectors of elements each way.

use burn::backend::{Cube, tensor::FloatTensor};

use super::{Geglu, GegluGrad};
use crate::cube::gated::{Gate, gated, gated_grad};

impl Geglu for Cube {
    fn geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        gated(gate, up, Gate::Gelu)
    }
}

impl GegluGrad for Cube {
    fn geglu_grad(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d: FloatTensor<Self>,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        gated_grad([gate, up, d], wanted, Gate::Gelu)
    }
}
