//! The settings of an adapter, and `adapter_config.json`, the file in which PEFT keeps them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::AdapterError;
use super::targets::{Selection, Targets, of_pattern};
use crate::files::json_object::read_object;
use crate::recipe::LoraSettings;

/// The file of the settings in an adapter's folder.
pub const CONFIG: &str = "adapter_config.json";

/// The version of PEFT whose files these are.
const PEFT_VERSION: &str = "0.21.2";

/// The settings of a LoRA adapter, by PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The name of the model that the adapter belongs to: a hub id or a folder.
    pub base_model: String,
    /// The revision of the base on the hub.
    pub revision: Option<String>,
    /// The rank: rows of A and columns of B.
    pub r: usize,
    /// α. The adapter's output is multiplied by α / r, or by α / √r with `use_rslora`.
    pub alpha: f64,
    /// The probability with which dropout drops an element of the adapter's input.
    pub dropout: f64,
    /// Rank-stabilized LoRA (arXiv 2312.03732).
    pub use_rslora: bool,
    pub selection: Selection,
    /// Other ranks for some modules: a regular expression for the end of the name, and the rank.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other α for some modules.
    pub alpha_pattern: Vec<(String, f64)>,
}

/// The adapter of a decoder: its settings, and the modules that it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub config: LoraConfig,
    /// Names of the adapted modules without what is before them, sorted: `q_proj`, `v_proj`.
    pub targets: Vec<&'static str>,
}

impl LoraConfig {
    /// The settings of a recipe, for the base model of this name.
    pub fn of_recipe(settings: &LoraSettings, base_model: &str, revision: Option<&str>) -> Self {
        let targets = match settings.lora_target_modules.as_slice() {
            [] => Targets::Names(["q_proj", "v_proj"].map(String::from).to_vec()),
            [one] => Targets::of_text(one),
            several => Targets::Names(several.to_vec()),
        };
        Self {
            base_model: base_model.to_owned(),
            revision: revision.map(str::to_owned),
            r: settings.lora_r,
            alpha: settings.lora_alpha,
            dropout: settings.lora_dropout,
            use_rslora: settings.use_rslora,
            selection: Selection {
                targets,
                exclude: None,
                layers: None,
                modules_to_save: settings.lora_modules_to_save.clone(),
            },
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }

    /// The rank and the factor of the adapter of `module`.
    ///
    /// # Errors
    /// A pattern is not a valid regular expression.
    pub fn rank_and_scale(&self, module: &str) -> Result<(usize, f64), AdapterError> {
        let r = of_pattern(&self.rank_pattern, module)?.unwrap_or(self.r);
        let alpha = of_pattern(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        let divisor = if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        Ok((r, alpha / divisor))
    }

    /// Reads the settings of the adapter in `folder`.
    ///
    /// # Errors
    /// The file is missing or damaged, or asks for something that is not supported.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG);
        match read_object(&path, |text| serde_json::from_str(text))? {
            Some(fields) => Fields { fields, path }.config(),
            None => Err(AdapterError::NoAdapter(folder.to_path_buf())),
        }
    }

    /// `adapter_config.json`: PEFT's keys, sorted. `targets` are the names of the adapted modules.
    pub fn to_json(&self, targets: &[&str]) -> Value {
        let pattern = |names: &Option<Targets>| match names {
            None => Value::Null,
            Some(Targets::AllLinear) => json!("all-linear"),
            Some(Targets::Names(names)) => json!(names),
            Some(Targets::Pattern(pattern)) => json!(pattern),
        };
        let target_modules = match &self.selection.targets {
            Targets::AllLinear => json!(targets),
            other => pattern(&Some(other.clone())),
        };
        let whole = |x: f64| if x.fract() == 0.0 { json!(x as i64) } else { json!(x) };
        let ranks: Map<String, Value> =
            self.rank_pattern.iter().map(|(key, r)| (key.clone(), json!(r))).collect();
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), whole(*alpha))).collect();
        let saved = &self.selection.modules_to_save;
        json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "exclude_modules": pattern(&self.selection.exclude),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": self.selection.layers,
            "loftq_config": {},
            "lora_alpha": whole(self.alpha),
            "lora_bias": false,
            "lora_dropout": self.dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": target_modules,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// `adapter_config.json` while it is read.
struct Fields {
    fields: Map<String, Value>,
    path: PathBuf,
}

