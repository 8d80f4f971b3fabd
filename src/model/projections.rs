//! The projections of a layer: queries, keys and values, and the MLP. Families store them as
//! separate or as fused matrices.
//!
//! Legend: `t` tokens, `d` width, `f` feed-forward width, `h` query heads, `g` key-value heads, `e`
//! head width.

use burn::tensor::Tensor;

use super::config::ModelConfig;
use super::experts::{Experts, Routed};
use super::family::{Activation, Projections};
use super::linear::Linear;
use crate::kernels::geglu::geglu;
use crate::kernels::gelu::gelu;
use crate::kernels::swiglu::swiglu;

/// The projections to queries, keys and values.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has one for each layer, and most models have the larger one"
)]
pub enum QueryKeyValue {
    Separate {
        q: Linear,
        k: Linear,
        v: Linear,
    },
    /// One matrix, `[(h + 2 g) · e, d]`: the rows of queries, of keys, of values.
    Fused {
        qkv: Linear,
        query_width: usize,
        key_width: usize,
    },
}

impl QueryKeyValue {
    /// Queries `[t, h · e]`, keys and values `[t, g · e]` of `x_td`.
    pub fn forward(&self, x_td: Tensor<2>) -> [Tensor<2>; 3] {
        match self {
            Self::Separate { q, k, v } => {
                [q.forward(x_td.clone()), k.forward(x_td.clone()), v.forward(x_td)]
            }
            Self::Fused { qkv, query_width, key_width } => {
                let all = qkv.forward(x_td);
                let columns = |first, width| all.clone().narrow(1, first, width);
                let (q, k) = (columns(0, *query_width), columns(*query_width, *key_width));
                [q, k, columns(query_width + key_width, *key_width)]
            }
        }
    }

    fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Separate { q, k, v } => vec![q, k, v],
            Self::Fused { qkv, .. } => vec![qkv],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Separate { q, k, v } => vec![q, k, v],
            Self::Fused { qkv, .. } => vec![qkv],
        }
    }
}

/// The MLP: `down(act(gate(x)) · up(x))`, or `down(gelu(up(x)))` without a gate; or experts, of
/// which each token uses a few.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has one for each layer, and most models have the larger one"
)]
pub enum Mlp {
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
        activation: Activation,
    },
    /// Gate and up are one matrix, `[2 f, d]`: the rows of the gate, then those of up.
    Fused {
        gate_up: Linear,
        down: Linear,
        activation: Activation,
    },
    Ungated {
        up: Linear,
        down: Linear,
    },
    Experts(Experts),
}

impl Mlp {
    /// `[t, d]` → `[t, d]`, and the choice of experts if the layer has any.
    pub fn forward(&self, x_td: Tensor<2>) -> (Tensor<2>, Option<Routed>) {
        let out_td = match self {
            Self::Experts(experts) => {
                let (out_td, routed) = experts.forward(x_td);
                return (out_td, Some(routed));
            }
            Self::Gated { gate, up, down, activation } => {
                let (gate, up) = (gate.forward(x_td.clone()), up.forward(x_td));
                down.forward(gated(gate, up, *activation))
            }
            Self::Fused { gate_up, down, activation } => {
                let both = gate_up.forward(x_td);
                let f = both.dims()[1] / 2;
                let (gate, up) = (both.clone().narrow(1, 0, f), both.narrow(1, f, f));
                down.forward(gated(gate, up, *activation))
            }
            Self::Ungated { up, down } => down.forward(gelu(up.forward(x_td))),
        };
        (out_td, None)
    }

    fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Gated { gate, up, down, .. } => vec![gate, up, down],
            Self::Fused { gate_up, down, .. } => vec![gate_up, down],
            Self::Ungated { up, down } => vec![up, down],
            Self::Experts(experts) => experts.linears(),
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Gated { gate, up, down, .. } => vec![gate, up, down],
            Self::Fused { gate_up, down, .. } => vec![gate_up, down],
            Self::Ungated { up, down } => vec![up, down],
            Self::Experts(experts) => experts.linears_mut(),
        }
    }
}

/// `act(gate) · up`, all `[t, f]`.
fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::Silu => swiglu(gate, up),
        Activation::GeluTanh => geglu(gate, up),
    }
}

/// All linear layers of a decoder layer.
#[derive(Debug, Clone)]
pub struct LayerLinears {
    pub query_key_value: QueryKeyValue,
    pub output: Linear,
    pub mlp: Mlp,
}

impl LayerLinears {
    /// Builds them. `linear(name, out, in, has_bias)` makes each one, in the order of
    /// [`Self::all`].
    ///
    /// # Errors
    /// The first error of `linear`.
    pub fn build<E>(
        config: &ModelConfig,
        mut linear: impl FnMut(&str, usize, usize, bool) -> Result<Linear, E>,
    ) -> Result<Self, E> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.query_width(), config.key_width());
        let family = &config.family;
        let (qkv_bias, mlp_bias) = (family.qkv_bias, family.mlp_bias);
        let activation = family.activation;
        let query_key_value = match family.projections {
            Projections::Separate | Projections::Ungated | Projections::Experts => {
                QueryKeyValue::Separate {
                    q: linear("self_attn.q_proj", query, d, qkv_bias)?,
                    k: linear("self_attn.k_proj", key, d, qkv_bias)?,
                    v: linear("self_attn.v_proj", key, d, qkv_bias)?,
                }
            }
            Projections::Fused => QueryKeyValue::Fused {
                qkv: linear("self_attn.qkv_proj", query + 2 * key, d, qkv_bias)?,
                query_width: query,
                key_width: key,
            },
        };
        let output = linear("self_attn.o_proj", d, query, family.output_bias)?;
        let mlp = match family.projections {
            Projections::Separate => Mlp::Gated {
                gate: linear("mlp.gate_proj", f, d, mlp_bias)?,
                up: linear("mlp.up_proj", f, d, mlp_bias)?,
                down: linear("mlp.down_proj", d, f, mlp_bias)?,
                activation,
            },
            Projections::Fused => Mlp::Fused {
                gate_up: linear("mlp.gate_up_proj", 2 * f, d, mlp_bias)?,
                down: linear("mlp.down_proj", d, f, mlp_bias)?,
                activation,
            },
            Projections::Ungated => Mlp::Ungated {
                up: linear("mlp.c_fc", f, d, mlp_bias)?,
                down: linear("mlp.c_proj", d, f, mlp_bias)?,
            },
            Projections::Experts => Mlp::Experts(Experts::build(config, &mut linear)?),
        };
        Ok(Self { query_key_value, output, mlp })
    }

    /// In the order of [`Projections::names`]; the router and the experts follow.
    pub fn all(&self) -> Vec<&Linear> {
        let mut all = self.query_key_value.linears();
        all.push(&self.output);
        all.extend(self.mlp.linears());
        all
    }

    /// [`Self::all`], mutable.
    pub fn all_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = self.query_key_value.linears_mut();
        all.push(&mut self.output);
        all.extend(self.mlp.linears_mut());
        all
    }
}
