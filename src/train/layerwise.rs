//! The backward pass that walks the layers.
//!
//! Forward keeps each layer's input and, without gradient checkpointing, its small autodiff graph.
//! Going back, one layer at a time is differentiated, its gradients handed on, its graph freed. With
//! checkpointing the graphs of the last layers are kept as far as they fit [`KEPT_GRAPH_BYTES`] (they
//! are gone when the first layers' are made again), and beyond that one layer's graph is alive at a time.
//!
//! Legend: `t` tokens, `n` scored tokens, `d` width.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use super::gradients::GradientSum;
use crate::data::ragged::{RaggedBatch, ReadRows};
use crate::kernels::attention::AttentionLayout;
use crate::kernels::linear::linear;
use crate::kernels::linear_logp::{
    HeadGradients, KeptExponentials, TokenScores, token_scores, token_scores_grad,
    token_scores_keeping, token_scores_with_grad,
};
use crate::kernels::rms_norm::rms_norm;
use crate::kernels::{select_rows, timed};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::layer::DecoderLayer;

/// Bytes of layer graphs that gradient checkpointing keeps rather than making them again: what is little
/// next to the weights and the optimizer's state of even a small model.
pub const KEPT_GRAPH_BYTES: usize = 128 << 20;

/// Bytes that the graph of one layer holds for `tokens` tokens, weights apart: its input, both norms,
/// queries, keys, values, the attention's output and sum, gate, up, their product, its output.
pub fn graph_bytes(config: &ModelConfig, tokens: usize, bytes_a_number: usize) -> usize {
    let numbers = 5 * config.hidden_size
        + 2 * (config.query_width() + config.key_width())
        + 3 * config.intermediate_size;
    tokens * numbers * bytes_a_number
}

/// What a forward pass keeps for the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: evaluation. Such a pass cannot be walked back.
    Nothing,
    /// Each layer's input, from which its graph is made again on the way back, and the graphs of the
    /// last layers within [`KEPT_GRAPH_BYTES`] (gradient checkpointing).
    Inputs,
    /// Each layer's autodiff graph.
    Graphs,
}

/// What the forward pass keeps of a layer.
enum Kept {
    /// Its input `[t, d]`: the graph is made again on the way back.
    Input(Box<Tensor<2>>),
    /// Its graph.
    Graph(Box<LayerGraph>),
}

/// What the forward pass keeps of the head.
enum KeptHead {
    Exponentials(Box<KeptExponentials>),
    /// Its gradients for the upstream that was known, which is kept too.
    Gradients(Box<HeadGradients>, Vec<f32>),
}

/// The autodiff graph of one layer, from a tracked input to a tracked output.
struct LayerGraph {
    input_td: Tensor<2>,
    layer: DecoderLayer,
    output_td: Tensor<2>,
}

/// A forward pass that waits to be walked back.
pub struct LayerwisePass<'a> {
    model: &'a Decoder,
    batch: &'a RaggedBatch,
    layout: Arc<AttentionLayout>,
    kept: Vec<Kept>,
    /// Output of the last layer, `[t, d]`; in an evaluation of the rows that are read alone.
    hidden_td: Tensor<2>,
    /// Final norm of the scored rows, `[n, d]`.
    normed_nd: Tensor<2>,
    /// What the head says of the scored tokens.
    pub scores: TokenScores,
    kept_head: Option<KeptHead>,
}

impl<'a> LayerwisePass<'a> {
    /// Runs `batch` through `model`.
    pub fn forward(model: &'a Decoder, batch: &'a RaggedBatch, keep: Keep) -> Self {
        Self::forward_towards(model, batch, keep, None)
    }

    /// [`Self::forward`] for a pass that will be walked back from `upstream` (`[n]`), where that is known before
    /// the log-probs are: the head's gradients are then made on the way forward.
    pub fn forward_towards(
        model: &'a Decoder,
        batch: &'a RaggedBatch,
        keep: Keep,
        upstream: Option<Vec<f32>>,
    ) -> Self {
        let layout = AttentionLayout::new(&model.config.attention_shape(), &batch.segments);
        timed!("layers");
        let mut x_td = model.embed(&batch.ids);
        let mut kept = Vec::with_capacity(model.layers.len());
        let graph = graph_bytes(&model.config, batch.tokens(), model.dtype().size());
        let recomputed = model.layers.len().saturating_sub(KEPT_GRAPH_BYTES / graph.max(1));
        let read = match keep {
            Keep::Nothing => batch.read_rows(),
            Keep::Inputs | Keep::Graphs => ReadRows::all(batch),
        };
        for (index, layer) in model.layers.iter().enumerate() {
            let rows = read.rows.as_deref().filter(|_| index + 1 == model.layers.len());
            let keep = match keep {
                Keep::Inputs if index >= recomputed => Keep::Graphs,
                keep => keep,
            };
            match keep {
                Keep::Nothing => x_td = layer.forward_rows(x_td, &layout, rows),
                Keep::Inputs => {
                    kept.push(Kept::Input(Box::new(x_td.clone())));
                    x_td = layer.forward(x_td, &layout);
                }
                Keep::Graphs => {
                    let graph = LayerGraph::new(layer, x_td, &layout);
                    x_td = graph.output_td.clone().inner();
                    kept.push(Kept::Graph(Box::new(graph)));
                }
            }
        }
        let normed_nd = model.scored_hidden(x_td.clone(), &read.scored);
        let head = model.head().matrix();
        let targets = &batch.targets;
        let (scores, kept_head) = match (keep, upstream) {
            (Keep::Nothing, _) => (token_scores(normed_nd.clone(), head, targets), None),
            (_, None) => {
                let (scores, kept) = token_scores_keeping(normed_nd.clone(), head, targets);
                (scores, Some(KeptHead::Exponentials(Box::new(kept))))
            }
            (_, Some(upstream)) => {
                let (scores, gradients) =
                    token_scores_with_grad(normed_nd.clone(), head, targets, &upstream);
                (scores, Some(KeptHead::Gradients(Box::new(gradients), upstream)))
            }
        };
        Self { model, batch, layout, kept, hidden_td: x_td, normed_nd, scores, kept_head }
    }

