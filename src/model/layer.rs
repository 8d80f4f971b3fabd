//! One decoder layer as in Mistral, Llama and Qwen2.
//!
//! Legend: `t` tokens, `d` width, `f` feed-forward width. Weights keep Hugging Face's names and its
//! `[out, in]` layout; the CPU back end multiplies by a transposed view without copying it.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::adapter::Lora;
use super::config::ModelConfig;
use super::parameter::Parameter;
use crate::kernels::attention::{AttentionLayout, segment_attention};
use crate::kernels::rms_norm::rms_norm;
use crate::kernels::select_rows;
use crate::kernels::swiglu::swiglu;

/// `x · weightᵀ + bias`, and the output of its adapter if it has one.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Parameter,
    /// `[out]`.
    pub bias: Option<Parameter>,
    pub lora: Option<Lora>,
}

impl Linear {
    /// `[t, in]` → `[t, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(lora) = &self.lora else { return self.base(x) };
        lora.add_to(self.base(x.clone()), x)
    }

    /// The layer without its adapter.
    fn base(&self, x: Tensor<2>) -> Tensor<2> {
        let out = self.weight.linear(x);
        match &self.bias {
            Some(bias) => out + bias.vector().unsqueeze(),
            None => out,
        }
    }
}

/// One decoder layer. Its fields have the names of Hugging Face's checkpoints.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    pub input_layernorm: Parameter,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    pub post_attention_layernorm: Parameter,
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
    pub eps: f64,
    /// Whether its attention has the model's sliding window.
    pub windowed: bool,
}

