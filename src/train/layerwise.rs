//! The layer-wise backward pass.
//!
//! The forward pass keeps each layer's input and, without gradient checkpointing, its small
//! autodiff graph. The backward pass differentiates one layer at a time, from the last to the
//! first: it hands the layer's gradients on and frees its graph. With gradient checkpointing, only
//! the graphs of the last layers that fit into [`KEPT_GRAPH_BYTES`] are kept. The backward pass
//! frees them first. Then it computes the graph of each remaining layer again, one at a time.
//!
//! Gradients are computed for trainable parameters only. Layers below the lowest trained one have
//! no graph, and the backward pass ends before them.
//!
//! Legend: `t` tokens, `n` scored tokens, `d` width, `x` experts.

use std::borrow::Cow;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};

use super::expert_load::{BalanceInputs, ExpertLoad};
use super::gradients::GradientSum;
use super::noise::EmbeddingNoise;
use crate::data::ragged::{RaggedBatch, ReadRows};
use crate::kernels::attention::AttentionLayout;
use crate::kernels::dropout::TokenKeys;
use crate::kernels::linear::linear;
use crate::kernels::linear_logp::{
    HeadGradients, KeptExponentials, TokenScores, token_scores, token_scores_grad,
    token_scores_keeping, token_scores_with_grad,
};
use crate::kernels::{host, select_rows, timed};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::experts::Routed;
use crate::model::layer::DecoderLayer;
use crate::objective::label_smoothing::add_smoothing;

/// Bytes of layer graphs that gradient checkpointing keeps instead of computing them again. This is
/// little compared with the weights and the optimizer's state of even a small model.
pub const KEPT_GRAPH_BYTES: usize = 128 << 20;

/// Bytes that the graph of one layer holds for `tokens` tokens, without the weights: its input,
/// both norms, queries, keys, values, the attention's output and sum, gate, up, their product (of
/// each expert of a token), its output.
pub fn graph_bytes(config: &ModelConfig, tokens: usize, bytes_a_number: usize) -> usize {
    let numbers = 5 * config.hidden_size
        + 2 * (config.query_width() + config.key_width())
        + config.mlp_graph_width()
        + config.further_graph_width();
    tokens.saturating_mul(numbers * bytes_a_number)
}

/// The values that a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing, for evaluation. No backward pass can follow.
    Nothing,
    /// Each layer's input, from which the backward pass computes the layer's graph again, and the
    /// graphs of the last layers within [`KEPT_GRAPH_BYTES`] (gradient checkpointing).
    Inputs,
    /// Each layer's autodiff graph.
    Graphs,
}

/// The values of a layer that the forward pass keeps.
enum Kept {
    /// Its input `[t, d]`: the backward pass computes the graph again.
    Input(Box<Tensor<2>>),
    /// Its graph.
    Graph(Box<LayerGraph>),
}

/// The values of the head that the forward pass keeps.
enum KeptHead {
    Exponentials(Box<KeptExponentials>),
    /// Its gradients, and the upstream gradient that they were computed for.
    Gradients(Box<HeadGradients>, Vec<f32>),
}

/// The autodiff graph of one layer, from its input to its output.
struct LayerGraph {
    input_td: Tensor<2>,
    /// Whether the gradient of the input is needed.
    tracks_input: bool,
    layer: DecoderLayer,
    output_td: Tensor<2>,
    /// The choice of experts, if the layer has any.
    routed: Option<Routed>,
}

/// What a training step adds to a forward pass.
#[derive(Debug, Clone, Default)]
pub struct StepInputs {
    /// The gradient of the loss with respect to each scored log-prob (`[n]`), if it does not depend
    /// on the log-probs. Then the forward pass computes the head's gradients too.
    pub upstream: Option<Vec<f32>>,
    /// The keys of the tokens in the dropout of adapters, `[t]`; `None` without dropout.
    pub dropout: Option<Arc<TokenKeys>>,
    /// Noise on the embeddings.
    pub noise: Option<EmbeddingNoise>,
    /// The gradient of the loss with respect to the logit of each target minus the mean logit:
    /// label smoothing.
    pub smoothing: Option<f32>,
    /// The load-balancing loss of sparse experts. The batch must say that every token is read.
    pub balance: Option<BalanceInputs>,
}

