//! A linear layer with its bias and its adapter.

use burn::tensor::Tensor;

use super::adapter::Lora;
use super::parameter::Parameter;

/// `x · weightᵀ + bias`, and the output of its adapter if it has one.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    pub lora: Option<Lora>,
}

impl Linear {
    /// `[t, in]` → `[t, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(lora) = &self.lora else { return self.base(x) };
        lora.add_to(self.base(x.clone()), x)
    }

    /// The layer without its adapter.
    fn base(&self, x: Tensor<2>) -> Tensor<2> {
        let out = self.weight.linear(x);
        match &self.bias {
            Some(bias) => out + bias.vector().unsqueeze(),
            None => out,
        }
    }
}
