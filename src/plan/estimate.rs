//! Memory, traffic and operations of a training step, computed from the shapes of model and batch.
//! Nothing is loaded.
//!
//! The estimate follows the step. The [layer-wise pass](crate::train::layerwise) keeps the inputs
//! and autodiff graphs of layers, [`linear_logp`](crate::kernels::linear_logp) limits the logits
//! that exist at a time, and the optimizer comes last. Ranks share the state as in ZeRO-2
//! (Rajbhandari et al., arXiv 1910.02054), layer by layer: every rank holds all weights, and a
//! share of the float32 gradients and of the optimizer state.

use std::sync::Arc;

use burn::tensor::DType;

use super::quantized::{dequantized_bytes, weight_bytes};
use crate::data::ragged::RaggedBatch;
use crate::kernels::{Form, attention, linear_logp};
use crate::model::adapter::LoraConfig;
use crate::model::adapter::peft::adapter_parameters;
use crate::model::config::ModelConfig;
use crate::model::parameter::Parameter;
use crate::model::weights::expected_parameters;
use crate::parallel::buckets::Layout;
use crate::recipe::Quantization;
use crate::train::layerwise::{KEPT_GRAPH_BYTES, graph_bytes};

/// Bytes of a float32.
const F32: f64 = 4.0;
/// Memory between allocated blocks that stays unused because the blocks differ in size, as a share
/// of all memory that a step allocates and frees. Measured on the CPU with
/// `scripts/memory_check.py`.
const GAPS: f64 = 0.15;

/// The size of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchSize {
    /// Tokens that the model computes; a shared prompt counts once.
    pub tokens: usize,
    /// Tokens whose log-prob is computed.
    pub scored: usize,
    /// `Σ queries · keys` over the segments: the elements of all score matrices of one attention
    /// head.
    pub scores: usize,
}

impl BatchSize {
    /// A batch of `sequences` that all have `length` tokens and share no prompt: an upper bound.
    pub fn padded(sequences: usize, length: usize) -> Self {
        let tokens = sequences.saturating_mul(length);
        Self { tokens, scored: tokens, scores: tokens.saturating_mul(length) }
    }

    /// The size of a batch with half as many rows.
    pub fn halved(self) -> Self {
        let half = |n: usize| n.div_ceil(2);
        Self { tokens: half(self.tokens), scored: half(self.scored), scores: half(self.scores) }
    }

    /// The size of `batch`.
    pub fn of(batch: &RaggedBatch) -> Self {
        let keys = |segment| -> usize {
            batch.segments.ancestors(segment).iter().map(|ancestor| ancestor.len).sum()
        };
        let scores = batch.segments.iter().map(|s| s.len * (s.len + keys(s))).sum();
        Self { tokens: batch.tokens(), scored: batch.scored.len(), scores }
    }
}

impl std::ops::Add for BatchSize {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            scored: self.scored + other.scored,
            scores: self.scores + other.scores,
        }
    }
}

/// Everything that the memory and the work of a run depend on.
#[derive(Debug, Clone)]
pub struct Workload<'a> {
    pub config: &'a ModelConfig,
    /// Bytes of one number in the model's compute type: 2 or 4.
    pub dtype_bytes: usize,
    /// How the linear layers are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// The form of the operations that run. The graphs of composed ones keep more.
    pub form: Form,
    /// Whether the graph of a layer keeps the score matrices of attention.
    pub keeps_scores: bool,
    pub ranks: usize,
    /// The largest micro-batch of one rank.
    pub batch: BatchSize,
    /// Micro-batches of a step on one rank.
    pub accumulation: usize,
    /// The type in which ranks exchange gradients.
    pub reduce: DType,
    pub gradient_checkpointing: bool,
    /// Whether the gradient of the loss with respect to the log-probs is known before the forward
    /// pass, as in SFT. Then nothing of the head is kept for the backward pass.
    pub upstream_is_known: bool,
    /// float32 values that the optimizer keeps for each weight: 2 for Adam, 1 for RMSprop.
    pub moments: usize,
    /// Whether a reference model stays in memory during training: one that follows the policy does,
    /// a frozen one does not.
    pub reference_is_resident: bool,
    /// The largest batch of an evaluation; `None` if the run does not evaluate.
    pub evaluation: Option<BatchSize>,
    /// The largest batch of the reference pass; `None` without a frozen reference.
    pub reference_pass: Option<BatchSize>,
    /// Whether the frozen reference has weights of its own, which are in memory beside the policy's
    /// during the reference pass.
    pub reference_has_own_weights: bool,
    /// The adapter that is trained; `None` if all weights are. Its targets must fit the model.
    pub adapter: Option<&'a LoraConfig>,
}

