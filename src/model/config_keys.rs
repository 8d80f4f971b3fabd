//! Typed look-ups in a `config.json`, and their errors.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The most layers that are accepted. Larger numbers are mistakes, and lists of that length would
/// fill the memory.
const MOST_LAYERS: usize = 10_000;
/// The most weights of a model, so that numbers of bytes and operations fit their types.
pub const MOST_WEIGHTS: f64 = 1e15;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; a model folder needs the config.json of its weights")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid JSON: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: model_type `{found}` is not supported; supported are {supported}")]
    Architecture { path: PathBuf, found: String, supported: String },
    #[error("{path}: `{key}` is missing")]
    Missing { path: PathBuf, key: &'static str },
    #[error(
        "{path}: its sizes make a model of {weights:.1e} weights; is the file damaged? At most \
         {MOST_WEIGHTS:.0e} weights are possible"
    )]
    TooLarge { path: PathBuf, weights: f64 },
    #[error("{path}: `{key}` is {found}; expected {expected}")]
    Invalid { path: PathBuf, key: &'static str, found: String, expected: String },
    #[error(
        "{path}: the weights are quantized with {found}, which cannot be read; use the 16-bit or \
         32-bit model that they were made from (`load_in_4bit: true` quantizes it to nf4 while it \
         is loaded)"
    )]
    Quantized { path: PathBuf, found: String },
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
    /// LongRoPE (arXiv 2402.13753): each frequency is divided by a factor of its own, which is
    /// another one in sequences of more than `original_max_position` tokens.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        /// The factor of cosines and sines.
        attention_factor: f64,
        original_max_position: usize,
    },
}

/// Typed look-ups with the file's name in every error.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub raw: &'a Value,
    pub path: &'a Path,
}

impl Keys<'_> {
    /// An error about the value of `key`.
    pub fn invalid(
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

    /// A positive whole number, if the key is set.
    pub fn optional_size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                // Products of several sizes must fit into 64 bits.
                Some(n) if n > 0 && n <= i32::MAX as u64 => Ok(Some(n as usize)),
                _ => Err(self.invalid(key, value, "a positive whole number")),
            },
        }
    }

    /// A positive whole number; `default` if the key is missing. `null` is none.
    pub fn size_or(
        &self,
        key: &'static str,
        default: Option<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        match self.raw.get(key) {
            None => Ok(default),
            Some(_) => self.optional_size(key),
        }
    }

    /// A positive whole number that must be there.
    pub fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Missing { path: self.path.into(), key })
    }

    /// The number of layers.
    pub fn layers(&self) -> Result<usize, ConfigError> {
        let key = "num_hidden_layers";
        match self.size(key)? {
            layers if layers <= MOST_LAYERS => Ok(layers),
            layers => Err(self.invalid(key, layers, format!("at most {MOST_LAYERS}"))),
        }
    }

    /// True or false; false if the key is not set.
    pub fn flag(&self, key: &'static str) -> Result<bool, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(key, value, "true or false")),
        }
    }

    /// True or false, if the key is set.
    pub fn optional_flag(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.flag(key).map(Some),
        }
    }

    /// Fails if the key has a value other than null and false.
    pub fn refuse_if_set(&self, key: &'static str) -> Result<(), ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(value) => Err(self.invalid(key, value, "null: it is not supported")),
        }
    }

    /// A positive number, if the key is set.
    pub fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(n) if n > 0.0 => Ok(Some(n)),
                _ => Err(self.invalid(key, value, "a positive number")),
            },
        }
    }

    /// A positive number; `default` if the key is missing. `null` is none.
    pub fn number_or(
        &self,
        key: &'static str,
        default: Option<f64>,
    ) -> Result<Option<f64>, ConfigError> {
        match self.raw.get(key) {
            None => Ok(default),
            Some(_) => self.number(key),
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
            // Models with two kinds of layers have settings for each kind.
            found => Ok(found.map(|(_, value)| value.get("full_attention").unwrap_or(value))),
        }
    }

    /// The base of the rotary frequencies.
    pub fn rope_theta(&self, default: f64) -> Result<f64, ConfigError> {
        let nested = match self.rope_settings()? {
            Some(settings) => Keys { raw: settings, path: self.path }.number("rope_theta")?,
            None => None,
        };
        Ok(match nested {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(default),
        })
    }

    /// A positive number of the rotary settings, if the key is set.
    pub fn rotary_number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        match self.rope_settings()? {
            Some(settings) => Keys { raw: settings, path: self.path }.number(key),
            None => Ok(None),
        }
    }

    /// How the rotary frequencies are scaled. `longrope` is for families that have it, with
    /// `angles` frequencies; `None` refuses it.
    pub fn rope_scaling(
        &self,
        max_position_embeddings: usize,
        longrope_angles: Option<usize>,
    ) -> Result<RopeScaling, ConfigError> {
        let Some(settings) = self.rope_settings()? else { return Ok(RopeScaling::None) };
        let kind = ["rope_type", "type"].iter().find_map(|key| settings.get(*key));
        let optional = |key: &'static str| Keys { raw: settings, path: self.path }.number(key);
        let number = |key: &'static str| {
            optional(key)?.ok_or(ConfigError::Missing { path: self.path.into(), key })
        };
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") if longrope_angles.is_none() => {
                Ok(RopeScaling::Linear { factor: number("factor")? })
            }
            Some("llama3") if longrope_angles.is_none() => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                // transformers' default.
                original_max_position: optional("original_max_position_embeddings")?
                    .unwrap_or(max_position_embeddings as f64),
            }),
            // The first Phi-3 models write `su`.
            Some("longrope" | "su") if longrope_angles.is_some() => {
                let settings = Keys { raw: settings, path: self.path };
                self.longrope(settings, max_position_embeddings, longrope_angles.unwrap_or(0))
            }
            Some(other) => Err(self.invalid(
                "rope_scaling",
                other,
                match longrope_angles {
                    None => "`default`, `linear` or `llama3`",
                    Some(_) => "`default` or `longrope`",
                },
            )),
        }
    }

    /// The factor of cosines and sines is `√(1 + ln f / ln o)` if the file has none; `o` is the
    /// original number of positions, and `f` the factor by which the model has more.
    fn longrope(
        &self,
        settings: Keys,
        max_position_embeddings: usize,
        angles: usize,
    ) -> Result<RopeScaling, ConfigError> {
        let key = "original_max_position_embeddings";
        let original = match settings.optional_size(key)? {
            Some(original) => original,
            None => self.optional_size(key)?.unwrap_or(max_position_embeddings),
        };
        let factors = |key: &'static str| {
            let list = settings.raw.get(key).unwrap_or(&Value::Null);
            let positive = |value: &Value| value.as_f64().filter(|factor| *factor > 0.0);
            let factors: Option<Vec<f64>> =
                list.as_array().and_then(|list| list.iter().map(positive).collect());
            let complete = factors.filter(|factors| factors.len() == angles);
            complete.ok_or_else(|| self.invalid(key, list, format!("{angles} positive numbers")))
        };
        let longer = max_position_embeddings as f64 / original as f64;
        let factor = settings.number("factor")?.unwrap_or(longer);
        let by_length = match factor > 1.0 {
            true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            false => 1.0,
        };
        let attention_factor = settings.number("attention_factor")?.unwrap_or(by_length);
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            attention_factor,
            original_max_position: original,
        })
    }
}
