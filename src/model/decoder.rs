//! The whole decoder: embedding, layers, final norm, head.
//!
//! Legend: `t` tokens, `n` scored tokens, `d` width, `v` vocabulary.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::adapter::config::Adapter;
use super::config::ModelConfig;
use super::layer::DecoderLayer;
use super::norm::Norm;
use super::parameter::{Parameter, ParameterIds, Weight};
use crate::data::ragged::RaggedBatch;
use crate::kernels::attention::AttentionLayout;
use crate::kernels::linear_logp::OutputHead;
use crate::kernels::soft_cap::soft_cap;
use crate::kernels::{index_tensor, select_rows};

/// Name of the embedding's weight.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// Name of the head's weight.
pub const LM_HEAD: &str = "lm_head.weight";

/// A decoder-only language model with its weights on one device. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub config: Arc<ModelConfig>,
    /// `[v, d]`.
    pub embed_tokens: Parameter,
    pub layers: Vec<DecoderLayer>,
    /// The final norm.
    pub norm: Norm,
    /// `[v, d]`; none if the head is tied to the embedding.
    pub lm_head: Option<Parameter>,
    /// The adapter, if one is attached.
    pub adapter: Option<Arc<Adapter>>,
}

impl Decoder {
    /// Builds the model. `weight(name, shape)` gives the values of each parameter, in the order of
    /// [`Self::parameters`], which is also the order of their ids. All parameters are trainable,
    /// except quantized ones.
    ///
    /// # Errors
    /// The first error of `weight`.
    pub fn build<E>(
        config: Arc<ModelConfig>,
        mut weight: impl FnMut(&str, &[usize]) -> Result<Weight, E>,
    ) -> Result<Self, E> {
        let (v, d) = (config.vocab_size, config.hidden_size);
        let mut ids = ParameterIds::default();
        let mut parameter = |name: String, shape: Vec<usize>| {
            let value = weight(&name, &shape)?;
            let trainable = !value.is_quantized();
            Ok(Parameter { id: ids.assign(), name: name.into(), shape, value, trainable })
        };
        Ok(Self {
            embed_tokens: parameter(EMBED_TOKENS.into(), vec![v, d])?,
            layers: (0..config.num_hidden_layers)
                .zip(config.layer_kinds())
                .map(|(index, kind)| DecoderLayer::build(&config, index, kind, &mut parameter))
                .collect::<Result<_, E>>()?,
            norm: Norm {
                weight: parameter("model.norm.weight".into(), vec![d])?,
                bias: match config.family.has_layer_norm {
                    true => Some(parameter("model.norm.bias".into(), vec![d])?),
                    false => None,
                },
                eps: config.norm_eps,
                adds_one: config.family.norms_add_one,
            },
            lm_head: match config.tie_word_embeddings {
                true => None,
                false => Some(parameter(LM_HEAD.into(), vec![v, d])?),
            },
            adapter: None,
            config,
        })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> Device {
        self.norm.weight.value.device()
    }

    /// The type in which the model computes.
    pub fn dtype(&self) -> DType {
        self.norm.dtype()
    }

    /// All weights: embedding, layers in order, final norm, head.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let layers = self.layers.iter().flat_map(DecoderLayer::parameters);
        [&self.embed_tokens]
            .into_iter()
            .chain(layers)
            .chain(self.norm.parameters())
            .chain(&self.lm_head)
            .collect()
    }

