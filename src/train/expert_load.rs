//! The load of the experts in a forward pass, and its loss.
//!
//! Legend: `t` tokens, `x` experts.

use std::sync::Arc;

use crate::model::experts::Routed;

/// What a forward pass needs to measure the load of the experts.
#[derive(Debug, Clone)]
pub struct BalanceInputs {
    /// How often each token counts, `[t]`. A prompt that two sequences share counts twice.
    pub occurrences: Arc<[f32]>,
    /// The gradient of the loss with respect to the load-balancing loss of the batch.
    pub upstream: f64,
}

/// Sums over the tokens and the layers of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoad {
    /// How often each expert was chosen, `[x]`.
    chosen: Vec<f64>,
    /// The sum of each expert's probabilities, `[x]`.
    probs: Vec<f64>,
    /// Tokens times layers.
    rows: f64,
}

impl ExpertLoad {
    /// The load before the first layer.
    pub fn new(experts: usize) -> Self {
        Self { chosen: vec![0.0; experts], probs: vec![0.0; experts], rows: 0.0 }
    }

    /// Adds the choice of one layer. `occurrences` says how often each token counts, `[t]`.
    ///
    /// # Panics
    /// If the layer did not compute all tokens.
    pub fn add(&mut self, routed: &Routed, occurrences: &[f32]) {
        let experts = self.probs.len();
        assert_eq!(routed.probs.len(), occurrences.len() * experts, "all tokens have experts");
        let per_token = routed.chosen.len() / occurrences.len().max(1);
        for (token, count) in occurrences.iter().enumerate() {
            let count = f64::from(*count);
            for expert in &routed.chosen[token * per_token..][..per_token] {
                self.chosen[*expert] += count;
            }
            for (sum, prob) in self.probs.iter_mut().zip(&routed.probs[token * experts..]) {
                *sum += count * f64::from(*prob);
            }
            self.rows += count;
        }
    }

    /// `x · Σ (c / n) (p / n)` over the experts: `c` is how often an expert was chosen, `p` the sum
    /// of its probabilities and `n` the number of tokens times layers. It is that of transformers,
    /// after eq. 4 to 6 of Switch Transformer (arXiv 2101.03961).
    pub fn loss(&self) -> f64 {
        let rows = self.rows.max(1.0);
        let shares = self.chosen.iter().zip(&self.probs);
        let sum: f64 = shares.map(|(chosen, probs)| chosen / rows * (probs / rows)).sum();
        self.probs.len() as f64 * sum
    }

    /// The gradient of `upstream · loss` with respect to the probabilities of a layer, `[t, x]` row
    /// by row. The counts are constants, so it is the same in every layer.
    pub fn gradient(&self, inputs: &BalanceInputs) -> Vec<f32> {
        let rows = self.rows.max(1.0);
        let factor = inputs.upstream * self.probs.len() as f64 / (rows * rows);
        let of_token = |count: &f32| {
            let factor = factor * f64::from(*count);
            self.chosen.iter().map(move |chosen| (factor * chosen) as f32)
        };
        inputs.occurrences.iter().flat_map(of_token).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    /// Two layers of two tokens, the first of which counts twice.
    fn load(change: f32) -> ExpertLoad {
        let layer = |probs: [f32; 6], chosen: [usize; 4]| Routed {
            probs_tx: Tensor::zeros([2, 3], &Device::flex()),
            probs: probs.to_vec(),
            chosen: chosen.to_vec(),
        };
        let mut load = ExpertLoad::new(3);
        load.add(&layer([0.5 + change, 0.3, 0.2, 0.1, 0.2, 0.7], [0, 1, 1, 2]), &[2.0, 1.0]);
        load.add(&layer([0.2, 0.2, 0.6, 0.6, 0.3, 0.1], [1, 2, 0, 1]), &[2.0, 1.0]);
        load
    }

    #[test]
    fn the_loss_is_that_of_the_formula() {
        // Chosen 3, 6 and 3 times in 6 rows; probabilities 2.1, 1.5 and 2.4.
        let expected = 3.0 * (3.0 * 2.1 + 6.0 * 1.5 + 3.0 * 2.4) / 36.0;
        assert!((load(0.0).loss() - expected).abs() < 1e-6, "{}", load(0.0).loss());
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let inputs = BalanceInputs { occurrences: Arc::from([2.0, 1.0]), upstream: 0.5 };
        let gradient = load(0.0).gradient(&inputs);
        let difference = 0.5 * (load(0.125).loss() - load(0.0).loss()) / 0.125;
        assert!((f64::from(gradient[0]) - difference).abs() < 1e-6, "{} {difference}", gradient[0]);
        assert_eq!(gradient[0], 2.0 * gradient[3], "the second token counts once");
    }
}
