//! `config.json`: the shape of a Mistral, Llama or Qwen2 model.

mod quantization;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kernels::attention::AttentionShape;
use crate::recipe::Quantization;
pub use quantization::KEY as QUANTIZATION_CONFIG;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; a model folder needs the config.json of its weights")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid JSON: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: model_type `{found}` is not supported; mistral, llama and qwen2 are")]
    Architecture { path: PathBuf, found: String },
    #[error("{path}: `{key}` is missing")]
    Missing { path: PathBuf, key: &'static str },
    #[error("{path}: `{key}` is {found}; expected {expected}")]
    Invalid { path: PathBuf, key: &'static str, found: String, expected: String },
    #[error(
        "{path}: the weights are quantized with {found}, which cannot be read; use the 16-bit or \
         32-bit model that they were made from (`load_in_4bit: true` quantizes it to nf4 while it \
         is loaded)"
    )]
    Quantized { path: PathBuf, found: String },
}

/// The decoder families that share this code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Mistral,
    Llama,
    /// Llama with biases on the query, key and value projections.
    Qwen2,
}

/// How rotary frequencies are scaled for sequences that are longer than those of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones are unchanged, with a smooth
    /// transition between them.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position: f64,
    },
}

/// The layers that have the sliding window.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowedLayers {
    /// This layer and those after it.
    From(usize),
    /// Whether each layer has it, from `layer_types`.
    Listed(Vec<bool>),
}

