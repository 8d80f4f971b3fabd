//! Gradients of a step: summed over micro-batches, measured, clipped.
//!
//! On one rank the sum holds the gradient of every trainable parameter. On several ranks it holds
//! this rank's shard of each bucket: as soon as the backward pass has left a layer, the layer's
//! gradient is exchanged and added up by the ranks that own it, micro-batch after micro-batch in
//! their global order. So the sum has the same bits on any number of ranks.
//!
//! The gradient of a micro-batch is rounded to the type in which ranks exchange it
//! ([`Bucket::reduce`]), also on one rank. The sum is float32.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};

use super::exchange::{Exchange, plus};
use crate::kernels::update::{add_rows_into, sum_of_squares};
use crate::kernels::{in_type, timed};
use crate::model::parameter::{Parameter, ParameterId};
use crate::parallel::Ranks;
use crate::parallel::buckets::{Bucket, Layout};

/// The sum of the gradients of all micro-batches so far, float32.
#[derive(Default)]
pub struct GradientSum<'a>(Sums<'a>);

enum Sums<'a> {
    /// On one rank: of each parameter that has a gradient, in the order of the model.
    Whole(Whole),
    /// On several ranks: of this rank's shards.
    Shards(Box<Exchange<'a>>),
}

/// The sums of one rank.
#[derive(Default)]
struct Whole {
    sums: BTreeMap<ParameterId, Tensor<1>>,
    /// The type to which gradients are rounded, if it is not float32.
    narrower: BTreeMap<ParameterId, DType>,
}

impl Whole {
    fn of(layout: &Layout) -> Self {
        let is_narrower = |bucket: &&Bucket| bucket.reduce != DType::F32;
        let buckets = layout.buckets.iter().filter(is_narrower);
        let ids =
            buckets.flat_map(|bucket| bucket.parameters.iter().map(|id| (*id, bucket.reduce)));
        Self { sums: BTreeMap::new(), narrower: ids.collect() }
    }

    /// A gradient of parameter `id` in the type in which ranks would exchange it.
    fn rounded<const D: usize>(&self, id: ParameterId, gradient: Tensor<D>) -> Tensor<D> {
        match self.narrower.get(&id) {
            Some(dtype) => in_type(gradient, *dtype),
            None => gradient,
        }
    }

    fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        let gradient = self.rounded(id, gradient);
        let sum = plus(self.sums.remove(&id), gradient);
        self.sums.insert(id, sum);
    }

    fn add_rows(&mut self, embedding: &Parameter, ids: &[u32], rows: Tensor<2>) {
        let zeros = || Tensor::zeros([embedding.len()], (&rows.device(), DType::F32));
        let sum = self.sums.remove(&embedding.id).unwrap_or_else(zeros);
        let rows = self.rounded(embedding.id, rows);
        let sum = add_rows_into(sum, ids, rows.cast(DType::F32));
        self.sums.insert(embedding.id, sum);
    }
}

impl Default for Sums<'_> {
    fn default() -> Self {
        Self::Whole(Whole::default())
    }
}

impl<'a> GradientSum<'a> {
    /// An empty sum for a model that is laid out over `ranks`. The default is a sum of one rank
    /// whose gradients are not rounded.
    pub fn over(ranks: &'a Ranks, layout: &'a Layout) -> Self {
        if ranks.is_alone() {
            return Self(Sums::Whole(Whole::of(layout)));
        }
        Self(Sums::Shards(Box::new(Exchange::new(ranks, layout))))
    }

    /// Begins a round, in which the first `contributors` ranks each differentiate one micro-batch.
    pub fn begin_round(&mut self, contributors: usize) {
        if let Sums::Shards(exchange) = &mut self.0 {
            exchange.begin_round(contributors);
        }
    }

    /// Ends the round. A rank without a micro-batch in it calls this too.
    pub fn end_round(&mut self, device: &Device) {
        if let Sums::Shards(exchange) = &mut self.0 {
            exchange.end_round(device);
        }
    }

    /// Adds `gradient`, in any float type, to that of parameter `id`.
    pub fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        timed!("gradient sum");
        match &mut self.0 {
            Sums::Whole(whole) => whole.add(id, gradient),
            Sums::Shards(exchange) => exchange.add(id, gradient),
        }
    }

    /// Adds row `i` of `rows` (`[t, d]`) to row `ids[i]` of the gradient of the embedding.
    pub fn add_rows(&mut self, embedding: &Parameter, ids: &[u32], rows: Tensor<2>) {
        match &mut self.0 {
            Sums::Whole(whole) => whole.add_rows(embedding, ids, rows),
            Sums::Shards(exchange) => exchange.add_rows(ids, rows),
        }
    }

    /// Norm over all parameters together, before clipping. Squares are summed in double precision,
    /// block by block; on the CPU in the order of the model. One number is read from the device.
    pub fn norm(&self) -> f64 {
        timed!("gradient norm");
        let total = match &self.0 {
            Sums::Whole(whole) => sum_of_squares(whole.sums.values()),
            Sums::Shards(exchange) => exchange.sum_of_squares(),
        };
        total.sqrt()
    }

    /// Takes the gradient of parameter `id`, for the optimizer to use up. None if it has none.
    ///
    /// # Panics
    /// On several ranks, which hold shards.
    pub fn take(&mut self, id: ParameterId) -> Option<Tensor<1>> {
        match &mut self.0 {
            Sums::Whole(whole) => whole.sums.remove(&id),
            Sums::Shards(_) => panic!("{ONE_RANK_ONLY}"),
        }
    }

    /// Takes the gradient of this rank's shard of bucket `bucket`, for the optimizer to use up.
    /// None if it has none.
    ///
    /// # Panics
    /// On one rank, which holds whole gradients.
    pub fn take_shard(&mut self, bucket: usize) -> Option<Tensor<1>> {
        match &mut self.0 {
            Sums::Whole(_) => panic!("one rank holds whole gradients, not shards"),
            Sums::Shards(exchange) => exchange.take_shard(bucket),
        }
    }

    /// The gradient of parameter `id`. None if it has none.
    ///
    /// # Panics
    /// On several ranks, which hold shards.
    pub fn get(&self, id: ParameterId) -> Option<&Tensor<1>> {
        match &self.0 {
            Sums::Whole(whole) => whole.sums.get(&id),
            Sums::Shards(_) => panic!("{ONE_RANK_ONLY}"),
        }
    }
}

const ONE_RANK_ONLY: &str = "several ranks hold shards, not whole gradients";

/// The factor that brings gradients of norm `norm` within `max_norm`, as in torch's
/// `clip_grad_norm_`. `max_norm = 0` means no clipping, as in transformers.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameter::ParameterIds;

    #[test]
    fn sums_and_norm() {
        let device = Device::flex();
        let mut ids = ParameterIds::default();
        let [first, second, third] = [(); 3].map(|()| ids.assign());
        let mut sum = GradientSum::default();
        sum.add(first, Tensor::from_data([1.0f32, 2.0], &device));
        sum.add(first, Tensor::from_data([2.0f32, 2.0], &device));
        sum.add(third, Tensor::from_data([12.0f32], &device));
        assert_eq!(sum.norm(), 13.0);
        assert!(sum.get(second).is_none());
    }

    #[test]
    fn clipping_is_torchs() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
    }
}