/// Keys of PEFT that change the adapter's arithmetic in a way that is not implemented, and why.
/// They must be missing, null, false or empty.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("use_dora", "DoRA is not implemented; train LoRA, or merge the adapter with PEFT"),
    ("lora_bias", "B has no bias; merge the adapter with PEFT"),
    ("fan_in_fan_out", "the linear layers of these models have weights [out, in]"),
    ("target_parameters", "only linear layers can have an adapter"),
    ("trainable_token_indices", "single rows of an embedding cannot be trained"),
    ("layer_replication", "layers cannot be replicated"),
    ("layers_pattern", "layers are chosen by `layers_to_transform` alone"),
    ("alora_invocation_tokens", "activated LoRA is not implemented"),
    ("use_qalora", "QALoRA is not implemented"),
    ("use_bdlora", "block-diagonal LoRA is not implemented"),
    ("velora_config", "VeLoRA is not implemented"),
    ("arrow_config", "routing between adapters is not implemented"),
];

/// Initializations after which PEFT loads an adapter without changing its base.
const PLAIN_INITIALIZATIONS: [&str; 4] = ["true", "false", "gaussian", "eva"];

impl Fields {
    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn invalid(&self, key: &'static str, found: &Value, expected: &'static str) -> AdapterError {
        let (path, found) = (self.path.clone(), found.to_string());
        AdapterError::Invalid { path, key, found, expected }
    }

    fn unsupported(&self, key: &'static str, found: &Value, reason: &'static str) -> AdapterError {
        let (path, found) = (self.path.clone(), found.to_string());
        AdapterError::Unsupported { path, key, found, reason }
    }

    fn required(&self, key: &'static str, expected: &'static str) -> Result<&Value, AdapterError> {
        self.get(key).ok_or_else(|| self.invalid(key, &Value::Null, expected))
    }

    fn config(&self) -> Result<LoraConfig, AdapterError> {
        self.check_supported()?;
        let number = |key: &'static str| {
            let value = self.required(key, "a number")?;
            value.as_f64().ok_or_else(|| self.invalid(key, value, "a number"))
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let base = self.required("base_model_name_or_path", "the name of the base model")?;
        let dropout = self.get("lora_dropout").map_or(Ok(0.0), |_| number("lora_dropout"))?;
        if !(0.0..1.0).contains(&dropout) {
            let found = json!(dropout);
            return Err(self.invalid("lora_dropout", &found, "at least 0 and below 1"));
        }
        Ok(LoraConfig {
            base_model: text(base)
                .ok_or_else(|| self.invalid("base_model_name_or_path", base, "a text"))?,
            revision: self.get("revision").and_then(text),
            r: self.rank("r", self.required("r", "a whole number of at least 1")?)?,
            alpha: number("lora_alpha")?,
            dropout,
            use_rslora: self.get("use_rslora").is_some_and(|value| *value == json!(true)),
            selection: Selection {
                targets: self.modules("target_modules")?.ok_or_else(|| {
                    self.invalid("target_modules", &Value::Null, "names of modules")
                })?,
                exclude: self.modules("exclude_modules")?,
                layers: self.layers()?,
                modules_to_save: self.names("modules_to_save")?,
            },
            rank_pattern: self
                .patterns("rank_pattern", |value| self.rank("rank_pattern", value))?,
            alpha_pattern: self.patterns("alpha_pattern", |value| {
                value.as_f64().ok_or_else(|| self.invalid("alpha_pattern", value, "numbers"))
            })?,
        })
    }

    fn check_supported(&self) -> Result<(), AdapterError> {
        let kind = self.required("peft_type", "`LORA`")?;
        if *kind != json!("LORA") {
            return Err(self.unsupported("peft_type", kind, "only LORA is implemented"));
        }
        if let Some(bias) = self.get("bias").filter(|bias| **bias != json!("none")) {
            return Err(self.unsupported("bias", bias, "biases of the base stay as they are"));
        }
        if let Some(init) = self.get("init_lora_weights") {
            let word = init.as_str().map_or_else(|| init.to_string(), str::to_lowercase);
            if !PLAIN_INITIALIZATIONS.contains(&word.as_str()) {
                let reason = "it changes the base model; convert the adapter with PEFT \
                              (`path_initial_model_for_weight_conversion`)";
                return Err(self.unsupported("init_lora_weights", init, reason));
            }
        }
        for (key, reason) in UNSUPPORTED {
            let Some(value) = self.get(key) else { continue };
            let is_off = match value {
                Value::Bool(flag) => !flag,
                Value::Array(items) => items.is_empty(),
                Value::Object(entries) => entries.is_empty(),
                _ => false,
            };
            if !is_off {
                return Err(self.unsupported(key, value, reason));
            }
        }
        Ok(())
    }

    fn rank(&self, key: &'static str, value: &Value) -> Result<usize, AdapterError> {
        let rank = value.as_u64().filter(|rank| *rank > 0).and_then(|rank| rank.try_into().ok());
        rank.ok_or_else(|| self.invalid(key, value, "a whole number of at least 1"))
    }

