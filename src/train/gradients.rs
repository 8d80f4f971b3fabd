//! Gradients of a step: summed over micro-batches, measured, clipped.

use burn::tensor::{DType, Tensor};

use crate::model::kernels::timed;
use crate::model::kernels::vector::{add_into, add_rows_into, sum_of_squares};

/// The gradient of each parameter so far, in the order of `Decoder::parameters`, float32.
#[derive(Debug, Default)]
pub struct GradientSum(Vec<Option<Tensor<1>>>);

impl GradientSum {
    /// No gradient yet for any of `parameters` parameters.
    pub fn new(parameters: usize) -> Self {
        Self(vec![None; parameters])
    }

    /// Adds `gradient` to that of parameter `index`.
    pub fn add(&mut self, index: usize, gradient: Tensor<1>) {
        timed!("gradient sum");
        let slot = &mut self.0[index];
        *slot = Some(match slot.take() {
            Some(sum) => add_into(sum, gradient),
            None => gradient,
        });
    }

    /// Adds row `i` of `rows` (`[t, d]`) to row `ids[i]` of the gradient of parameter `index`, which has `len`
    /// elements.
    pub fn add_rows(&mut self, index: usize, len: usize, ids: &[u32], rows: Tensor<2>) {
        let slot = &mut self.0[index];
        let sum = slot.take();
        let sum = sum.unwrap_or_else(|| Tensor::zeros([len], (&rows.device(), DType::F32)));
        *slot = Some(add_rows_into(sum, ids, rows.cast(DType::F32)));
    }

    /// Norm over all parameters together, before clipping. Squares are summed in double precision,
    /// parameter by parameter.
    pub fn norm(&self) -> f64 {
        timed!("gradient norm");
        self.0.iter().flatten().map(sum_of_squares).sum::<f64>().sqrt()
    }

    /// Takes the gradient of parameter `index`, to be used up by the optimizer.
    pub fn take(&mut self, index: usize) -> Option<Tensor<1>> {
        self.0[index].take()
    }

    /// The gradient of parameter `index`.
    pub fn get(&self, index: usize) -> Option<&Tensor<1>> {
        self.0[index].as_ref()
    }
}

/// torch's `clip_grad_norm_`: the factor that brings gradients of norm `norm` within `max_norm`.
/// `max_norm = 0` is no clipping, as in transformers.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn sums_and_norm() {
        let device = Device::flex();
        let mut sum = GradientSum::new(3);
        sum.add(0, Tensor::from_data([1.0f32, 2.0], &device));
        sum.add(0, Tensor::from_data([2.0f32, 2.0], &device));
        sum.add(2, Tensor::from_data([12.0f32], &device));
        assert_eq!(sum.norm(), 13.0);
        assert!(sum.get(1).is_none());
    }

    #[test]
    fn clipping_is_torchs() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
