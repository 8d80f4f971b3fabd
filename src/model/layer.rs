//! One decoder layer: Llama's, and the differences of the other families.
//!
//! Legend: `t` tokens, `d` width. Weights keep Hugging Face's names and its
//! `[out, in]` layout; the CPU back end multiplies by a transposed view without copying it.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::adapter::Lora;
use super::config::ModelConfig;
use super::experts::Routed;
use super::family::{NormPlaces, QueryKeyNorm};
use super::linear::Linear;
use super::norm::Norm;
use super::parameter::Parameter;
use super::projections::LayerLinears;
use crate::kernels::attention::{AttentionLayout, segment_attention};
use crate::kernels::dropout::TokenKeys;
use crate::kernels::select_rows;

/// `norm(x)`, or `x` if the layer has no such norm.
fn normed(norm: &Option<Norm>, x_td: Tensor<2>) -> Tensor<2> {
    match norm {
        Some(norm) => norm.forward(x_td),
        None => x_td,
    }
}

/// One decoder layer. The names of its weights are those of Hugging Face's checkpoints.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    pub before_attention: Option<Norm>,
    pub after_attention: Option<Norm>,
    pub before_mlp: Option<Norm>,
    pub after_mlp: Option<Norm>,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub linears: LayerLinears,
    /// See [`ModelConfig::query_factor`].
    pub query_factor: Option<f64>,
    /// The factor of what attention and MLP add to the residual stream.
    pub residual_multiplier: f64,
    /// The index of its kind in [`ModelConfig::attention_shape`].
    pub kind: usize,
}