impl DecoderLayer {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`; `x_td` is `[t, d]`.
    pub fn forward(&self, x_td: Tensor<2>, layout: &Arc<AttentionLayout>) -> Tensor<2> {
        self.forward_rows(x_td, layout, None)
    }

    /// [`Self::forward`] of the tokens `rows` only, `[rows, d]`. The other tokens only serve as
    /// keys and values.
    pub fn forward_rows(
        &self,
        x_td: Tensor<2>,
        layout: &Arc<AttentionLayout>,
        rows: Option<&[usize]>,
    ) -> Tensor<2> {
        let layout = AttentionLayout::of_layer(layout, self.windowed);
        let attended =
            self.attended(x_td.clone(), |q_t, k_t, v_t| segment_attention(q_t, k_t, v_t, layout));
        let Some(rows) = rows else { return self.after_attention(x_td, attended) };
        self.after_attention(select_rows(x_td, rows), select_rows(attended, rows))
    }

    /// The layer with the caller's attention: `attend(q, k, v)` gets queries `[t, h · e]`, keys and
    /// values `[t, g · e]`, before the rotary embedding, and returns `[t, h · e]`.
    pub fn forward_with(
        &self,
        x_td: Tensor<2>,
        attend: impl FnOnce(Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let attended = self.attended(x_td.clone(), attend);
        self.after_attention(x_td, attended)
    }

    fn attended(
        &self,
        x_td: Tensor<2>,
        attend: impl FnOnce(Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let normed = rms_norm(x_td, self.input_layernorm.vector(), self.eps);
        attend(
            self.q_proj.forward(normed.clone()),
            self.k_proj.forward(normed.clone()),
            self.v_proj.forward(normed),
        )
    }

    fn after_attention(&self, x_td: Tensor<2>, attended: Tensor<2>) -> Tensor<2> {
        let x_td = x_td + self.o_proj.forward(attended);
        let weight = self.post_attention_layernorm.vector();
        let normed = rms_norm(x_td.clone(), weight, self.eps);
        let hidden_tf =
            swiglu(self.gate_proj.forward(normed.clone()), self.up_proj.forward(normed));
        x_td + self.down_proj.forward(hidden_tf)
    }

    /// The same layer with its weights on the autodiff device; trainable ones are leaves of the
    /// graph.
    pub fn tracked(&self) -> Self {
        let mut layer = self.clone();
        for parameter in layer.parameters_mut() {
            *parameter = parameter.tracked();
        }
        layer
    }

    /// The same layer with the dropout of a training step in its adapters. `tokens` has a key for
    /// each token of the batch, `[t]`.
    pub fn with_masks(&self, tokens: &Arc<[u64]>) -> Self {
        let mut layer = self.clone();
        for lora in layer.loras_mut() {
            *lora = lora.with_mask(tokens);
        }
        layer
    }

    /// Whether an adapter of the layer has dropout.
    pub fn has_dropout(&self) -> bool {
        let loras = self.linears().into_iter().filter_map(|linear| linear.lora.as_ref());
        loras.into_iter().any(|lora| lora.dropout > 0.0)
    }

    /// All weights, in an order that is the same for every layer: those of the base, then those of
    /// the adapters.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![&self.input_layernorm, &self.post_attention_layernorm];
        for linear in self.linears() {
            all.push(&linear.weight);
            all.extend(&linear.bias);
        }
        let loras = self.linears().into_iter().filter_map(|linear| linear.lora.as_ref());
        all.extend(loras.flat_map(|lora| [&lora.a, &lora.b]));
        all
    }

    /// [`Self::parameters`], mutable.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm,
            gate_proj,
            up_proj,
            down_proj,
            eps: _,
            windowed: _,
        } = self;
        let mut all = vec![input_layernorm, post_attention_layernorm];
        let mut loras = Vec::new();
        for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            loras.extend(&mut linear.lora);
        }
        all.extend(loras.into_iter().flat_map(|lora| [&mut lora.a, &mut lora.b]));
        all
    }

    /// The adapters of the layer.
    pub fn loras_mut(&mut self) -> impl Iterator<Item = &mut Lora> {
        self.linears_mut().into_iter().filter_map(|linear| linear.lora.as_mut())
    }

    /// The linear layers, in the order of [`adapter::targets::LINEAR`](super::adapter::targets).
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ]
    }

    fn linears(&self) -> [&Linear; 7] {
        [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }

    /// Builds layer `index`. `parameter(name, shape)` makes each parameter, in the order of
    /// [`Self::parameters`].
    ///
    /// # Errors
    /// The first error of `parameter`.
    pub fn build<E>(
        config: &ModelConfig,
        index: usize,
        parameter: &mut impl FnMut(String, Vec<usize>) -> Result<Parameter, E>,
    ) -> Result<Self, E> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.query_width(), config.key_width());
        let mut named = |part: &str, shape: Vec<usize>| {
            parameter(format!("model.layers.{index}.{part}"), shape)
        };
        let input_layernorm = named("input_layernorm.weight", vec![d])?;
        let post_attention_layernorm = named("post_attention_layernorm.weight", vec![d])?;
        let mut linear = |part: &str, out: usize, width: usize, biased: bool| {
            Ok(Linear {
                weight: named(&format!("{part}.weight"), vec![out, width])?,
                bias: if biased { Some(named(&format!("{part}.bias"), vec![out])?) } else { None },
                lora: None,
            })
        };
        Ok(Self {
            input_layernorm,
            post_attention_layernorm,
            q_proj: linear("self_attn.q_proj", query, d, config.qkv_bias)?,
            k_proj: linear("self_attn.k_proj", key, d, config.qkv_bias)?,
            v_proj: linear("self_attn.v_proj", key, d, config.qkv_bias)?,
            o_proj: linear("self_attn.o_proj", d, query, config.output_bias)?,
            gate_proj: linear("mlp.gate_proj", f, d, config.mlp_bias)?,
            up_proj: linear("mlp.up_proj", f, d, config.mlp_bias)?,
            down_proj: linear("mlp.down_proj", d, f, config.mlp_bias)?,
            eps: config.rms_norm_eps,
            windowed: config.window(index).is_some(),
        })
    }
}