/// One use of memory on a rank, at the peak.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryItem {
    pub name: &'static str,
    pub bytes: f64,
    /// Whether the memory is used all the time, whatever the batch.
    pub is_state: bool,
}

/// The memory of one rank in a training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub items: Vec<MemoryItem>,
}

impl Memory {
    /// The sum of all items. They are not in use at the same time, but the allocator keeps freed
    /// blocks, and these seldom fit what is allocated next.
    pub fn peak(&self) -> f64 {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// The sum of the items that do not depend on the batch.
    pub fn state(&self) -> f64 {
        self.items.iter().filter(|item| item.is_state).map(|item| item.bytes).sum()
    }

    /// Gradients and their buffers, which a step frees at its end.
    fn gradients(&self) -> f64 {
        self.bytes_of("gradients") + self.bytes_of("gradient buffers")
    }

    /// Bytes of the item `name`; 0 if no such item exists.
    pub fn bytes_of(&self, name: &str) -> f64 {
        self.items.iter().find(|item| item.name == name).map_or(0.0, |item| item.bytes)
    }
}

impl Workload<'_> {
    fn parameters(&self) -> f64 {
        self.config.parameters() as f64
    }

    fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// The parameters of the adapter, in the order of the model. Empty if all weights are trained.
    fn adapter_parameters(&self) -> Vec<Parameter> {
        let config = || Arc::new(self.config.clone());
        let parameters = self.adapter.map(|adapter| adapter_parameters(&config(), adapter));
        parameters.and_then(Result::ok).unwrap_or_default()
    }

    /// The number of weights that are trained.
    fn trained(&self) -> f64 {
        match self.adapter {
            None => self.parameters(),
            Some(_) => self.adapter_parameters().iter().map(|p| p.len() as f64).sum(),
        }
    }

    /// Bytes that the adapters of one layer keep in its graph: the narrow products in float32, and
    /// with dropout the inputs after it.
    fn adapter_graph(&self) -> f64 {
        let Some(adapter) = self.adapter else { return 0.0 };
        let parameters = self.adapter_parameters();
        let numbers_of = |parameter: &Parameter| {
            let (r, width) = (parameter.shape[0], parameter.shape[1]);
            2 * r + if adapter.dropout > 0.0 { width } else { 0 }
        };
        let a = parameters.iter().filter(|p| p.name.ends_with(".lora_A.weight"));
        let numbers = a.map(numbers_of).sum::<usize>() as f64 / self.layers() as f64;
        self.batch.tokens as f64 * numbers * F32
    }

    /// Bytes of quantized weights as numbers, while `graphs` graphs of layers exist.
    fn dequantized(&self, graphs: usize) -> f64 {
        match self.quantization {
            None => 0.0,
            Some(_) => dequantized_bytes(self.config, self.form, self.dtype_bytes, graphs),
        }
    }

    /// Bytes of an activation `[tokens, columns]` of the largest micro-batch.
    fn activation(&self, columns: usize) -> f64 {
        self.batch.tokens as f64 * (columns * self.dtype_bytes) as f64
    }

    /// Bytes that the graph of one layer keeps, without the score matrices of attention. See
    /// [`graph_bytes`]; the output of a layer is counted once, as the input of the next one.
    /// Composed norms also keep their input in float32 and their product. Composed attention keeps
    /// rotated queries and keys in float32, and a composed SwiGLU keeps five values.
    fn layer_graph(&self) -> f64 {
        let c = self.config;
        let heads = c.query_width() + c.key_width();
        let (adapters, further) = (self.adapter_graph(), c.further_graph_width());
        let mlp = c.mlp_graph_width();
        if self.form != Form::Composed {
            let own = 4 * c.hidden_size + 2 * heads + mlp + further;
            return adapters + self.activation(own);
        }
        let own = self.activation(5 * c.hidden_size + c.query_width() + 5 * mlp / 3);
        let in_f32 = 2 * c.hidden_size + 2 * (c.query_width() + 2 * c.key_width()) + 2 * further;
        adapters + own + self.batch.tokens as f64 * in_f32 as f64 * F32
    }