/// A forward pass that waits for its backward pass.
pub struct LayerwisePass<'a> {
    model: &'a Decoder,
    batch: &'a RaggedBatch,
    attention: Arc<AttentionLayout>,
    /// See [`StepInputs::dropout`].
    tokens: Option<Arc<TokenKeys>>,
    /// See [`StepInputs::smoothing`].
    smoothing: Option<f32>,
    /// The inputs of the load-balancing loss, and the load of the experts.
    load: Option<(BalanceInputs, ExpertLoad)>,
    /// One for each layer that the backward pass enters, from the lowest to the last.
    kept: Vec<Kept>,
    /// Output of the last layer, `[t, d]`; in an evaluation only the rows that are read.
    hidden_td: Tensor<2>,
    /// Final norm of the scored rows, `[n, d]`.
    normed_nd: Tensor<2>,
    /// The head's scores of the scored tokens.
    pub scores: TokenScores,
    kept_head: Option<KeptHead>,
}

impl<'a> LayerwisePass<'a> {
    /// Runs `batch` through `model`.
    pub fn forward(model: &'a Decoder, batch: &'a RaggedBatch, keep: Keep) -> Self {
        Self::forward_towards(model, batch, keep, None)
    }

    /// [`Self::forward`] with a known gradient of the log-probs, see [`StepInputs::upstream`].
    pub fn forward_towards(
        model: &'a Decoder,
        batch: &'a RaggedBatch,
        keep: Keep,
        upstream: Option<Vec<f32>>,
    ) -> Self {
        Self::forward_step(model, batch, keep, StepInputs { upstream, ..StepInputs::default() })
    }

    /// [`Self::forward`] of a training step.
    pub fn forward_step(
        model: &'a Decoder,
        batch: &'a RaggedBatch,
        keep: Keep,
        inputs: StepInputs,
    ) -> Self {
        let StepInputs { upstream, dropout: tokens, noise, smoothing, balance } = inputs;
        let experts = model.config.family.experts.as_ref().map_or(0, |experts| experts.count);
        let mut load = balance.map(|inputs| (inputs, ExpertLoad::new(experts)));
        let mut measure = |routed: Option<&Routed>| {
            if let (Some((inputs, load)), Some(routed)) = (&mut load, routed) {
                load.add(routed, &inputs.occurrences);
            }
        };
        let attention = AttentionLayout::new(&model.config.attention_shape(), &batch.segments);
        timed!("layers");
        let mut x_td = embedded(model, batch, noise.as_ref());
        let mut kept = Vec::with_capacity(model.layers.len());
        let graph = graph_bytes(&model.config, batch.tokens(), model.dtype().size());
        let lowest = model.lowest_trained_layer();
        let recomputed = model.layers.len().saturating_sub(KEPT_GRAPH_BYTES / graph.max(1));
        let read = match keep {
            Keep::Nothing => batch.read_rows(),
            Keep::Inputs | Keep::Graphs => ReadRows::all(batch),
        };
        for (index, layer) in model.layers.iter().enumerate() {
            let layer = &*masked(layer, tokens.as_ref());
            let rows = read.rows.as_deref().filter(|_| index + 1 == model.layers.len());
            let keep = match keep {
                _ if index < lowest => Keep::Nothing,
                Keep::Inputs if index >= recomputed => Keep::Graphs,
                keep => keep,
            };
            match keep {
                Keep::Nothing => {
                    let (out_td, routed) = layer.forward_routed(x_td, &attention, rows);
                    measure(routed.as_ref());
                    x_td = out_td;
                }
                Keep::Inputs => {
                    kept.push(Kept::Input(Box::new(x_td.clone())));
                    let (out_td, routed) = layer.forward_routed(x_td, &attention, None);
                    measure(routed.as_ref());
                    x_td = out_td;
                }
                Keep::Graphs => {
                    let tracks_input = model.is_trained_below(index);
                    let graph = LayerGraph::new(layer, x_td, tracks_input, &attention);
                    measure(graph.routed.as_ref());
                    x_td = graph.output_td.clone().inner();
                    kept.push(Kept::Graph(Box::new(graph)));
                }
            }
        }
        let normed_nd = model.scored_hidden(x_td.clone(), &read.scored);
        let (head, trains_head) = (model.output_head(), model.head().trainable);
        let targets = &batch.targets;
        let (scores, kept_head) = match (keep, upstream) {
            (Keep::Nothing, _) => (token_scores(normed_nd.clone(), head, targets), None),
            (_, None) => {
                let (scores, kept) = token_scores_keeping(normed_nd.clone(), head, targets);
                (scores, Some(KeptHead::Exponentials(Box::new(kept))))
            }
            (_, Some(upstream)) => {
                let (scores, gradients) = token_scores_with_grad(
                    normed_nd.clone(),
                    head,
                    targets,
                    &upstream,
                    trains_head,
                );
                (scores, Some(KeptHead::Gradients(Box::new(gradients), upstream)))
            }
        };
        let hidden_td = x_td;
        Self {
            model,
            batch,
            attention,
            tokens,
            smoothing,
            load,
            kept,
            hidden_td,
            normed_nd,
            scores,
            kept_head,
        }
    }

