//! The load-balancing loss of sparse experts in training and evaluation.
//!
//! The loss of a micro-batch is computed over all its tokens and all layers, and added to the
//! objective with a weight, as in TRL: the loss of a step has the mean over its micro-batches.

use super::expert_load::BalanceInputs;
use super::layerwise::LayerwisePass;
use super::task::{Measured, Metric, Split, Task};

/// TRL's name of the metric.
const METRIC: &str = "aux_loss";

/// How a run uses the load-balancing loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// Its weight, `router_aux_loss_coef`.
    pub coef: f64,
    /// Whether it is a part of the loss. Otherwise it is only measured.
    pub is_in_loss: bool,
}

impl Balance {
    /// The weight of one of `micro_batches` in the loss of their step.
    fn weight(self, micro_batches: usize) -> f64 {
        if self.is_in_loss { self.coef / micro_batches as f64 } else { 0.0 }
    }

    /// The inputs of the forward pass over the rows of one of `micro_batches`.
    pub fn inputs(
        self,
        task: &dyn Task,
        split: Split,
        rows: &[usize],
        micro_batches: usize,
    ) -> BalanceInputs {
        let occurrences = task.occurrences(split, rows).into();
        BalanceInputs { occurrences, upstream: self.weight(micro_batches) }
    }

    /// Adds the loss of `pass`, over one of `micro_batches` of `rows` rows, to what was measured.
    pub fn add_to(
        self,
        measured: &mut Measured,
        pass: &LayerwisePass,
        rows: usize,
        micro_batches: usize,
    ) {
        let Some(value) = pass.balance_loss() else { return };
        measured.loss += self.weight(micro_batches) * value;
        measured.metrics.push(Metric { name: METRIC, value, of: rows, rows });
    }
}