/// The shape of a decoder. Widths are in elements, lengths in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// In layers with the sliding window, a token sees itself and the `sliding_window - 1` tokens
    /// before it. See [`Self::window`]. `None` if no layer has it.
    pub sliding_window: Option<usize>,
    pub windowed_layers: WindowedLayers,
    pub tie_word_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
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
        let architecture = match raw.get("model_type").and_then(Value::as_str) {
            Some("mistral") => Architecture::Mistral,
            Some("llama") => Architecture::Llama,
            Some("qwen2") => Architecture::Qwen2,
            other => {
                let found = other.unwrap_or("(none)").to_string();
                return Err(ConfigError::Architecture { path: path.into(), found });
            }
        };
        if let Some(act) = raw.get("hidden_act").and_then(Value::as_str)
            && act != "silu"
        {
            return Err(keys.invalid("hidden_act", act, "`silu`"));
        }
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
        let head_dim = match keys.optional_size("head_dim")? {
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
        let flag = |key| keys.flag(key);
        let uses_window = match architecture {
            Architecture::Mistral => true,
            Architecture::Llama => false,
            Architecture::Qwen2 => flag("use_sliding_window")?,
        };
        let llama_bias = architecture == Architecture::Llama && flag("attention_bias")?;
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let sliding_window = match keys.raw.get("sliding_window") {
            _ if !uses_window => None,
            // transformers' defaults for missing keys; `null` means none.
            None => Some(4096),
            Some(_) => keys.optional_size("sliding_window")?,
        };
        let windowed_layers = match sliding_window {
            Some(_) => keys.windowed_layers(architecture, num_hidden_layers)?,
            None => WindowedLayers::From(num_hidden_layers),
        };
        let max_position_embeddings =
            keys.optional_size("max_position_embeddings")?.unwrap_or(match architecture {
                // transformers' defaults.
                Architecture::Llama => 2048,
                Architecture::Mistral => 131_072,
                Architecture::Qwen2 => 32_768,
            });
        let any_windowed = (0..num_hidden_layers).any(|layer| windowed_layers.has(layer));
        Ok(Self {
            architecture,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: keys.rope_theta()?,
            rope_scaling: keys.rope_scaling(max_position_embeddings)?,
            sliding_window: sliding_window.filter(|_| any_windowed),
            windowed_layers,
            tie_word_embeddings: flag("tie_word_embeddings")?,
            qkv_bias: architecture == Architecture::Qwen2 || llama_bias,
            output_bias: llama_bias,
            mlp_bias: architecture == Architecture::Llama && flag("mlp_bias")?,
            quantization: quantization::stored(&raw, path)?,
            raw,
        })
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
        self.sliding_window.filter(|_| self.windowed_layers.has(layer))
    }

    /// Whether some layers have the sliding window and others have none.
    pub fn windows_differ(&self) -> bool {
        self.sliding_window.is_some()
            && (0..self.num_hidden_layers).any(|layer| !self.windowed_layers.has(layer))
    }

    /// Number of weights of one layer's linear layers, without biases.
    pub fn linear_parameters(&self) -> usize {
        let (d, ff) = (self.hidden_size, self.intermediate_size);
        2 * d * self.query_width() + 2 * d * self.key_width() + 3 * d * ff
    }

    /// Number of weights of the largest linear layer beside the head.
    pub fn largest_linear(&self) -> usize {
        self.hidden_size * self.intermediate_size.max(self.query_width())
    }

    /// Number of weights of one layer.
    pub fn layer_parameters(&self) -> usize {
        let (d, q, kv, ff) =
            (self.hidden_size, self.query_width(), self.key_width(), self.intermediate_size);
        let biases = if self.qkv_bias { q + 2 * kv } else { 0 }
            + if self.output_bias { d } else { 0 }
            + if self.mlp_bias { 2 * ff + d } else { 0 };
        self.linear_parameters() + 2 * d + biases
    }

    /// Number of weights of the whole model; a tied head counts once.
    pub fn parameters(&self) -> usize {
        let embedding = self.vocab_size * self.hidden_size;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        heads * embedding + self.num_hidden_layers * self.layer_parameters() + self.hidden_size
    }

    /// Number of weights of the whole model without its embedding (nor a tied head). transformers
    /// computes the number of operations from it.
    pub fn parameters_beside_embedding(&self) -> usize {
        self.parameters() - self.vocab_size * self.hidden_size
    }

    /// What the attention kernels need to know about the model.
    pub fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            window: self.sliding_window,
            windows_differ: self.windows_differ(),
            rotary_frequencies: self.rotary_frequencies(),
        }
    }

    /// Inverse rotary frequencies, `[head_dim / 2]`.
    ///
    /// `theta^(-2i / head_dim)`, scaled as `rope_scaling` says. Llama 3.1's rule is from its model
    /// card: frequencies with wavelengths beyond `original_max_position / low_freq_factor` are
    /// divided by `factor`.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        (0..self.head_dim / 2)
            .map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64))
            .map(|frequency| match self.rope_scaling {
                RopeScaling::None => frequency,
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

impl WindowedLayers {
    fn has(&self, layer: usize) -> bool {
        match self {
            Self::From(first) => layer >= *first,
            Self::Listed(layers) => layers[layer],
        }
    }
}

/// Typed look-ups with the file's name in every error.
struct Keys<'a> {
    raw: &'a Value,
    path: &'a Path,
}

impl Keys<'_> {
    fn invalid(
        &self,
        key: &'static str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Invalid {
            path: self.path.into(),
            key,
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    fn optional_size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                // Products of several sizes must fit into 64 bits.
                Some(n) if n > 0 && n <= i32::MAX as u64 => Ok(Some(n as usize)),
                _ => Err(self.invalid(key, value, "a positive whole number")),
            },
        }
    }

    fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Missing { path: self.path.into(), key })
    }

    fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(key, value, "true or false")),
        }
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) if n > 0.0 => Ok(Some(n)),
                _ => Err(self.invalid(key, value, "a positive number")),
            },
        }
    }

    /// transformers' rules. Mistral: all layers. Qwen2: the layers that `layer_types` names, or
    /// without it those after the first `max_window_layers` (by default 28).
    fn windowed_layers(
        &self,
        architecture: Architecture,
        layers: usize,
    ) -> Result<WindowedLayers, ConfigError> {
        if architecture != Architecture::Qwen2 {
            return Ok(WindowedLayers::From(0));
        }
        if let Some(types) = self.raw.get("layer_types").filter(|types| !types.is_null()) {
            let windowed = |kind: &Value| match kind.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let listed: Option<Vec<bool>> =
                types.as_array().and_then(|types| types.iter().map(windowed).collect());
            let expected =
                format!("`sliding_attention` or `full_attention` for each of {layers} layers");
            return match listed {
                Some(listed) if listed.len() == layers => Ok(WindowedLayers::Listed(listed)),
                _ => Err(self.invalid("layer_types", types, expected)),
            };
        }
        let key = "max_window_layers";
        match self.raw.get(key).filter(|first| !first.is_null()) {
            None => Ok(WindowedLayers::From(28)),
            Some(first) => match first.as_u64() {
                Some(first) => Ok(WindowedLayers::From(first as usize)),
                None => Err(self.invalid(key, first, "a whole number")),
            },
        }
    }

    /// The rotary settings: `rope_scaling` (before transformers 5), else `rope_parameters`. As in
    /// transformers, an empty `rope_scaling` counts as missing.
    fn rope_settings(&self) -> Result<Option<&Value>, ConfigError> {
        let is_given = |value: &&Value| {
            !value.is_null() && value.as_object().is_none_or(|settings| !settings.is_empty())
        };
        let of_key = |key| self.raw.get(key).filter(is_given).map(|value| (key, value));
        match ["rope_scaling", "rope_parameters"].into_iter().find_map(of_key) {
            Some((key, value)) if !value.is_object() => Err(self.invalid(key, value, "an object")),
            found => Ok(found.map(|(_, value)| value)),
        }
    }

    fn rope_theta(&self) -> Result<f64, ConfigError> {
        let nested = match self.rope_settings()? {
            Some(settings) => Keys { raw: settings, path: self.path }.number("rope_theta")?,
            None => None,
        };
        Ok(match nested {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        })
    }

    fn rope_scaling(&self, max_position_embeddings: usize) -> Result<RopeScaling, ConfigError> {
        let Some(settings) = self.rope_settings()? else { return Ok(RopeScaling::None) };
        let kind = ["rope_type", "type"].iter().find_map(|key| settings.get(*key));
        let optional = |key: &'static str| Keys { raw: settings, path: self.path }.number(key);
        let number = |key: &'static str| {
            optional(key)?.ok_or(ConfigError::Missing { path: self.path.into(), key })
        };
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                // transformers' default.
                original_max_position: optional("original_max_position_embeddings")?
                    .unwrap_or(max_position_embeddings as f64),
            }),
            Some(other) => {
                Err(self.invalid("rope_scaling", other, "`default`, `linear` or `llama3`"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
