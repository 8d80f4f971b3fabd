//! `config.json`: the shape of a Mistral, Llama or Qwen2 model.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kernels::attention::AttentionShape;

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
            max_position_embeddings: keys.size("max_position_embeddings")?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: keys.rope_theta()?,
            rope_scaling: keys.rope_scaling()?,
            sliding_window: sliding_window.filter(|_| any_windowed),
            windowed_layers,
            tie_word_embeddings: flag("tie_word_embeddings")?,
            qkv_bias: architecture == Architecture::Qwen2 || llama_bias,
            output_bias: llama_bias,
            mlp_bias: architecture == Architecture::Llama && flag("mlp_bias")?,
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

    /// Number of weights of one layer.
    pub fn layer_parameters(&self) -> usize {
        let (d, q, kv, ff) =
            (self.hidden_size, self.query_width(), self.key_width(), self.intermediate_size);
        let biases = if self.qkv_bias { q + 2 * kv } else { 0 }
            + if self.output_bias { d } else { 0 }
            + if self.mlp_bias { 2 * ff + d } else { 0 };
        2 * d * q + 2 * d * kv + 3 * d * ff + 2 * d + biases
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

    /// The rotary settings: `rope_parameters` (transformers 5) or `rope_scaling` (before). If both
    /// exist and differ, they are refused.
    fn rope_settings(&self) -> Result<Option<&Value>, ConfigError> {
        if let [Some(new), Some(old)] = ["rope_parameters", "rope_scaling"]
            .map(|key| self.raw.get(key).filter(|value| !value.is_null()))
            && new != old
        {
            return Err(self.invalid(
                "rope_scaling",
                old,
                "null, or the same as `rope_parameters`",
            ));
        }
        let of_key = |key| self.raw.get(key).filter(|value| !value.is_null()).map(|v| (key, v));
        match ["rope_parameters", "rope_scaling"].into_iter().find_map(of_key) {
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

    fn rope_scaling(&self) -> Result<RopeScaling, ConfigError> {
        let Some(settings) = self.rope_settings()? else { return Ok(RopeScaling::None) };
        let kind = ["rope_type", "type"].iter().find_map(|key| settings.get(*key));
        let number = |key: &'static str| {
            let number = Keys { raw: settings, path: self.path }.number(key)?;
            number.ok_or(ConfigError::Missing { path: self.path.into(), key })
        };
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position: number("original_max_position_embeddings")?,
            }),
            Some(other) => {
                Err(self.invalid("rope_scaling", other, "`default`, `linear` or `llama3`"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false
        })
    }

    fn parse(raw: Value) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_json(raw, Path::new("config.json"))
    }

    #[test]
    fn mistral_7b_has_its_published_size() {
        let config = parse(base()).unwrap();
        assert_eq!(config.parameters(), 7_241_732_096);
        assert_eq!(config.head_dim, 128);
        assert_eq!(config.sliding_window, Some(4096));
    }

    #[test]
    fn every_mistral_layer_keeps_to_the_window() {
        let config = parse(base()).unwrap();
        assert!((0..32).all(|layer| config.window(layer) == Some(4096)));
        assert!(!config.windows_differ());
        let mut raw = base();
        raw.as_object_mut().unwrap().remove("sliding_window");
        assert_eq!(parse(raw.clone()).unwrap().window(0), Some(4096), "transformers' default");
        raw["sliding_window"] = Value::Null;
        let config = parse(raw).unwrap();
        assert!((0..32).all(|layer| config.window(layer).is_none()));
        assert!(!config.windows_differ());
    }

    /// A Qwen2 of four layers: the window of each, and that of the model.
    fn qwen2(changes: Value) -> (Vec<Option<usize>>, Option<usize>) {
        let mut raw = base();
        raw["model_type"] = json!("qwen2");
        raw["num_hidden_layers"] = json!(4);
        for (key, value) in changes.as_object().unwrap() {
            raw[key] = value.clone();
        }
        let config = parse(raw).unwrap();
        let windows: Vec<_> = (0..4).map(|layer| config.window(layer)).collect();
        let differ = windows.contains(&None) && windows.contains(&Some(4096));
        assert_eq!(config.windows_differ(), differ);
        (windows, config.sliding_window)
    }

    #[test]
    fn qwen2_windows_its_last_layers() {
        let (some, none) = (Some(4096), None);
        assert_eq!(qwen2(json!({})), (vec![none; 4], none));
        let uses = |first: usize| json!({"use_sliding_window": true, "max_window_layers": first});
        assert_eq!(qwen2(uses(0)), (vec![some; 4], some));
        assert_eq!(qwen2(uses(3)), (vec![none, none, none, some], some));
        assert_eq!(qwen2(uses(4)), (vec![none; 4], none));
        // transformers' default is 28.
        assert_eq!(qwen2(json!({"use_sliding_window": true})), (vec![none; 4], none));
        let unused = json!({"use_sliding_window": false, "max_window_layers": 2});
        assert_eq!(qwen2(unused), (vec![none; 4], none));
    }

    #[test]
    fn layer_types_decide() {
        let (some, none) = (Some(4096), None);
        let types =
            json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
        let listed =
            json!({"use_sliding_window": true, "max_window_layers": 3, "layer_types": types});
        assert_eq!(qwen2(listed), (vec![some, none, none, some], some));
        let mut raw = base();
        raw["num_hidden_layers"] = json!(4);
        raw["layer_types"] = types;
        let config = parse(raw.clone()).unwrap();
        assert_eq!(
            (config.window(0), config.window(1)),
            (some, some),
            "Mistral takes no such list"
        );
        raw["model_type"] = json!("qwen2");
        raw["use_sliding_window"] = json!(true);
        raw["layer_types"] = json!(["full_attention"]);
        assert_eq!(
            parse(raw).unwrap_err().to_string(),
            "config.json: `layer_types` is [\"full_attention\"]; expected `sliding_attention` or \
             `full_attention` for each of 4 layers"
        );
    }

    #[test]
    fn errors_name_the_key() {
        let mut raw = base();
        raw["num_key_value_heads"] = json!(5);
        assert_eq!(
            parse(raw).unwrap_err().to_string(),
            "config.json: `num_key_value_heads` is 5; \
             expected a divisor of num_attention_heads (32)"
        );
        let mut raw = base();
        raw.as_object_mut().unwrap().remove("hidden_size");
        assert_eq!(parse(raw).unwrap_err().to_string(), "config.json: `hidden_size` is missing");
        let mut raw = base();
        raw["model_type"] = json!("gpt2");
        assert!(parse(raw).unwrap_err().to_string().contains("`gpt2` is not supported"));
    }

    #[test]
    fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
        let mut raw = base();
        raw["model_type"] = json!("llama");
        raw["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let scaled = parse(raw).unwrap().rotary_frequencies();
        let plain = parse(base()).unwrap().rotary_frequencies();
        assert_eq!(scaled[0], plain[0]);
        let last = plain.len() - 1;
        assert!((scaled[last] - plain[last] / 8.0).abs() < 1e-12);
    }
}