    /// Bytes of the score matrices of one layer. The fused forms compute them tile by tile; a tile
    /// is too small to count. The composed form keeps two of them whole in float32: the
    /// exponentials and the attention weights, and with a soft cap its results.
    fn attention(&self) -> f64 {
        if !self.keeps_scores {
            return 0.0;
        }
        let (heads, scores) = (self.config.num_attention_heads, self.batch.scores);
        let capped = self.config.family.attention_softcap.is_some();
        attention::score_bytes(self.form, scores, heads, capped) as f64
    }

    /// Bytes of the gradients of one layer's activations, during the backward pass of the layer.
    fn layer_gradients(&self) -> f64 {
        let c = self.config;
        self.activation(2 * c.hidden_size + c.mlp_graph_width())
    }

    /// The number of layers whose graph is kept. The backward pass computes the others again.
    fn kept_graphs(&self) -> usize {
        match self.gradient_checkpointing {
            false => self.layers(),
            true => {
                let graph = graph_bytes(self.config, self.batch.tokens, self.dtype_bytes).max(1);
                (KEPT_GRAPH_BYTES / graph).min(self.layers())
            }
        }
    }

    /// Bytes of a chunk of logits, and of the exponentials that are kept for the backward pass.
    fn log_probs(&self) -> f64 {
        let (scored, vocab) = (self.batch.scored, self.config.vocab_size);
        linear_logp::work_bytes(self.form, scored, vocab, self.upstream_is_known) as f64
    }

    /// Bytes of gradients that are not yet added to the sum: two buckets of the largest size in
    /// float32 on several ranks. NCCL sends and receives a bucket in memory of its own, while the
    /// next one is computed and joined. On one rank the first micro-batch's gradients are the sum,
    /// and only those of later micro-batches need memory of their own.
    fn gradient_buffers(&self) -> f64 {
        let (layer, head) = match self.adapter {
            None => {
                let head = (self.config.vocab_size * self.config.hidden_size) as f64;
                (self.config.layer_parameters() as f64, head)
            }
            Some(_) => {
                let buckets = self.layout().buckets;
                (buckets.iter().map(|bucket| bucket.used()).max().unwrap_or(0) as f64, 0.0)
            }
        };
        match (self.ranks, self.accumulation) {
            (1, 1) => 0.0,
            (1, _) => (layer + head) * F32,
            _ if self.form == Form::Cube => 4.0 * layer.max(head) * self.reduce.size() as f64,
            _ => 2.0 * layer.max(head) * F32,
        }
    }