impl DecoderLayer {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`; `x_td` is `[t, d]`. Some families also
    /// or only normalize the outputs of attention and MLP.
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
        self.forward_routed(x_td, layout, rows).0
    }

    /// [`Self::forward_rows`], and the choice of experts for these rows if the layer has experts.
    pub fn forward_routed(
        &self,
        x_td: Tensor<2>,
        layout: &Arc<AttentionLayout>,
        rows: Option<&[usize]>,
    ) -> (Tensor<2>, Option<Routed>) {
        let layout = AttentionLayout::of_layer(layout, self.kind);
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
        self.after_attention(x_td, attended).0
    }

    fn attended(
        &self,
        x_td: Tensor<2>,
        attend: impl FnOnce(Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let x_td = normed(&self.before_attention, x_td);
        let [q, k, v] = self.linears.query_key_value.forward(x_td);
        let q = normed(&self.q_norm, q);
        let q = match self.query_factor {
            Some(factor) => q.mul_scalar(factor),
            None => q,
        };
        attend(q, normed(&self.k_norm, k), v)
    }

    fn after_attention(&self, x_td: Tensor<2>, attended: Tensor<2>) -> (Tensor<2>, Option<Routed>) {
        let attended = normed(&self.after_attention, self.linears.output.forward(attended));
        let x_td = self.add(x_td, attended);
        let inner = normed(&self.before_mlp, x_td.clone());
        let (out, routed) = self.linears.mlp.forward(inner);
        (self.add(x_td, normed(&self.after_mlp, out)), routed)
    }

    /// The residual stream with the output of attention or MLP.
    fn add(&self, x_td: Tensor<2>, out: Tensor<2>) -> Tensor<2> {
        match self.residual_multiplier {
            1.0 => x_td + out,
            factor => x_td + out.mul_scalar(factor),
        }
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
    pub fn with_masks(&self, tokens: &Arc<TokenKeys>) -> Self {
        let mut layer = self.clone();
        for lora in layer.loras_mut() {
            *lora = lora.with_mask(tokens);
        }
        layer
    }

    /// Whether an adapter of the layer has dropout.
    pub fn has_dropout(&self) -> bool {
        let loras = self.linears.all().into_iter().filter_map(|linear| linear.lora.as_ref());
        loras.into_iter().any(|lora| lora.dropout > 0.0)
    }

    /// All weights, in an order that is the same for every layer: those of the base, then those of
    /// the adapters.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut all: Vec<&Parameter> =
            self.norms().into_iter().flatten().flat_map(Norm::parameters).collect();
        let linears = self.linears.all();
        for linear in &linears {
            all.push(&linear.weight);
            all.extend(&linear.bias);
        }
        let loras = linears.into_iter().filter_map(|linear| linear.lora.as_ref());
        all.extend(loras.flat_map(|lora| [&lora.a, &lora.b]));
        all
    }

    /// [`Self::parameters`], mutable.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self {
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
            q_norm,
            k_norm,
            linears,
            query_factor: _,
            residual_multiplier: _,
            kind: _,
        } = self;
        let norms = [before_attention, after_attention, before_mlp, after_mlp, q_norm, k_norm];
        let mut all: Vec<&mut Parameter> =
            norms.into_iter().flatten().flat_map(Norm::parameters_mut).collect();
        let mut loras = Vec::new();
        for linear in linears.all_mut() {
            all.push(&mut linear.weight);
            all.extend(&mut linear.bias);
            loras.extend(&mut linear.lora);
        }
        all.extend(loras.into_iter().flat_map(|lora| [&mut lora.a, &mut lora.b]));
        all
    }

    /// The adapters of the layer.
    pub fn loras_mut(&mut self) -> impl Iterator<Item = &mut Lora> {
        self.linears.all_mut().into_iter().filter_map(|linear| linear.lora.as_mut())
    }

    fn norms(&self) -> [&Option<Norm>; 6] {
        [
            &self.before_attention,
            &self.after_attention,
            &self.before_mlp,
            &self.after_mlp,
            &self.q_norm,
            &self.k_norm,
        ]
    }

    /// Builds layer `index`, whose kind has the index `kind`. `parameter(name, shape)` makes each
    /// parameter, in the order of [`Self::parameters`].
    ///
    /// # Errors
    /// The first error of `parameter`.
    pub fn build<E>(
        config: &ModelConfig,
        index: usize,
        kind: usize,
        parameter: &mut impl FnMut(String, Vec<usize>) -> Result<Parameter, E>,
    ) -> Result<Self, E> {
        let d = config.hidden_size;
        let mut named = |part: &str, shape: Vec<usize>| {
            parameter(format!("model.layers.{index}.{part}"), shape)
        };
        let family = &config.family;
        let mut norm = |part: Option<&str>, width: usize| {
            let Some(part) = part else { return Ok(None) };
            let weight = named(&format!("{part}.weight"), vec![width])?;
            let bias = match family.has_layer_norm {
                true => Some(named(&format!("{part}.bias"), vec![width])?),
                false => None,
            };
            let (eps, adds_one) = (config.norm_eps, family.norms_add_one);
            Ok(Some(Norm { weight, bias, eps, adds_one }))
        };
        let [before_attention, after_attention, before_mlp, after_mlp] = norm_names(family.norms);
        let before_attention = norm(before_attention, d)?;
        let after_attention = norm(after_attention, d)?;
        let before_mlp = norm(before_mlp, d)?;
        let after_mlp = norm(after_mlp, d)?;
        let [q_width, k_width] = match family.query_key_norm {
            Some(QueryKeyNorm::Heads) => [config.head_dim; 2],
            _ => [config.query_width(), config.key_width()],
        };
        let named_if = |name| family.query_key_norm.map(|_| name);
        let q_norm = norm(named_if("self_attn.q_norm"), q_width)?;
        let k_norm = norm(named_if("self_attn.k_norm"), k_width)?;
        let linear = |part: &str, out: usize, width: usize, biased: bool| {
            Ok(Linear {
                weight: named(&format!("{part}.weight"), vec![out, width])?,
                bias: if biased { Some(named(&format!("{part}.bias"), vec![out])?) } else { None },
                lora: None,
            })
        };
        Ok(Self {
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
            q_norm,
            k_norm,
            linears: LayerLinears::build(config, linear)?,
            query_factor: config.query_factor(),
            residual_multiplier: family.residual_multiplier,
            kind,
        })
    }
}

/// Hugging Face's names of the norms before and after attention, before and after the MLP. What
/// `post_attention_layernorm` names depends on the family.
fn norm_names(places: NormPlaces) -> [Option<&'static str>; 4] {
    let (input, post_attention) = ("input_layernorm", "post_attention_layernorm");
    let (pre_mlp, post_mlp) = ("pre_feedforward_layernorm", "post_feedforward_layernorm");
    match places {
        NormPlaces::Before => [Some(input), None, Some(post_attention), None],
        NormPlaces::After => [None, Some(post_attention), None, Some(post_mlp)],
        NormPlaces::Both => [Some(input), Some(post_attention), Some(pre_mlp), Some(post_mlp)],
    }
}