    /// [`Self::parameters`], mutable.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let layers = self.layers.iter_mut().flat_map(DecoderLayer::parameters_mut);
        let ends = self.norm.parameters_mut().chain(&mut self.lm_head);
        [&mut self.embed_tokens].into_iter().chain(layers).chain(ends).collect()
    }

    /// Assigns all ids again, in the order of [`Self::parameters`].
    pub(super) fn number(&mut self) {
        let mut ids = ParameterIds::default();
        for parameter in self.parameters_mut() {
            parameter.id = ids.assign();
        }
    }

    /// The lowest layer whose gradients are needed: a backward pass ends there. That is the number
    /// of layers if only the final norm or an untied head are trained.
    pub fn lowest_trained_layer(&self) -> usize {
        if self.embed_tokens.trainable {
            return 0;
        }
        let is_trained = |layer: &DecoderLayer| layer.parameters().iter().any(|p| p.trainable);
        self.layers.iter().position(is_trained).unwrap_or(self.layers.len())
    }

    /// Whether the input of layer `index` depends on a trainable parameter. For the number of
    /// layers: whether the input of the final norm does.
    pub fn is_trained_below(&self, index: usize) -> bool {
        self.embed_tokens.trainable || self.lowest_trained_layer() < index
    }

    /// Whether a training step drops elements of the adapters' inputs.
    pub fn has_dropout(&self) -> bool {
        self.adapter.is_some() && self.layers.iter().any(DecoderLayer::has_dropout)
    }

    /// The output head, `[v, d]`: its own weights or the embedding's.
    pub fn head(&self) -> &Parameter {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// The head as an operation takes it, with its soft cap.
    pub fn output_head(&self) -> OutputHead {
        OutputHead { weight_vd: self.head().matrix(), softcap: self.logits_softcap() }
    }

    fn logits_softcap(&self) -> Option<f32> {
        self.config.family.logits_softcap.map(|cap| cap as f32)
    }

    /// Token embeddings, `[t, d]`, times the model's multiplier.
    pub fn embed(&self, ids: &[u32]) -> Tensor<2> {
        let ids = index_tensor(ids.iter().copied(), &self.device());
        let embedded = self.embed_tokens.matrix().select(0, ids);
        match self.config.family.embedding_multiplier {
            1.0 => embedded,
            multiplier => embedded.mul_scalar(multiplier),
        }
    }

    /// Hidden states before the final norm, `[t, d]`, without gradients. Nothing is kept.
    pub fn hidden(&self, batch: &RaggedBatch) -> Tensor<2> {
        self.hidden_rows(batch, None)
    }

    /// Final norm of the rows that predict scored tokens, `[n, d]`, without gradients. Nothing is
    /// kept.
    pub fn scored_states(&self, batch: &RaggedBatch) -> Tensor<2> {
        let read = batch.read_rows();
        self.scored_hidden(self.hidden_rows(batch, read.rows.as_deref()), &read.scored)
    }

    /// [`Self::hidden`] of the tokens `rows` only, `[rows, d]`.
    fn hidden_rows(&self, batch: &RaggedBatch, rows: Option<&[usize]>) -> Tensor<2> {
        let layout = AttentionLayout::new(&self.config.attention_shape(), &batch.segments);
        let (last, before) = self.layers.split_last().expect("a decoder has layers");
        let embedded = self.embed(&batch.ids);
        let x_td = before.iter().fold(embedded, |x_td, layer| layer.forward(x_td, &layout));
        last.forward_rows(x_td, &layout, rows)
    }

    /// Final norm of the rows that predict scored tokens: `[t, d]` → `[n, d]`.
    pub fn scored_hidden(&self, hidden_td: Tensor<2>, scored: &[usize]) -> Tensor<2> {
        self.final_norm(select_rows(hidden_td, scored), &self.norm)
    }

    /// The final norm, tracked or not, and the factor of the logits: `[n, d]` → `[n, d]`.
    pub fn final_norm(&self, hidden_nd: Tensor<2>, norm: &Norm) -> Tensor<2> {
        let normed = norm.forward(hidden_nd);
        match self.config.family.logits_scaling {
            1.0 => normed,
            scaling => normed.div_scalar(scaling),
        }
    }

    /// Logits of the given rows of hidden states, `[rows, v]` in float32. Generation and tests use
    /// them; training never computes all logits at once.
    pub fn logits(&self, hidden_td: Tensor<2>, rows: &[usize]) -> Tensor<2> {
        let hidden = self.scored_hidden(hidden_td, rows);
        let logits = hidden.matmul(self.head().matrix().transpose()).cast(DType::F32);
        soft_cap(logits, self.logits_softcap())
    }
}
