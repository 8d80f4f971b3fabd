//! Sparse experts (Mixtral, arXiv 2401.04088): a router chooses a few MLPs for each token.
//!
//! The router's logits become probabilities by a softmax in float32 over all experts. The most
//! probable experts of a token compute it, and their outputs are added with the probabilities,
//! divided by the sum of those of the chosen experts, as weights.
//!
//! The tokens of an expert are selected from the ragged batch, computed together and put back. The
//! result of a token does not depend on the other tokens: its sum goes over its experts in
//! ascending order. The choice is made on the host, so a GPU waits for it once in each layer.
//!
//! Legend: `t` tokens, `d` width, `f` feed-forward width, `x` experts, `k` experts of a token, `n`
//! rows that the experts compute.

use burn::tensor::{DType, Tensor, TensorData};

use super::config::ModelConfig;
use super::linear::Linear;
use crate::kernels::swiglu::swiglu;
use crate::kernels::{host, select_rows, timed};

/// The router and the experts of one layer.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[x, d]`.
    pub router: Linear,
    pub experts: Vec<Expert>,
    /// `k`.
    pub per_token: usize,
}

/// One expert: `down(silu(gate(x)) · up(x))`.
#[derive(Debug, Clone)]
pub struct Expert {
    /// `w1`, `[f, d]`.
    pub gate: Linear,
    /// `w2`, `[d, f]`.
    pub down: Linear,
    /// `w3`, `[f, d]`.
    pub up: Linear,
}

/// The choice of experts for the tokens of a batch.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The probabilities of all experts in float32, `[t, x]`.
    pub probs_tx: Tensor<2>,
    /// The values of `probs_tx`, row by row.
    pub probs: Vec<f32>,
    /// The chosen experts of each token in ascending order, `[t, k]` row by row.
    pub chosen: Vec<usize>,
}

impl Experts {
    /// Builds router and experts. `linear(name, out, in, has_bias)` makes each linear layer, in the
    /// order of [`Self::linears`].
    ///
    /// # Errors
    /// The first error of `linear`.
    pub fn build<E>(
        config: &ModelConfig,
        linear: &mut impl FnMut(&str, usize, usize, bool) -> Result<Linear, E>,
    ) -> Result<Self, E> {
        const BLOCK: &str = "block_sparse_moe";
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let sparse = config.family.experts.as_ref();
        let [count, per_token] = sparse.map_or([0; 2], |sparse| [sparse.count, sparse.per_token]);
        let router = linear(&format!("{BLOCK}.gate"), count, d, false)?;
        let expert = |index: usize| {
            let mut part = |name: &str, out, width| {
                linear(&format!("{BLOCK}.experts.{index}.{name}"), out, width, false)
            };
            Ok(Expert { gate: part("w1", f, d)?, down: part("w2", d, f)?, up: part("w3", f, d)? })
        };
        let experts = (0..count).map(expert).collect::<Result<_, E>>()?;
        Ok(Self { router, experts, per_token })
    }

    /// `[t, d]` → `[t, d]`, and the choice of experts.
    pub fn forward(&self, x_td: Tensor<2>) -> (Tensor<2>, Routed) {
        timed!("experts");
        let routed = self.route(x_td.clone());
        let groups = Groups::of(&routed.chosen, self.experts.len(), self.per_token);
        let outputs = groups.rows.iter().zip(&self.experts).filter(|(rows, _)| !rows.is_empty());
        let outputs = outputs.map(|(rows, expert)| {
            let rows = select_rows(x_td.clone(), rows);
            expert.forward(rows)
        });
        let outputs_nd = Tensor::cat(outputs.collect(), 0);
        let weights_n1 = self.weights(&routed, &groups);
        let weighted_nd = (outputs_nd.cast(DType::F32) * weights_n1).cast(x_td.dtype());
        let nth = |nth: usize| select_rows(weighted_nd.clone(), &groups.places(nth));
        let out_td = (1..self.per_token).fold(nth(0), |sum, index| sum + nth(index));
        (out_td, routed)
    }

