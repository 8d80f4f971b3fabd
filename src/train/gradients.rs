//! Gradients of a step: summed over micro-batches, measured, clipped.
//!
//! On one rank the sum holds every parameter's gradient. On several it holds this rank's shard of each
//! bucket: as soon as the walk has left a layer, its gradient is exchanged and added up by the ranks that
//! own it, micro-batch after micro-batch in their global order. So the sum has the same bits on any
//! number of ranks.

use burn::tensor::{DType, Device, Tensor};

use super::exchange::Exchange;
use crate::kernels::timed;
use crate::kernels::update::{add_into, add_rows_into, block_squares};
use crate::parallel::Ranks;
use crate::parallel::buckets::Layout;

/// The gradient so far, float32.
pub struct GradientSum<'a> {
    /// On one rank, of each parameter in the order of `Decoder::parameters`; on several, of this
    /// rank's shard of each bucket.
    sums: Vec<Option<Tensor<1>>>,
    exchange: Option<Exchange<'a>>,
}

impl<'a> GradientSum<'a> {
    /// No gradient yet for any of `parameters` parameters, on one rank.
    pub fn new(parameters: usize) -> Self {
        Self { sums: vec![None; parameters], exchange: None }
    }

    /// No gradient yet of a model that is laid out over `ranks`.
    pub fn over(ranks: &'a Ranks, layout: &'a Layout) -> Self {
        if ranks.is_alone() {
            return Self::new(layout.parameters());
        }
        let exchange = Some(Exchange::new(ranks, layout));
        Self { sums: vec![None; layout.buckets.len()], exchange }
    }

    /// A round begins, in which the first `contributors` ranks each walk back one micro-batch.
    pub fn begin_round(&mut self, contributors: usize) {
        if let Some(exchange) = &mut self.exchange {
            exchange.begin_round(contributors);
        }
    }

    /// The round is over, also for a rank that had no micro-batch in it.
    pub fn end_round(&mut self, device: &Device) {
        if let Some(exchange) = &mut self.exchange {
            exchange.end_round(device, &mut self.sums);
        }
    }

    /// Adds `gradient` to that of parameter `index`.
    pub fn add(&mut self, index: usize, gradient: Tensor<1>) {
        timed!("gradient sum");
        match &mut self.exchange {
            None => add_to(&mut self.sums[index], gradient),
            Some(exchange) => exchange.add(index, gradient, &mut self.sums),
        }
    }

    /// Adds row `i` of `rows` (`[t, d]`) to row `ids[i]` of the gradient of the embedding, the first
    /// parameter, which has `len` elements.
    pub fn add_rows(&mut self, len: usize, ids: &[u32], rows: Tensor<2>) {
        if let Some(exchange) = &mut self.exchange {
            exchange.add_rows(ids, rows, &mut self.sums);
            return;
        }
        let slot = &mut self.sums[0];
        let sum = slot.take();
        let sum = sum.unwrap_or_else(|| Tensor::zeros([len], (&rows.device(), DType::F32)));
        *slot = Some(add_rows_into(sum, ids, rows.cast(DType::F32)));
    }

    /// Norm over all parameters together, before clipping: squares are summed in double precision, block
    /// by block in the order of the model.
    pub fn norm(&self) -> f64 {
        timed!("gradient norm");
        let total = match &self.exchange {
            None => {
                let blocks = self.sums.iter().flatten().flat_map(block_squares);
                blocks.fold(0.0, |total, block| total + block)
            }
            Some(exchange) => exchange.sum_of_squares(&self.sums),
        };
        total.sqrt()
    }

    /// Takes the gradient of parameter `index` (on one rank), or of this rank's shard of bucket `index` (on
    /// several), to be used up by the optimizer.
    pub fn take(&mut self, index: usize) -> Option<Tensor<1>> {
        self.sums[index].take()
    }

    /// The gradient of parameter `index`, on one rank.
    pub fn get(&self, index: usize) -> Option<&Tensor<1>> {
        self.sums[index].as_ref()
    }
}

/// Adds `gradient` to `sum`.
pub(super) fn add_to(sum: &mut Option<Tensor<1>>, gradient: Tensor<1>) {
    *sum = Some(match sum.take() {
        Some(sum) => add_into(sum, gradient),
        None => gradient,
    });
}

/// torch's `clip_grad_norm_`: the factor that brings gradients of norm `norm` within `max_norm`.
/// `max_norm = 0` is no clipping, as in transformers.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

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
