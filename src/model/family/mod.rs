//! The model families: each file says how one differs from the common decoder layer.
//!
//! The common layer is Llama's: RMSNorm before attention and before the MLP, no biases, SwiGLU,
//! rotary embedding in every layer, scores divided by the square root of the head width.

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod starcoder2;

use serde_json::Value;

use super::config_keys::{ConfigError, Keys};

/// The name of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Gemma,
    Gemma2,
    Gemma3,
    Granite,
    Llama,
    Mistral,
    Mixtral,
    Olmo2,
    Phi3,
    Qwen2,
    Qwen3,
    SmolLm3,
    StarCoder2,
}

/// `model_type` of each family.
const MODEL_TYPES: [(&str, Architecture); 13] = [
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3_text", Architecture::Gemma3),
    ("granite", Architecture::Granite),
    ("llama", Architecture::Llama),
    ("mistral", Architecture::Mistral),
    ("mixtral", Architecture::Mixtral),
    ("olmo2", Architecture::Olmo2),
    ("phi3", Architecture::Phi3),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("smollm3", Architecture::SmolLm3),
    ("starcoder2", Architecture::StarCoder2),
];

/// RMSNorm of queries and keys, before the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// Each head by itself; one weight `[e]` for all heads.
    Heads,
    /// All heads together; a weight `[h · e]` for queries and one `[g · e]` for keys.
    Whole,
}

/// The places of the norms in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlaces {
    /// On the inputs of attention and MLP.
    Before,
    /// On the outputs of attention and MLP, before they are added to the residual stream.
    After,
    /// On both.
    Both,
}

/// The activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// SiLU, with the gate SwiGLU.
    Silu,
    /// GELU in the tanh form, with the gate GeGLU.
    GeluTanh,
}

/// How the linear layers of a decoder layer are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    /// A matrix for each of queries, keys, values, gate and up.
    Separate,
    /// One matrix for queries, keys and values, and one for gate and up.
    Fused,
    /// A matrix for each of queries, keys and values, and an MLP without a gate.
    Ungated,
    /// A matrix for each of queries, keys and values, and experts instead of an MLP.
    Experts,
}

impl Projections {
    /// The names of the linear layers within a decoder layer that can have an adapter, in the order
    /// of its parameters. Experts and their router cannot.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Separate => &[
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
            Self::Ungated => &[
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.c_fc",
                "mlp.c_proj",
            ],
            Self::Experts => {
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
            }
            Self::Fused => {
                &["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]
            }
        }
    }
}

/// The sparse experts that a layer has instead of an MLP, and the loss that balances their load.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseExperts {
    /// The number of experts.
    pub count: usize,
    /// The number of experts that compute each token.
    pub per_token: usize,
    /// `router_aux_loss_coef`: the weight of the load-balancing loss.
    pub aux_loss_coef: f64,
    /// `output_router_logits`, which turns the load-balancing loss of ORPO and CPO on.
    pub outputs_router_logits: bool,
}

/// How a family differs from the common layer, with the values of one `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub architecture: Architecture,
    pub projections: Projections,
    /// The experts of [`Projections::Experts`].
    pub experts: Option<SparseExperts>,
    /// Biases of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the output projection of attention.
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub query_key_norm: Option<QueryKeyNorm>,
    pub norms: NormPlaces,
    /// The norms are LayerNorm, with biases.
    pub has_layer_norm: bool,
    /// Norms scale by `1 + weight`.
    pub norms_add_one: bool,
    pub activation: Activation,
    /// Embeddings are multiplied by it.
    pub embedding_multiplier: f64,
    /// The outputs of attention and MLP are multiplied by it.
    pub residual_multiplier: f64,
    /// The factor of the scores; `None` is `1 / √e`.
    pub attention_multiplier: Option<f64>,
    /// The soft cap of the scores.
    pub attention_softcap: Option<f64>,
    /// Logits are divided by it.
    pub logits_scaling: f64,
    /// The soft cap of the logits.
    pub logits_softcap: Option<f64>,
    /// The window of the layers that have one, in tokens.
    pub sliding_window: Option<usize>,
    /// Whether each layer has the window; empty if all do.
    pub windowed: Vec<bool>,
    /// Whether each layer has a rotary embedding; empty if all do.
    pub rotary: Vec<bool>,
    /// The share of a head's elements that are rotated: the first ones.
    pub rotary_share: f64,
    /// Whether the rotary frequencies may have `longrope` scaling.
    pub has_longrope: bool,
    /// The base of the rotary frequencies in layers with the window, without scaling; `None` if it
    /// is that of the other layers.
    pub local_rope_theta: Option<f64>,
    /// Values of missing keys, as in transformers.
    pub defaults: Defaults,
}