    /// Walks back from `upstream`, the gradient of the loss with respect to each scored log-prob
    /// (`[n]`), adding the gradient of every parameter to `sum`.
    pub fn backward(mut self, upstream: &[f32], sum: &mut GradientSum) {
        let mut d_td = self.head_backward(upstream, sum);
        timed!("layers.backward");
        let per_layer = self.model.layers.first().map_or(0, |layer| layer.parameters().len());
        for (index, layer) in self.model.layers.iter().enumerate().rev() {
            let graph = match self.kept.pop().expect("an evaluation pass is not walked back") {
                Kept::Input(x_td) => LayerGraph::new(layer, *x_td, &self.layout),
                Kept::Graph(graph) => *graph,
            };
            d_td = graph.backward(d_td, 1 + index * per_layer, sum);
        }
        self.embedding_backward(d_td, sum);
    }

    /// The batch that was run.
    pub fn batch(&self) -> &RaggedBatch {
        self.batch
    }

    /// Mean logit over the vocabulary at every token of the batch, `[t]`: the final hidden state
    /// times the mean row of the head, so that it needs no logits. For a batch that is read everywhere.
    pub fn mean_logits(&self) -> Vec<f32> {
        assert!(self.batch.reads_everywhere, "the batch does not say that every token is read");
        let everywhere: Vec<usize> = (0..self.batch.tokens()).collect();
        let hidden_td = self.model.scored_hidden(self.hidden_td.clone(), &everywhere);
        let mean_1d = self.model.head().matrix().cast(DType::F32).mean_dim(0);
        let means = linear(hidden_td.cast(DType::F32), mean_1d).into_data();
        means.try_into_vec().expect("the product is float32")
    }

    /// Gradients of head and final norm; returns that of the last layer's output, `[t, d]`.
    fn head_backward(&mut self, upstream: &[f32], sum: &mut GradientSum) -> Tensor<2> {
        let model = self.model;
        let HeadGradients { hidden_nd: d_normed, head_vd: d_head } =
            match self.kept_head.take().expect("an evaluation pass is not walked back") {
                KeptHead::Gradients(gradients, known) => {
                    assert_eq!(known, upstream, "the pass went forward towards another upstream");
                    *gradients
                }
                KeptHead::Exponentials(kept) => token_scores_grad(
                    self.normed_nd.clone(),
                    model.head().matrix(),
                    &self.batch.targets,
                    &self.scores,
                    *kept,
                    upstream,
                ),
            };
        let norm_index = 1 + model.layers.iter().map(|l| l.parameters().len()).sum::<usize>();
        let head_index = if model.lm_head.is_some() { norm_index + 1 } else { 0 };
        sum.add(head_index, d_head.reshape([model.head().len()]).cast(DType::F32));
        let hidden = self.hidden_td.clone().autodiff().require_grad();
        let norm = model.norm.tracked();
        let scored = select_rows(hidden.clone(), &self.batch.scored);
        let normed = rms_norm(scored, norm.value.clone(), model.config.rms_norm_eps);
        let mut gradients = (normed * d_normed.autodiff()).backward();
        sum.add(norm_index, norm.take_gradient(&mut gradients));
        hidden.grad_remove(&mut gradients).unwrap_or_else(|| self.hidden_td.zeros_like())
    }

    fn embedding_backward(&self, d_td: Tensor<2>, sum: &mut GradientSum) {
        timed!("embedding.backward");
        sum.add_rows(self.model.embed_tokens.len(), &self.batch.ids, d_td);
    }
}

impl LayerGraph {
    fn new(layer: &DecoderLayer, x_td: Tensor<2>, layout: &Arc<AttentionLayout>) -> Self {
        let input_td = x_td.autodiff().require_grad();
        let layer = layer.tracked();
        let output_td = layer.forward(input_td.clone(), layout);
        Self { input_td, layer, output_td }
    }

    /// Differentiates the layer; `first` is the index of its first parameter in the model.
    fn backward(self, d_td: Tensor<2>, first: usize, sum: &mut GradientSum) -> Tensor<2> {
        let upstream = d_td.clone().autodiff();
        // The gradient of a tensor is that of its sum.
        let mut gradients = (self.output_td * upstream).backward();
        for (offset, parameter) in self.layer.parameters().into_iter().enumerate() {
            sum.add(first + offset, parameter.take_gradient(&mut gradients));
        }
        self.input_td.grad_remove(&mut gradients).unwrap_or_else(|| d_td.zeros_like())
    }
}
