//! RMSNorm and LayerNorm with their weights.

use burn::tensor::{DType, Tensor};

use super::parameter::Parameter;
use crate::kernels::in_type;
use crate::kernels::layer_norm::layer_norm;
use crate::kernels::rms_norm::rms_norm;

/// RMSNorm of rows, or of the heads in each row; with a bias, LayerNorm of rows.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[d]`; of heads `[e]`.
    pub weight: Parameter,
    /// `[d]`; only LayerNorm has it.
    pub bias: Option<Parameter>,
    pub eps: f64,
    /// Whether it scales by `1 + weight`.
    pub adds_one: bool,
}

impl Norm {
    /// `[t, d]` → `[t, d]`, in the type of the weight. If the weight is narrower than a row, it is
    /// that of each head.
    pub fn forward(&self, x_td: Tensor<2>) -> Tensor<2> {
        let [t, d] = x_td.dims();
        let width = self.weight.len();
        let weight = self.weight.vector();
        if let Some(bias) = &self.bias {
            return layer_norm(x_td, weight, bias.vector(), self.eps);
        }
        let heads_td = if width == d { x_td } else { x_td.reshape([t * (d / width), width]) };
        let normed = match self.adds_one {
            // `1 + weight` would lose bits of the weight in a narrow type.
            true => rms_norm(heads_td, in_type(weight, DType::F32) + 1.0, self.eps),
            false => rms_norm(heads_td, weight, self.eps),
        };
        let normed = in_type(normed, self.dtype());
        if width == d { normed } else { normed.reshape([t, d]) }
    }

    /// The type of the norm's results.
    pub fn dtype(&self) -> DType {
        self.weight.value.dtype()
    }

    /// Weight and bias.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// [`Self::parameters`], mutable.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.weight].into_iter().chain(&mut self.bias)
    }

    /// The same norm with its parameters on the autodiff device.
    pub fn tracked(&self) -> Self {
        let mut norm = self.clone();
        for parameter in norm.parameters_mut() {
            *parameter = parameter.tracked();
        }
        norm
    }
}