/// The values that transformers takes for missing keys of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    pub max_position_embeddings: usize,
    /// `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

impl Family {
    /// The factor of noise on the embeddings (NEFTune). In transformers, noise is added to the
    /// output of the embedding module. Gemma's multiplier is part of that module, Granite's is not.
    pub fn noise_multiplier(&self) -> f64 {
        match self.architecture {
            Architecture::Granite => self.embedding_multiplier,
            _ => 1.0,
        }
    }

    /// The common layer.
    fn common(architecture: Architecture, max_position_embeddings: usize) -> Self {
        Self {
            architecture,
            projections: Projections::Separate,
            experts: None,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            query_key_norm: None,
            norms: NormPlaces::Before,
            has_layer_norm: false,
            norms_add_one: false,
            activation: Activation::Silu,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            attention_multiplier: None,
            attention_softcap: None,
            logits_scaling: 1.0,
            logits_softcap: None,
            sliding_window: None,
            windowed: Vec::new(),
            rotary: Vec::new(),
            rotary_share: 1.0,
            has_longrope: false,
            local_rope_theta: None,
            defaults: Defaults {
                max_position_embeddings,
                head_dim: None,
                norm_eps: 1e-6,
                rope_theta: 10_000.0,
                tie_word_embeddings: false,
            },
        }
    }

    /// The family that `model_type` names.
    pub(super) fn read(keys: &Keys) -> Result<Self, ConfigError> {
        let found = keys.raw.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        let known = MODEL_TYPES.iter().find(|(name, _)| *name == found);
        let Some((_, architecture)) = known else {
            return Err(ConfigError::Architecture {
                path: keys.path.into(),
                found: found.to_owned(),
                supported: MODEL_TYPES.map(|(name, _)| name).join(", "),
            });
        };
        let layers = keys.layers()?;
        match architecture {
            Architecture::Gemma => gemma::family(keys),
            Architecture::Gemma2 => gemma2::family(keys, layers),
            Architecture::Gemma3 => gemma3::family(keys, layers),
            Architecture::Granite => granite::family(keys),
            Architecture::Llama => llama::family(keys),
            Architecture::Mistral => mistral::family(keys),
            Architecture::Mixtral => mixtral::family(keys),
            Architecture::Olmo2 => olmo2::family(keys),
            Architecture::Phi3 => phi3::family(keys),
            Architecture::Qwen2 => qwen2::family(keys, layers),
            Architecture::Qwen3 => qwen3::family(keys, layers),
            Architecture::SmolLm3 => smollm3::family(keys, layers),
            Architecture::StarCoder2 => starcoder2::family(keys),
        }
    }

    /// Whether layer `layer` has the sliding window, if the model has one.
    pub fn has_window(&self, layer: usize) -> bool {
        self.windowed.get(layer).copied().unwrap_or(true)
    }

    /// Whether layer `layer` has a rotary embedding.
    pub fn has_rotary(&self, layer: usize) -> bool {
        self.rotary.get(layer).copied().unwrap_or(true)
    }
}

/// The layers that `layer_types` names as `sliding_attention`; `None` without that key.
fn windowed_by_type(keys: &Keys, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    let Some(types) = keys.raw.get("layer_types").filter(|types| !types.is_null()) else {
        return Ok(None);
    };
    let windowed = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let listed: Option<Vec<bool>> =
        types.as_array().and_then(|types| types.iter().map(windowed).collect());
    match listed {
        Some(listed) if listed.len() == layers => Ok(Some(listed)),
        _ => {
            let expected =
                format!("`sliding_attention` or `full_attention` for each of {layers} layers");
            Err(keys.invalid("layer_types", types, expected))
        }
    }
}

/// The rule of Qwen2 and Qwen3: with `use_sliding_window`, the layers that `layer_types` names or,
/// without it, those after the first `max_window_layers`.
fn qwen_windows(keys: &Keys, layers: usize) -> Result<(Option<usize>, Vec<bool>), ConfigError> {
    let window = match keys.flag("use_sliding_window")? {
        true => keys.size_or("sliding_window", Some(4096))?,
        false => None,
    };
    if window.is_none() {
        return Ok((None, Vec::new()));
    }
    if let Some(listed) = windowed_by_type(keys, layers)? {
        return Ok((window, listed));
    }
    let key = "max_window_layers";
    let first = match keys.raw.get(key).filter(|first| !first.is_null()) {
        None => 28,
        Some(first) => {
            first.as_u64().ok_or_else(|| keys.invalid(key, first, "a whole number"))? as usize
        }
    };
    Ok((window, (0..layers).map(|layer| layer >= first).collect()))
}