    /// The memory of one rank in a training step.
    pub fn memory(&self) -> Memory {
        let (p, ranks) = (self.trained(), self.ranks as f64);
        let mixed = self.trained_bytes() < 4;
        let weights = weight_bytes(self.config, self.dtype_bytes, self.quantization);
        let state = [
            ("weights", weights),
            ("adapter", if self.adapter.is_some() { p * F32 } else { 0.0 }),
            ("float32 master weights", if mixed { p * F32 / ranks } else { 0.0 }),
            ("optimizer moments", self.moments as f64 * p * F32 / ranks),
            ("gradients", p * F32 / ranks),
            ("gradient buffers", self.gradient_buffers()),
            ("reference", if self.reference_is_resident { weights } else { 0.0 }),
        ];
        let kept = self.kept_graphs();
        let recomputed = self.layers() - kept;
        let input = self.activation(self.config.hidden_size);
        let one_more = if recomputed > 0 && kept == 0 { 1 } else { 0 };
        let graphs = if kept == self.layers() { "all layers' graphs" } else { "graphs at a time" };
        let batch = [
            ("layer inputs", recomputed as f64 * input),
            (graphs, (kept + one_more) as f64 * self.layer_graph()),
            ("attention scores", (kept + one_more + 1) as f64 * self.attention()),
            ("gradients of one layer's activations", self.layer_gradients()),
            ("dequantized weights", self.dequantized(kept + one_more)),
            ("log-prob chunk", self.log_probs()),
        ];
        let item = |is_state: bool| {
            move |(name, bytes): (&'static str, f64)| MemoryItem { name, bytes, is_state }
        };
        let state = state.into_iter().map(item(true));
        let mut items: Vec<MemoryItem> = state.chain(batch.into_iter().map(item(false))).collect();
        let constant =
            ["weights", "adapter", "float32 master weights", "optimizer moments", "reference"];
        let changing = items.iter().filter(|item| !constant.contains(&item.name));
        let gaps = GAPS * changing.map(|item| item.bytes).sum::<f64>();
        items.push(item(false)(("gaps between blocks", gaps)));
        items.retain(|item| item.bytes > 0.0);
        Memory { items }
    }

    /// An upper bound of the bytes that a forward pass without gradients needs besides the weights:
    /// the values that the graph of one layer would keep (they are freed one after the other), its
    /// score matrices, and a chunk of logits.
    fn forward_bytes(&self, batch: BatchSize) -> f64 {
        // Without a backward pass nothing of the head is kept.
        let pass = Self { batch, upstream_is_known: true, ..self.clone() };
        let work = pass.layer_graph() + pass.attention() + pass.log_probs();
        (1.0 + GAPS) * (work + self.dequantized(0))
    }

    /// The largest memory of one rank in an evaluation; `None` if the run does not evaluate. The
    /// gradients of the step before are freed, but the allocator keeps some of their blocks.
    pub fn evaluation_peak(&self) -> Option<f64> {
        let work = self.forward_bytes(self.evaluation?);
        let memory = self.memory();
        Some(memory.state() + GAPS * memory.gradients() + work)
    }

    /// The largest memory of one rank in the reference pass; `None` without a frozen reference. The
    /// pass comes before the first step, when no gradients exist.
    pub fn reference_peak(&self) -> Option<f64> {
        let work = self.forward_bytes(self.reference_pass?);
        let memory = self.memory();
        let reference = match self.reference_has_own_weights {
            true => memory.bytes_of("weights"),
            false => 0.0,
        };
        Some(memory.state() - memory.gradients() + reference + work)
    }

    /// The largest memory of one rank at any time: in a step, an evaluation, or the reference pass.
    pub fn peak(&self) -> f64 {
        let others = [self.evaluation_peak(), self.reference_peak()];
        others.into_iter().flatten().fold(self.memory().peak(), f64::max)
    }

    /// The buckets of weights, and the shard of each bucket that a rank owns.
    pub fn layout(&self) -> Layout {
        let parameters = match self.adapter {
            None => expected_parameters(&Arc::new(self.config.clone())),
            Some(_) => self.adapter_parameters(),
        };
        let mut layout = Layout::new(&parameters, self.ranks, self.config.tie_word_embeddings);
        layout.buckets.iter_mut().for_each(|bucket| bucket.reduce = self.reduce);
        layout
    }

    /// Bytes of one number of the trained weights. The matrices of an adapter are float32.
    pub fn trained_bytes(&self) -> usize {
        if self.adapter.is_some() { 4 } else { self.dtype_bytes }
    }

    /// The cost of training on a micro-batch, in forward passes: one forward, two for the backward
    /// pass, and the share of layers that gradient checkpointing computes again. A frozen weight
    /// has no gradient, so a backward pass of adapters is one forward pass, and their own
    /// arithmetic.
    pub fn forward_passes(&self) -> f64 {
        let recomputed = (self.layers() - self.kept_graphs()) as f64 / self.layers() as f64;
        match self.adapter {
            None => 3.0 + recomputed,
            Some(_) => {
                2.0 + recomputed + 3.0 * self.trained() / self.config.active_parameters() as f64
            }
        }
    }
}

/// Floating-point operations of one forward pass over `tokens`, each of which attends to `context`
/// others on average: two for each token and weight that computes it, and two matrix products in
/// attention.
pub fn forward_flops(config: &ModelConfig, tokens: f64, context: f64) -> f64 {
    let weights = 2.0 * config.active_parameters() as f64;
    let seen = config.sliding_window.map_or(context, |window| context.min(window as f64));
    let attention = 4.0 * seen * (config.query_width() * config.num_hidden_layers) as f64;
    tokens * (weights + attention)
}

#[cfg(test)]
pub(super) mod tests;
