//! `config.json`: the shape of a model.

mod quantization;

use std::path::Path;

use serde_json::Value;

pub use super::config_keys::{ConfigError, RopeScaling};
use super::config_keys::{Keys, MOST_WEIGHTS};
use super::family::{Activation, Architecture, Family, NormPlaces, Projections, QueryKeyNorm};
use crate::kernels::attention::{AttentionShape, LayerKind, LongFrequencies};
use crate::recipe::Quantization;
pub use quantization::KEY as QUANTIZATION_CONFIG;

/// The widest heads that are accepted. Larger numbers are mistakes, and lists of that length would
/// fill the memory.
const WIDEST_HEAD: usize = 65_536;

/// The shape of a decoder. Widths are in elements, lengths in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// How the layers differ from the common ones.
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// In layers with the sliding window, a token sees itself and the `sliding_window - 1` tokens
    /// before it. See [`Self::window`]. `None` if no layer has it.
    pub sliding_window: Option<usize>,
    pub tie_word_embeddings: bool,
    /// The quantization of the stored weights; `None` if they are numbers.
    pub quantization: Option<Quantization>,
    /// The file as it was read. Checkpoints get all of it, including keys that this program does
    /// not use.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// The file cannot be read, or see [`Self::from_json`].
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let raw = serde_json::from_str(&text)
            .map_err(|source| ConfigError::Json { path: path.clone(), source })?;
        Self::from_json(raw, &path)
    }

    /// Reads a parsed `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// A key is missing or has a value that is not supported.
    pub fn from_json(raw: Value, path: &Path) -> Result<Self, ConfigError> {
        let keys = Keys { raw: &raw, path };
        let family = Family::read(&keys)?;
        let num_hidden_layers = keys.layers()?;
        check_activation(&keys, &family)?;
        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let num_key_value_heads =
            keys.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(keys.invalid(
                "num_key_value_heads",
                num_key_value_heads,
                format!("a divisor of num_attention_heads ({num_attention_heads})"),
            ));
        }
        let head_dim = match keys.size_or("head_dim", family.defaults.head_dim)? {
            Some(dim) => dim,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(keys.invalid(
                    "num_attention_heads",
                    num_attention_heads,
                    format!("a divisor of hidden_size ({hidden_size}), or `head_dim` beside it"),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(keys.invalid("head_dim", head_dim, "an even number"));
        }
        if head_dim > WIDEST_HEAD {
            return Err(keys.invalid("head_dim", head_dim, format!("at most {WIDEST_HEAD}")));
        }
        let defaults = family.defaults.clone();
        let max_position_embeddings = keys
            .optional_size("max_position_embeddings")?
            .unwrap_or(defaults.max_position_embeddings);
        let rotated = (head_dim as f64 * family.rotary_share) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            return Err(keys.invalid(
                "partial_rotary_factor",
                family.rotary_share,
                format!("a share of head_dim ({head_dim}) that is an even number"),
            ));
        }
        let angles = rotated / 2;
        let longrope_angles = family.has_longrope.then_some(angles);
        let rope_scaling = keys.rope_scaling(max_position_embeddings, longrope_angles)?;
        let norm_eps_key = if family.has_layer_norm { "norm_epsilon" } else { "rms_norm_eps" };
        let any_windowed = (0..num_hidden_layers).any(|layer| family.has_window(layer));
        let tied = keys.optional_flag("tie_word_embeddings")?;
        let config = Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            norm_eps: keys.number(norm_eps_key)?.unwrap_or(defaults.norm_eps),
            rope_theta: keys.rope_theta(defaults.rope_theta)?,
            rope_scaling,
            sliding_window: family.sliding_window.filter(|_| any_windowed),
            tie_word_embeddings: tied.unwrap_or(defaults.tie_word_embeddings),
            family,
            quantization: quantization::stored(&raw, path)?,
            raw: Value::Null,
        };
        let weights = config.rough_weights();
        match weights <= MOST_WEIGHTS {
            true => Ok(Self { raw, ..config }),
            false => Err(ConfigError::TooLarge { path: path.into(), weights }),
        }
    }

    /// About as many weights as [`Self::parameters`], but at least as many, for sizes of which the
    /// products may not fit 64 bits.
    fn rough_weights(&self) -> f64 {
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.head_dim];
        let [vocab, hidden, intermediate, head_dim] = sizes.map(|size| size as f64);
        let heads = (2 * self.num_attention_heads + 2 * self.num_key_value_heads) as f64;
        let mlps = self.family.experts.as_ref().map_or(1.0, |experts| experts.count as f64);
        let mlps = mlps * (3.0 * intermediate + 1.0);
        let layer = (heads * head_dim + mlps) * (hidden + 1.0) + 8.0 * hidden;
        2.0 * vocab * hidden + self.num_hidden_layers as f64 * layer + 2.0 * hidden
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The sliding window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.family.has_window(layer))
    }

    /// Whether some layers have the sliding window and others have none.
    pub fn windows_differ(&self) -> bool {
        self.sliding_window.is_some()
            && (0..self.num_hidden_layers).any(|layer| self.window(layer).is_none())
    }

    /// Whether a layer has the window and whether it has a rotary embedding, for each kind of
    /// layer, in the order of the layers.
    fn kinds(&self) -> Vec<(bool, bool)> {
        let mut kinds = Vec::new();
        for kind in (0..self.num_hidden_layers).map(|layer| self.kind(layer)) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }

    fn kind(&self, layer: usize) -> (bool, bool) {
        (self.window(layer).is_some(), self.family.has_rotary(layer))
    }

    /// The index of each layer's kind in [`Self::attention_shape`].
    pub fn layer_kinds(&self) -> Vec<usize> {
        let kinds = self.kinds();
        let index = |layer| kinds.iter().position(|kind| *kind == self.kind(layer));
        (0..self.num_hidden_layers).map(|layer| index(layer).unwrap_or(0)).collect()
    }

    /// Number of weights of one layer's linear layers, without biases.
    pub fn linear_parameters(&self) -> usize {
        self.attention_parameters() + self.hidden_size * self.mlp_width()
    }

    /// Number of weights of the linear layers of one layer's attention, without biases.
    fn attention_parameters(&self) -> usize {
        2 * self.hidden_size * (self.query_width() + self.key_width())
    }

    /// Number of weights of one layer that `load_in_4bit` quantizes. As in transformers, experts
    /// and their router are not quantized.
    pub fn quantized_parameters(&self) -> usize {
        match self.family.experts {
            None => self.linear_parameters(),
            Some(_) => self.attention_parameters(),
        }
    }

    /// The widths of the MLP's matrices together; with experts those of all experts and of the
    /// router.
    pub fn mlp_width(&self) -> usize {
        match &self.family.experts {
            None => self.one_mlp_width(),
            Some(experts) => experts.count * (self.one_mlp_width() + 1),
        }
    }

    /// The widths of the matrices of the MLP, or of one expert.
    fn one_mlp_width(&self) -> usize {
        match self.family.projections {
            Projections::Ungated => 2 * self.intermediate_size,
            _ => 3 * self.intermediate_size,
        }
    }

    /// Numbers that the graph of the MLP keeps for each token: the outputs of its matrices but the
    /// last one, and the product of gate and up. Each expert of a token also keeps its input and
    /// its output.
    pub fn mlp_graph_width(&self) -> usize {
        match &self.family.experts {
            None => self.one_mlp_width(),
            Some(experts) => experts.per_token * (self.one_mlp_width() + 2 * self.hidden_size),
        }
    }

    /// Number of weights of the largest linear layer beside the head.
    pub fn largest_linear(&self) -> usize {
        let (q, ff) = (self.query_width(), self.intermediate_size);
        let widest = match self.family.projections {
            Projections::Separate | Projections::Ungated | Projections::Experts => ff.max(q),
            Projections::Fused => (2 * ff).max(q + 2 * self.key_width()),
        };
        self.hidden_size * widest
    }

    /// Number of weights of one layer.
    pub fn layer_parameters(&self) -> usize {
        let (d, q, kv, ff) =
            (self.hidden_size, self.query_width(), self.key_width(), self.intermediate_size);
        let family = &self.family;
        let biases = if family.qkv_bias { q + 2 * kv } else { 0 }
            + if family.output_bias { d } else { 0 }
            + if family.mlp_bias { self.mlp_width() - ff + d } else { 0 };
        let norms = match family.norms {
            NormPlaces::Before | NormPlaces::After => 2 * self.norm_parameters(),
            NormPlaces::Both => 4 * self.norm_parameters(),
        };
        let query_key_norms = match family.query_key_norm {
            None => 0,
            Some(QueryKeyNorm::Heads) => 2 * self.head_dim,
            Some(QueryKeyNorm::Whole) => q + kv,
        };
        self.linear_parameters() + norms + query_key_norms + biases
    }

    /// Numbers that a layer's graph keeps for each token beyond those of the common layer: the
    /// inputs of further norms.
    pub fn further_graph_width(&self) -> usize {
        let norms = if self.family.norms == NormPlaces::Both { 2 * self.hidden_size } else { 0 };
        let query_key_norms = match self.family.query_key_norm {
            None => 0,
            Some(_) => self.query_width() + self.key_width(),
        };
        norms + query_key_norms
    }

    /// Number of weights of the whole model; a tied head counts once.
    pub fn parameters(&self) -> usize {
        let embedding = self.vocab_size * self.hidden_size;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let layers = self.num_hidden_layers * self.layer_parameters();
        heads * embedding + layers + self.norm_parameters()
    }

    /// Number of weights that take part in the computation of one token: all but those of the
    /// experts that are not chosen.
    pub fn active_parameters(&self) -> usize {
        let idle = self.family.experts.as_ref().map_or(0, |x| x.count - x.per_token);
        let expert = self.hidden_size * self.one_mlp_width();
        self.parameters() - self.num_hidden_layers * idle * expert
    }

    /// Number of weights of a norm of rows, with its bias.
    fn norm_parameters(&self) -> usize {
        if self.family.has_layer_norm { 2 * self.hidden_size } else { self.hidden_size }
    }

    /// Number of weights of the whole model without its embedding (nor a tied head). transformers
    /// computes the number of operations from it.
    pub fn parameters_beside_embedding(&self) -> usize {
        self.parameters() - self.vocab_size * self.hidden_size
    }

    /// The properties of the model that the attention kernels use.
    pub fn attention_shape(&self) -> AttentionShape {
        let kind = |(windowed, rotary): (bool, bool)| LayerKind {
            window: self.sliding_window.filter(|_| windowed),
            rotary_factor: match self.rope_scaling {
                RopeScaling::LongRope { attention_factor, .. } => attention_factor,
                _ => 1.0,
            },
            rotary_frequencies: match (rotary, self.family.local_rope_theta) {
                (false, _) => vec![0.0; self.head_dim / 2],
                (true, Some(theta)) if windowed => self.unscaled_frequencies(theta),
                (true, _) => self.rotary_frequencies(),
            },
            long: self.long_frequencies(),
        };
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            softcap: self.family.attention_softcap.map(|cap| cap as f32),
            kinds: self.kinds().into_iter().map(kind).collect(),
        }
    }

    /// The factor of queries that turns the scores' factor `1 / √e` into that of the model; `None`
    /// if nothing is to be done.
    pub fn query_factor(&self) -> Option<f64> {
        let multiplier = self.family.attention_multiplier?;
        let factor = multiplier * (self.head_dim as f64).sqrt();
        ((factor - 1.0).abs() > 1e-12).then_some(factor)
    }

    /// The number of elements of a head that are rotated: an even number.
    fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.family.rotary_share) as usize
    }

    /// The most tokens of a sequence, if longer ones have other rotary frequencies.
    pub fn short_positions(&self) -> Option<usize> {
        match self.rope_scaling {
            RopeScaling::LongRope { original_max_position, .. } => Some(original_max_position),
            _ => None,
        }
    }

    /// The rotary frequencies of long sequences, if they have other ones.
    fn long_frequencies(&self) -> Option<LongFrequencies> {
        let RopeScaling::LongRope { long_factor, original_max_position, .. } = &self.rope_scaling
        else {
            return None;
        };
        let frequencies = self.unscaled_frequencies(self.rope_theta).into_iter().zip(long_factor);
        Some(LongFrequencies {
            beyond: *original_max_position,
            rotary_frequencies: frequencies.map(|(frequency, factor)| frequency / factor).collect(),
        })
    }

    /// `theta^(-2i / rotary_dim)`, `[rotary_dim / 2]`.
    fn unscaled_frequencies(&self, theta: f64) -> Vec<f64> {
        let dim = self.rotary_dim();
        (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect()
    }

    /// Inverse rotary frequencies, `[rotary_dim / 2]`.
    ///
    /// `theta^(-2i / rotary_dim)`, scaled as `rope_scaling` says. Llama 3.1's rule is from its model
    /// card: frequencies with wavelengths beyond `original_max_position / low_freq_factor` are
    /// divided by `factor`.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        self.unscaled_frequencies(self.rope_theta)
            .into_iter()
            .enumerate()
            .map(|(index, frequency)| match self.rope_scaling {
                RopeScaling::None => frequency,
                RopeScaling::LongRope { ref short_factor, .. } => frequency / short_factor[index],
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position,
                } => {
                    let wavelength = std::f64::consts::TAU / frequency;
                    let smooth = (original_max_position / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect()
    }
}

/// Checks that `hidden_act`, or `hidden_activation` of Gemma 2 and 3, is the family's.
fn check_activation(keys: &Keys, family: &Family) -> Result<(), ConfigError> {
    let (names, expected): (&[&str], _) = match family.activation {
        Activation::Silu => (&["silu"], "`silu`"),
        // Gemma's first configurations write `gelu` for the tanh form.
        Activation::GeluTanh if family.architecture == Architecture::Gemma => {
            (&["gelu_pytorch_tanh", "gelu"], "`gelu_pytorch_tanh`")
        }
        Activation::GeluTanh => (&["gelu_pytorch_tanh"], "`gelu_pytorch_tanh`"),
    };
    let key = match family.architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => "hidden_activation",
        _ => "hidden_act",
    };
    match keys.raw.get(key).and_then(Value::as_str) {
        Some(found) if !names.contains(&found) => Err(keys.invalid(key, found, expected)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod published;
#[cfg(test)]
mod tests;