    /// A text or a list of names.
    fn modules(&self, key: &'static str) -> Result<Option<Targets>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(Some(Targets::AllLinear))
            }
            Some(Value::String(text)) => Ok(Some(Targets::Pattern(text.clone()))),
            Some(_) => Ok(Some(Targets::Names(self.names(key)?))
                .filter(|targets| !matches!(targets, Targets::Names(names) if names.is_empty()))),
        }
    }

    fn names(&self, key: &'static str) -> Result<Vec<String>, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let texts = value.as_array().map(|items| {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        texts.flatten().ok_or_else(|| self.invalid(key, value, "a list of names of modules"))
    }

    fn layers(&self) -> Result<Option<Vec<usize>>, AdapterError> {
        const KEY: &str = "layers_to_transform";
        let Some(value) = self.get(KEY) else { return Ok(None) };
        let number = |value: &Value| value.as_u64().map(|layer| layer as usize);
        let layers = match value {
            Value::Array(items) => items.iter().map(number).collect(),
            one => number(one).map(|layer| vec![layer]),
        };
        let layers: Option<Vec<usize>> = layers;
        let layers = layers.ok_or_else(|| self.invalid(KEY, value, "numbers of layers"))?;
        Ok(Some(layers).filter(|layers| !layers.is_empty()))
    }

    fn patterns<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Value) -> Result<T, AdapterError>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let entries =
            value.as_object().ok_or_else(|| self.invalid(key, value, "names and numbers"))?;
        entries.iter().map(|(pattern, value)| Ok((pattern.clone(), read(value)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: Value) -> Result<LoraConfig, String> {
        let mut raw = json!({"peft_type": "LORA", "base_model_name_or_path": "me/base", "r": 4,
            "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["v_proj", "q_proj"],
            "bias": "none", "task_type": "CAUSAL_LM", "use_rslora": false});
        for (key, value) in changes.as_object().unwrap() {
            raw[key] = value.clone();
        }
        let fields = raw.as_object().unwrap().clone();
        let path = PathBuf::from("a/adapter_config.json");
        Fields { fields, path }.config().map_err(|error| error.to_string())
    }

    #[test]
    fn the_factor_is_alpha_over_r_or_over_its_root() {
        let factor = |changes: Value| {
            parse(changes).unwrap().rank_and_scale("model.layers.0.self_attn.q_proj").unwrap()
        };
        assert_eq!(factor(json!({})), (4, 2.0));
        assert_eq!(factor(json!({"use_rslora": true})), (4, 4.0));
        let patterns = json!({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 99}});
        assert_eq!(factor(patterns), (2, 4.0));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let changes = json!({"modules_to_save": ["lm_head"], "revision": "v1", "lora_alpha": 1.5,
            "rank_pattern": {"layers.1.*": 2}, "alpha_pattern": {"q_proj": 3.0},
            "layers_to_transform": [0, 1], "exclude_modules": "model.layers.0.*"});
        let config = parse(changes).unwrap();
        let written = config.to_json(&["q_proj", "v_proj"]);
        assert_eq!(parse(written.clone()).unwrap(), config);
        let keys: Vec<&String> = written.as_object().unwrap().keys().collect();
        assert!(keys.is_sorted(), "PEFT sorts them");
        let all = parse(json!({"target_modules": "all-linear"})).unwrap();
        assert_eq!(all.to_json(&["k_proj"])["target_modules"], json!(["k_proj"]));
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        for (changes, part) in [
            (json!({"peft_type": "IA3"}), "`peft_type` is \"IA3\", which is not supported"),
            (json!({"use_dora": true}), "`use_dora` is true"),
            (json!({"bias": "all"}), "`bias` is \"all\""),
            (json!({"init_lora_weights": "pissa"}), "it changes the base model"),
            (json!({"trainable_token_indices": [1]}), "single rows"),
            (json!({"r": 0}), "`r` is 0; expected a whole number of at least 1"),
            (json!({"lora_dropout": 1.0}), "expected at least 0 and below 1"),
            (json!({"base_model_name_or_path": null}), "expected the name of the base model"),
            (json!({"target_modules": []}), "expected names of modules"),
            (json!({"modules_to_save": 3}), "expected a list of names"),
            (json!({"rank_pattern": {"q_proj": "x"}}), "`rank_pattern` is \"x\""),
        ] {
            let message = parse(changes).unwrap_err();
            assert!(message.starts_with("a/adapter_config.json: "), "{message}");
            assert!(message.contains(part), "{message}");
        }
        assert!(parse(json!({"init_lora_weights": "gaussian", "loftq_config": {}})).is_ok());
    }
}