    fn route(&self, x_td: Tensor<2>) -> Routed {
        let logits_tx = self.router.forward(x_td).cast(DType::F32);
        let highest_t1 = logits_tx.clone().max_dim(1).detach();
        let exponentials_tx = (logits_tx - highest_t1).exp();
        let probs_tx = exponentials_tx.clone() / exponentials_tx.sum_dim(1);
        let values = host::read(probs_tx.clone()).try_into_vec();
        let probs: Vec<f32> = values.expect("the probabilities are float32");
        let rows = probs.chunks_exact(self.experts.len());
        let chosen = rows.flat_map(|row| most_probable(row, self.per_token)).collect();
        Routed { probs_tx, probs, chosen }
    }

    /// The weight of each row of `groups`, `[n, 1]`.
    fn weights(&self, routed: &Routed, groups: &Groups) -> Tensor<2> {
        let (count, tokens) = (self.experts.len(), groups.tokens());
        let mut is_chosen = vec![0.0f32; tokens * count];
        for (token, chosen) in routed.chosen.chunks_exact(self.per_token).enumerate() {
            chosen.iter().for_each(|expert| is_chosen[token * count + expert] = 1.0);
        }
        let device = routed.probs_tx.device();
        let is_chosen = TensorData::new(is_chosen, [tokens, count]);
        let is_chosen_tx: Tensor<2> = host::upload(is_chosen, &device, DType::F32);
        let kept_tx = routed.probs_tx.clone() * is_chosen_tx;
        let weights_tx = kept_tx.clone() / kept_tx.sum_dim(1);
        let of_group = |(expert, rows): (usize, &Vec<usize>)| -> Vec<usize> {
            rows.iter().map(|row| row * count + expert).collect()
        };
        let places: Vec<usize> = groups.rows.iter().enumerate().flat_map(of_group).collect();
        select_rows(weights_tx.reshape([tokens * count, 1]), &places)
    }

    /// The router, then gate, down and up of each expert.
    pub fn linears(&self) -> Vec<&Linear> {
        let experts = self.experts.iter();
        let of_experts = experts.flat_map(|expert| [&expert.gate, &expert.down, &expert.up]);
        [&self.router].into_iter().chain(of_experts).collect()
    }

    /// [`Self::linears`], mutable.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let experts = self.experts.iter_mut();
        let of_experts =
            experts.flat_map(|expert| [&mut expert.gate, &mut expert.down, &mut expert.up]);
        [&mut self.router].into_iter().chain(of_experts).collect()
    }
}

impl Expert {
    /// `[rows, d]` → `[rows, d]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(swiglu(self.gate.forward(x.clone()), self.up.forward(x)))
    }
}

/// The `count` largest of `probs` in the order of their indices. Of equal ones the first are
/// taken.
fn most_probable(probs: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probs.len()).collect();
    // The sort is stable.
    order.sort_by(|a, b| probs[*b].total_cmp(&probs[*a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The rows that the experts compute.
struct Groups {
    /// The tokens of each expert in ascending order. The token of an expert that has only one is
    /// there twice, if the batch has other tokens: a product of a single row is summed in another
    /// order than one of several rows, and the result of a token must not depend on the others.
    rows: Vec<Vec<usize>>,
    /// For each token the rows of its experts, in the order of the experts, `[t, k]` row by row.
    /// Rows are counted over all experts.
    of_tokens: Vec<usize>,
    per_token: usize,
}

impl Groups {
    fn of(chosen: &[usize], experts: usize, per_token: usize) -> Self {
        let tokens = chosen.len() / per_token;
        let mut rows = vec![Vec::new(); experts];
        for (place, expert) in chosen.iter().enumerate() {
            rows[*expert].push(place / per_token);
        }
        for rows in rows.iter_mut().filter(|rows| rows.len() == 1 && tokens > 1) {
            rows.push(rows[0]);
        }
        let mut next: Vec<usize> = Vec::with_capacity(experts);
        let mut first = 0;
        for rows in &rows {
            next.push(first);
            first += rows.len();
        }
        let place = |expert: &usize| {
            next[*expert] += 1;
            next[*expert] - 1
        };
        Self { of_tokens: chosen.iter().map(place).collect(), rows, per_token }
    }

    fn tokens(&self) -> usize {
        self.of_tokens.len() / self.per_token
    }

    /// The row of each token's expert number `nth`, `[t]`.
    fn places(&self, nth: usize) -> Vec<usize> {
        self.of_tokens.iter().copied().skip(nth).step_by(self.per_token).collect()
    }
}

#[cfg(test)]
mod tests;