    /// Runs the backward pass from `upstream`, the gradient of the loss with respect to each scored
    /// log-prob (`[n]`), and adds the gradient of every trainable parameter to `sum`.
    pub fn backward(mut self, upstream: &[f32], sum: &mut GradientSum) {
        let Some(mut d_td) = self.head_backward(upstream, sum) else { return };
        timed!("layers.backward");
        let d_probs_tx = self.balance_gradient();
        let lowest = self.model.lowest_trained_layer();
        for (index, layer) in self.model.layers.iter().enumerate().skip(lowest).rev() {
            let graph = match self.kept.pop().expect(NOTHING_KEPT) {
                Kept::Input(x_td) => {
                    let tracks_input = self.model.is_trained_below(index);
                    let layer = masked(layer, self.tokens.as_ref());
                    LayerGraph::new(&layer, *x_td, tracks_input, &self.attention)
                }
                Kept::Graph(graph) => *graph,
            };
            let Some(d_input) = graph.backward(d_td, d_probs_tx.as_ref(), sum) else { return };
            d_td = d_input;
        }
        self.embedding_backward(d_td, sum);
    }

    /// The load-balancing loss of the batch; `None` if the step has none.
    pub fn balance_loss(&self) -> Option<f64> {
        self.load.as_ref().map(|(_, load)| load.loss())
    }

    /// The gradient of the load-balancing loss with respect to the probabilities of each layer's
    /// experts, `[t, x]` in float32; `None` if the loss has no such part.
    fn balance_gradient(&self) -> Option<Tensor<2>> {
        let (inputs, load) = self.load.as_ref().filter(|(inputs, _)| inputs.upstream != 0.0)?;
        let values = load.gradient(inputs);
        let tokens = self.batch.tokens();
        let shape = [tokens, values.len() / tokens.max(1)];
        let device = self.model.device();
        Some(host::upload(TensorData::new(values, shape), &device, DType::F32))
    }

    /// The batch that was run.
    pub fn batch(&self) -> &RaggedBatch {
        self.batch
    }

    /// Mean logit over the vocabulary at every token of the batch, `[t]`: the final hidden state
    /// times the mean row of the head, so that no logits are formed. Logits with a soft cap are
    /// formed, in chunks.
    ///
    /// # Panics
    /// If the batch does not say that every token is read.
    pub fn mean_logits(&self) -> Vec<f32> {
        assert!(self.batch.reads_everywhere, "the batch does not say that every token is read");
        let everywhere: Vec<usize> = (0..self.batch.tokens()).collect();
        let hidden_td = self.model.scored_hidden(self.hidden_td.clone(), &everywhere);
        if self.model.config.family.logits_softcap.is_some() {
            let any_target = vec![0; everywhere.len()];
            return token_scores(hidden_td, self.model.output_head(), &any_target).mean_logit;
        }
        let mean_1d = self.model.head().matrix().cast(DType::F32).mean_dim(0);
        let means = host::read(linear(hidden_td.cast(DType::F32), mean_1d));
        means.try_into_vec().expect("the product is float32")
    }

    /// Computes the gradients of head and final norm. Returns the gradient of the last layer's
    /// output, `[t, d]`, if it depends on a trainable parameter.
    fn head_backward(&mut self, upstream: &[f32], sum: &mut GradientSum) -> Option<Tensor<2>> {
        let (model, head) = (self.model, self.model.head());
        let targets = &self.batch.targets;
        let mut gradients = match self.kept_head.take().expect(NOTHING_KEPT) {
            KeptHead::Gradients(gradients, known) => {
                assert_eq!(known, upstream, "the forward pass was given another upstream");
                *gradients
            }
            KeptHead::Exponentials(kept) => token_scores_grad(
                self.normed_nd.clone(),
                model.output_head(),
                targets,
                &self.scores,
                *kept,
                upstream,
                head.trainable,
            ),
        };
        if let Some(upstream) = self.smoothing {
            let normed_nd = &self.normed_nd;
            gradients = add_smoothing(gradients, normed_nd, head.matrix(), targets, upstream);
        }
        let HeadGradients { hidden_nd: d_normed, head_vd: d_head } = gradients;
        if let Some(d_head) = d_head {
            sum.add(head.id, d_head.reshape([head.len()]));
        }
        let tracks_hidden = model.is_trained_below(model.layers.len());
        let trains_norm = model.norm.parameters().any(|parameter| parameter.trainable);
        if !tracks_hidden && !trains_norm {
            return None;
        }
        let hidden = leaf_if(tracks_hidden, self.hidden_td.clone());
        let norm = model.norm.tracked();
        let scored = select_rows(hidden.clone(), &self.batch.scored);
        let normed = model.final_norm(scored, &norm);
        let mut gradients = (normed * d_normed.autodiff()).backward();
        for parameter in norm.parameters().filter(|parameter| parameter.trainable) {
            sum.add(parameter.id, parameter.take_gradient(&mut gradients));
        }
        let d_hidden = || hidden.grad_remove(&mut gradients);
        tracks_hidden.then(d_hidden).map(|d_td| d_td.unwrap_or_else(|| self.hidden_td.zeros_like()))
    }

