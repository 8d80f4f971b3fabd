//! Memory, traffic and work of a step, told from the model's shape and a batch's: nothing is loaded.
//!
//! It follows what a step does: [`walk`](crate::train::layerwise) keeps layers' inputs and graphs and walks back,
//! [`linear_logp`](crate::kernels::linear_logp) bounds what the head forms, the optimizer comes last.
//! Between ranks the state is shared as ZeRO-2 by layers (Rajbhandari et al., arXiv 1910.02054): every
//! rank holds the weights; float32 gradients and optimizer state are divided among them.

use std::sync::Arc;

use crate::data::ragged::RaggedBatch;
use crate::kernels::{Form, attention, linear_logp};
use crate::model::config::ModelConfig;
use crate::model::weights::expected_parameters;
use crate::parallel::buckets::Layout;
use crate::train::layerwise::{KEPT_GRAPH_BYTES, graph_bytes};

/// Bytes of a float32.
const F32: f64 = 4.0;
/// What blocks of changing sizes leave unused between them, as a share of all that comes and goes in a
/// step: measured on the CPU (`scripts/memory_check.py`).
const GAPS: f64 = 0.15;

/// What the sizes of a micro-batch depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchSize {
    /// Tokens that the model computes; a shared prompt counts once.
    pub tokens: usize,
    /// Tokens whose log-prob is wanted.
    pub scored: usize,
    /// `Σ queries · keys` over the segments: elements of all score matrices of a head.
    pub scores: usize,
}

impl BatchSize {
    /// `sequences` of full length, nothing shared: what no micro-batch exceeds.
    pub fn padded(sequences: usize, length: usize) -> Self {
        let tokens = sequences * length;
        Self { tokens, scored: tokens, scores: tokens * length }
    }

    /// The size with half of its rows.
    pub fn halved(self) -> Self {
        let half = |n: usize| n.div_ceil(2);
        Self { tokens: half(self.tokens), scored: half(self.scored), scores: half(self.scores) }
    }

    /// The size of a real batch.
    pub fn of(batch: &RaggedBatch) -> Self {
        let keys = |segment| batch.segments.prefix_of(segment).map_or(0, |prefix| prefix.len);
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

/// What decides the size of a run.
#[derive(Debug, Clone)]
pub struct Workload<'a> {
    pub config: &'a ModelConfig,
    /// Bytes of a number in which the model computes: 2 or 4.
    pub width: usize,
    /// The form of the operations that run. Graphs of composed ones keep more.
    pub form: Form,
    pub ranks: usize,
    /// The largest micro-batch of one rank.
    pub batch: BatchSize,
    /// Micro-batches of a step on one rank.
    pub accumulation: usize,
    pub gradient_checkpointing: bool,
    /// The loss's gradient by the log-probs does not depend on them (SFT): nothing of the head is kept.
    pub upstream_is_known: bool,
    /// float32 values that the optimizer keeps of a weight: 2 in the Adam family.
    pub moments: usize,
    /// A reference model stays in memory (one that follows the policy; a frozen one is gone by then).
    pub reference_is_resident: bool,
    /// The largest batch of an evaluation, where the run evaluates.
    pub evaluation: Option<BatchSize>,
    /// The largest batch of the pass that makes a frozen reference's log-probs, where there is one.
    pub reference_pass: Option<BatchSize>,
    /// The frozen reference is another model than the policy, and lies beside it in that pass.
    pub reference_is_another: bool,
}

/// A part of the memory of one rank, where it is largest.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryItem {
    pub name: &'static str,
    pub bytes: f64,
    /// Whether it is there all the time, whatever the batch.
    pub is_state: bool,
}

/// Memory of one rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub items: Vec<MemoryItem>,
}

impl Memory {
    /// All parts together: freed blocks stay with the program, and what one moment leaves hardly fits the
    /// next one's blocks.
    pub fn peak(&self) -> f64 {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// What does not depend on the batch, together.
    pub fn state(&self) -> f64 {
        self.items.iter().filter(|item| item.is_state).map(|item| item.bytes).sum()
    }

    /// What a step frees at its end.
    fn gradients(&self) -> f64 {
        self.of("gradients") + self.of("gradient buffers")
    }

    /// The part of that name; 0 where there is none.
    pub fn of(&self, name: &str) -> f64 {
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

    /// Bytes of an activation `[t, columns]` of the largest micro-batch.
    fn activation(&self, columns: usize) -> f64 {
        (self.batch.tokens * columns * self.width) as f64
    }

    /// What the graph of one layer keeps, attention's score matrices apart: see [`graph_bytes`], whose last
    /// output is the next layer's input. Composed norms keep their input and their product too, in float32
    /// the one; composed attention has turned queries and keys in float32, and a composed SwiGLU five
    /// values.
    fn layer_graph(&self) -> f64 {
        let c = self.config;
        let heads = c.query_width() + c.key_width();
        if self.form == Form::Flex {
            return self.activation(4 * c.hidden_size + 2 * heads + 3 * c.intermediate_size);
        }
        let own = self.activation(5 * c.hidden_size + c.query_width() + 5 * c.intermediate_size);
        let in_f32 = 2 * c.hidden_size + 2 * (c.query_width() + 2 * c.key_width());
        own + (self.batch.tokens * in_f32) as f64 * F32
    }

    /// Score matrices of one layer: in slices that hardly count, or, composed, whole and in float32: the
    /// exponentials and the weights that the graph keeps.
    fn attention(&self) -> f64 {
        attention::score_bytes(self.form, self.batch.scores, self.config.num_attention_heads) as f64
    }

    /// What one layer needs besides its graph while it is differentiated: gradients of activations.
    fn layer_work(&self) -> f64 {
        let c = self.config;
        let gradients = self.activation(2 * c.hidden_size + 3 * c.intermediate_size);
        gradients + self.attention()
    }

    /// Layers whose graph is kept, the others' being made again.
    fn kept_graphs(&self) -> usize {
        match self.gradient_checkpointing {
            false => self.layers(),
            true => {
                let graph = graph_bytes(self.config, self.batch.tokens, self.width).max(1);
                (KEPT_GRAPH_BYTES / graph).min(self.layers())
            }
        }
    }

    /// Logits of a chunk, and the exponentials that are kept for the way back.
    fn log_probs(&self) -> f64 {
        let (scored, vocab) = (self.batch.scored, self.config.vocab_size);
        linear_logp::work_bytes(self.form, scored, vocab, self.upstream_is_known) as f64
    }

    /// Gradients on their way: two buckets of the largest size between ranks, in float32. On one rank a
    /// gradient is the sum or, behind the first micro-batch, added to it.
    fn gradient_buffers(&self) -> f64 {
        let layer = self.config.layer_parameters() as f64;
        let head = (self.config.vocab_size * self.config.hidden_size) as f64;
        match (self.ranks, self.accumulation) {
            (1, 1) => 0.0,
            (1, _) => (layer + head) * F32,
            _ => 2.0 * layer.max(head) * F32,
        }
    }

    /// Memory of one rank.
    pub fn memory(&self) -> Memory {
        let (p, ranks) = (self.parameters(), self.ranks as f64);
        let mixed = self.width < 4;
        let weights = p * self.width as f64;
        let state = [
            ("weights", weights),
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
            ("gradients of one layer's activations", self.layer_work() - self.attention()),
            ("log-prob chunk", self.log_probs()),
        ];
        let item = |is_state: bool| {
            move |(name, bytes): (&'static str, f64)| MemoryItem { name, bytes, is_state }
        };
        let state = state.into_iter().map(item(true));
        let mut items: Vec<MemoryItem> = state.chain(batch.into_iter().map(item(false))).collect();
        let fixed = ["weights", "float32 master weights", "optimizer moments", "reference"];
        let moving = items.iter().filter(|item| !fixed.contains(&item.name));
        let gaps = GAPS * moving.map(|item| item.bytes).sum::<f64>();
        items.push(item(false)(("gaps between blocks", gaps)));
        items.retain(|item| item.bytes > 0.0);
        Memory { items }
    }

    /// What a pass without gradients takes besides weights, at most: the values of one layer, as many as its graph
    /// would keep (they are freed one after the other), its score matrices, and a chunk of logits.
    fn forward_work(&self, batch: BatchSize) -> f64 {
        // Nothing of the head is kept where nobody walks back.
        let pass = Self { batch, upstream_is_known: true, ..self.clone() };
        (1.0 + GAPS) * (pass.layer_graph() + pass.attention() + pass.log_probs())
    }

    /// The largest memory of one rank in an evaluation, where there is one. The gradients of the step before are freed,
    /// but their blocks stay with the program.
    pub fn evaluation_peak(&self) -> Option<f64> {
        let work = self.forward_work(self.evaluation?);
        let memory = self.memory();
        Some(memory.state() + GAPS * memory.gradients() + work)
    }

    /// The largest memory of one rank in the pass of a frozen reference, where there is one: before the first step there
    /// are no gradients.
    pub fn reference_peak(&self) -> Option<f64> {
        let work = self.forward_work(self.reference_pass?);
        let memory = self.memory();
        let other = if self.reference_is_another { memory.of("weights") } else { 0.0 };
        Some(memory.state() - memory.gradients() + other + work)
    }

    /// The largest memory of one rank at any time: in a step, an evaluation, or the reference pass.
    pub fn peak(&self) -> f64 {
        let others = [self.evaluation_peak(), self.reference_peak()];
        others.into_iter().flatten().fold(self.memory().peak(), f64::max)
    }

    /// Who owns what.
    pub fn layout(&self) -> Layout {
        let parameters = expected_parameters(&Arc::new(self.config.clone()));
        Layout::new(&parameters, self.ranks, self.config.tie_word_embeddings)
    }

    /// Bytes that one rank sends in a step: see [`Layout::bytes_sent`].
    pub fn step_bytes(&self) -> f64 {
        self.layout().bytes_sent(self.accumulation, self.width) as f64
    }

    /// Forward passes that training on a micro-batch costs as much as: forward, twice that backward, once
    /// more where layers are computed again.
    pub fn forwards(&self) -> f64 {
        let recomputed = (self.layers() - self.kept_graphs()) as f64 / self.layers() as f64;
        3.0 + recomputed
    }
}

/// Operations of one forward pass over `tokens` of which each sees `context` others on average: two a
/// weight and token, and two products of scores and values.
pub fn forward_flops(config: &ModelConfig, tokens: f64, context: f64) -> f64 {
    let weights = 2.0 * config.parameters() as f64;
    let seen = config.sliding_window.map_or(context, |window| context.min(window as f64));
    let attention = 4.0 * seen * (config.query_width() * config.num_hidden_layers) as f64;
    tokens * (weights + attention)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn mistral() -> ModelConfig {
        let raw = json!({"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "sliding_window": 4096});
        ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
    }

    /// Zephyr-7B-β's DPO: two pairs a rank.
    fn zephyr(config: &ModelConfig) -> Workload<'_> {
        Workload {
            config,
            width: 2,
            form: Form::Composed,
            ranks: 16,
            batch: BatchSize::padded(4, 1024),
            accumulation: 1,
            gradient_checkpointing: true,
            upstream_is_known: false,
            moments: 2,
            reference_is_resident: true,
            evaluation: None,
            reference_pass: None,
            reference_is_another: false,
        }
    }

    fn close(ours: f64, expected: f64, share: f64) {
        assert!((ours / expected - 1.0).abs() < share, "{ours:e} is not {expected:e}");
    }

    /// ZeRO-2's state with and without a resident reference, in GB, worked out by hand with bf16 buffers;
    /// ours are float32.
    #[test]
    fn the_state_of_a_7b_run_on_several_ranks() {
        let config = mistral();
        for (ranks, resident, alone) in
            [(16, 37.1, 22.6), (8, 44.3, 29.8), (4, 58.8, 44.3), (2, 87.8, 73.3)]
        {
            for (reference_is_resident, expected) in [(true, resident), (false, alone)] {
                let run = Workload { ranks, reference_is_resident, ..zephyr(&config) };
                close(run.memory().state() / 1e9, expected, 0.05);
            }
        }
    }

    #[test]
    fn a_step_of_zephyr() {
        let config = mistral();
        let run = zephyr(&config);
        // 5 forward passes over 64 sequences of 1024 tokens.
        let forward = forward_flops(&config, 65536.0, 512.0);
        close(5.0 * forward, 4.84e15, 0.01);
        close(5.0 * forward / (16.0 * 312e12 * 0.4) * 5811.0 / 3600.0, 3.9, 0.02);
        // bf16 weights and gradients would be 27.2 GB; float32 gradients are twice the half of it, and of
        // the embedding's only rows are sent.
        close(run.step_bytes(), 1.5 * 27.2e9, 0.02);
        let all_inputs = 32.0 * run.activation(4096);
        close(all_inputs, 1.07e9, 0.01);
        close(run.attention(), 2.0 * 0.54e9, 0.01);
    }

    #[test]
    fn checkpointing_keeps_inputs_and_as_many_graphs_as_fit() {
        let config = mistral();
        let run = zephyr(&config);
        assert_eq!(run.kept_graphs(), 0);
        close(run.memory().of("layer inputs"), 1.07e9, 0.01);
        assert_eq!(run.forwards(), 4.0);
        let short = Workload { batch: BatchSize::padded(1, 64), ..run.clone() };
        assert_eq!(short.kept_graphs(), KEPT_GRAPH_BYTES / graph_bytes(&config, 64, 2));
        let plain = Workload { gradient_checkpointing: false, ..run.clone() };
        assert_eq!(plain.forwards(), 3.0);
        assert!(plain.memory().peak() > run.memory().peak() + 31.0 * run.layer_graph());
    }

    #[test]
    fn the_peak_is_that_of_the_largest_moment() {
        let config = mistral();
        let step = Workload { reference_is_resident: false, ..zephyr(&config) };
        let training = step.memory().peak();
        assert_eq!(step.peak(), training);
        // Less than a step, as nothing is kept, and more than the weights.
        let like_a_step = Workload { evaluation: Some(step.batch), ..step.clone() };
        let evaluation = like_a_step.evaluation_peak().unwrap();
        assert!(step.memory().state() < evaluation && evaluation < training);
        assert_eq!(like_a_step.peak(), training);
        let large = Workload { evaluation: Some(BatchSize::padded(128, 1024)), ..step.clone() };
        assert_eq!(large.peak(), large.evaluation_peak().unwrap());
        assert!(large.peak() > 2.0 * training, "{:e} {training:e}", large.peak());
        // The reference pass comes before there are gradients.
        let pass = Workload { reference_pass: Some(step.batch), ..step.clone() };
        let alone = pass.reference_peak().unwrap();
        assert!(alone < evaluation && pass.peak() == training);
        let another = Workload { reference_is_another: true, ..pass };
        close(another.reference_peak().unwrap() - alone, 2.0 * 7.24e9, 0.01);
    }

    #[test]
    fn a_real_batch_counts_shared_prompts_once() {
        use crate::data::PreferencePair;
        let pair = PreferencePair { prompt: vec![1; 3], chosen: vec![1; 2], rejected: vec![1] };
        let size = BatchSize::of(&RaggedBatch::preferences([&pair]));
        assert_eq!(size, BatchSize { tokens: 6, scored: 3, scores: 9 + 2 * 5 + 4 });
    }
}