    fn embedding_backward(&self, d_td: Tensor<2>, sum: &mut GradientSum) {
        timed!("embedding.backward");
        let d_td = match self.model.config.family.embedding_multiplier {
            1.0 => d_td,
            multiplier => d_td.mul_scalar(multiplier),
        };
        sum.add_rows(&self.model.embed_tokens, &self.batch.ids, d_td);
    }
}

const NOTHING_KEPT: &str = "an evaluation keeps nothing for a backward pass";

/// The input of the first layer, `[t, d]`, with noise if a step has any.
fn embedded(model: &Decoder, batch: &RaggedBatch, noise: Option<&EmbeddingNoise>) -> Tensor<2> {
    let x_td = model.embed(&batch.ids);
    let Some(noise) = noise else { return x_td };
    let noise_td = noise.tensor(x_td.dims()[1], &x_td.device(), x_td.dtype());
    x_td + noise_td.mul_scalar(model.config.family.noise_multiplier())
}

/// The layer with the dropout of its adapters, if the tokens have keys.
fn masked<'l>(layer: &'l DecoderLayer, tokens: Option<&Arc<TokenKeys>>) -> Cow<'l, DecoderLayer> {
    match tokens {
        Some(tokens) => Cow::Owned(layer.with_masks(tokens)),
        None => Cow::Borrowed(layer),
    }
}

/// A tensor on the autodiff device, as a leaf of the graph or as a constant.
fn leaf_if(is_leaf: bool, x_td: Tensor<2>) -> Tensor<2> {
    let x_td = x_td.autodiff();
    if is_leaf { x_td.require_grad() } else { x_td }
}

impl LayerGraph {
    fn new(
        layer: &DecoderLayer,
        x_td: Tensor<2>,
        tracks_input: bool,
        attention: &Arc<AttentionLayout>,
    ) -> Self {
        let input_td = leaf_if(tracks_input, x_td);
        let layer = layer.tracked();
        let (output_td, routed) = layer.forward_routed(input_td.clone(), attention, None);
        Self { input_td, tracks_input, layer, output_td, routed }
    }

    /// Differentiates the layer. `d_probs_tx` is the gradient of its experts' probabilities,
    /// `[t, x]`, if the loss has a part of them. Returns the gradient of the layer's input,
    /// `[t, d]`, if that is needed.
    fn backward(
        self,
        d_td: Tensor<2>,
        d_probs_tx: Option<&Tensor<2>>,
        sum: &mut GradientSum,
    ) -> Option<Tensor<2>> {
        let upstream = d_td.clone().autodiff();
        // `backward` differentiates the sum of a tensor. Through the product with `upstream`, the
        // gradient of the output is `upstream`.
        let product_td = self.output_td * upstream;
        let mut gradients = match (self.routed, d_probs_tx) {
            (Some(routed), Some(d_probs_tx)) => {
                let of_probs = (routed.probs_tx * d_probs_tx.clone().autodiff()).sum();
                (product_td.sum().cast(DType::F32) + of_probs).backward()
            }
            _ => product_td.backward(),
        };
        for parameter in self.layer.parameters().into_iter().filter(|p| p.trainable) {
            sum.add(parameter.id, parameter.take_gradient(&mut gradients));
        }
        let d_input = || self.input_td.grad_remove(&mut gradients);
        self.tracks_input.then(d_input).map(|d_input| d_input.unwrap_or_else(|| d_td.zeros_like()))
    }
}

#[cfg(test)]
mod tests;
