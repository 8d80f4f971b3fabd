//! `adapter_model.safetensors`: the weights of an adapter, in PEFT's form.
//!
//! A tensor has the name of its parameter after `base_model.model.`. The file holds A and B of each
//! adapted layer in float32, and the modules that are trained whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::DType;

use super::attach::unties;
use super::config::{Adapter, CONFIG, LoraConfig};
use super::error::AdapterError;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, LM_HEAD};
use crate::model::parameter::Parameter;
use crate::model::weights::{
    StoredTensor, WeightFiles, WeightsError, check_finite, empty_decoder, named, write_file,
};

/// The file of an adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The text that PEFT writes before the name of a parameter.
const PREFIX: &str = "base_model.model.";

/// Whether `folder` holds an adapter.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// Writes the adapter of `model` into `folder`: weights and settings. A and B are float32; modules
/// that are trained whole get `dtype`.
///
/// # Errors
/// A weight is NaN or infinite, or a file cannot be written.
pub fn save_adapter(
    model: &Decoder,
    adapter: &Adapter,
    folder: &Path,
    dtype: DType,
) -> Result<(), WeightsError> {
    let all = model.parameters();
    let trained: Vec<&Parameter> = all.into_iter().filter(|p| is_of_adapter(p, adapter)).collect();
    let dtype_of = |parameter: &Parameter| match is_lora(&parameter.name) {
        true => DType::F32,
        false => dtype,
    };
    trained.iter().try_for_each(|parameter| check_finite(parameter, dtype_of(parameter)))?;
    let stored = |parameter: &&Parameter| {
        let name = format!("{PREFIX}{}", parameter.name);
        StoredTensor::named(name, parameter, dtype_of(parameter))
    };
    let tensors: Vec<StoredTensor> = trained.iter().map(stored).collect();
    write_file(&folder.join(WEIGHTS), named(&tensors), &[("format", "pt")])?;
    let path = folder.join(CONFIG);
    let text = format!("{:#}\n", adapter.config.to_json(&adapter.targets));
    std::fs::write(&path, text).map_err(|source| WeightsError::Write { path, source })
}

fn is_lora(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

fn is_of_adapter(parameter: &Parameter, adapter: &Adapter) -> bool {
    is_lora(&parameter.name) || adapter.config.selection.is_saved(&parameter.name)
}

/// The parameters of an adapter on a model of `config`, without values, in the order of the model:
/// those that training changes.
///
/// # Errors
/// The targets do not fit the model.
pub fn adapter_parameters(
    config: &Arc<ModelConfig>,
    lora: &LoraConfig,
) -> Result<Vec<Parameter>, AdapterError> {
    let mut model = empty_decoder(config);
    model.attach(lora, |_, _| Ok::<_, AdapterError>(Some(Vec::new())))?;
    Ok(model.parameters().into_iter().filter(|p| p.trainable).cloned().collect())
}

/// The files of an adapter, mapped.
pub struct AdapterFiles {
    folder: PathBuf,
    base: String,
    files: WeightFiles,
}

impl AdapterFiles {
    /// Opens the weights in `folder` and checks that they are those of `lora` on a model of
    /// `config`.
    ///
    /// # Errors
    /// The file is missing or damaged, or does not fit.
    pub fn open(
        folder: &Path,
        lora: &LoraConfig,
        config: &Arc<ModelConfig>,
    ) -> Result<Self, WeightsError> {
        if !folder.join(WEIGHTS).is_file() {
            let pickled = folder.join("adapter_model.bin").is_file();
            let hint =
                if pickled { "; convert adapter_model.bin to safetensors first" } else { "" };
            return Err(AdapterError::NoWeights { folder: folder.into(), hint }.into());
        }
        let files = WeightFiles::open_one(folder, WEIGHTS, plain_name)?;
        let this = Self { folder: folder.into(), base: lora.base_model.clone(), files };
        this.check(&adapter_parameters(config, lora)?)?;
        Ok(this)
    }

    /// The values of a parameter of the adapter; `None` if it is not one of its parameters.
    ///
    /// # Errors
    /// The values are damaged.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, WeightsError> {
        match self.files.shape(name) {
            Some(_) => self.files.read(name, shape).map(Some),
            None => Ok(None),
        }
    }

    /// Whether the adapter changes the parameter `name` of its base.
    pub fn changes(&self, name: &str) -> bool {
        let a = name.strip_suffix(".weight").map(|module| format!("{module}.lora_A.weight"));
        let holds = |name: &str| self.files.shape(name).is_some();
        holds(name) || a.is_some_and(|a| holds(&a))
    }

    fn check(&self, expected: &[Parameter]) -> Result<(), AdapterError> {
        let (folder, base) = (|| self.folder.clone(), || self.base.clone());
        for parameter in expected {
            let name = || format!("{PREFIX}{}", parameter.name);
            match self.files.shape(&parameter.name) {
                None => {
                    return Err(AdapterError::Missing {
                        folder: folder(),
                        name: name(),
                        base: base(),
                    });
                }
                Some(found) if found != parameter.shape => {
                    return Err(AdapterError::Shape {
                        folder: folder(),
                        name: name(),
                        base: base(),
                        found,
                        expected: parameter.shape.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        let known = |name: &str| expected.iter().any(|parameter| *parameter.name == *name);
        match self.files.names().find(|name| !known(name)) {
            Some(name) => Err(AdapterError::Extra {
                folder: folder(),
                name: format!("{PREFIX}{name}"),
                base: base(),
            }),
            None => Ok(()),
        }
    }
}

/// The parameter's name. Older versions of PEFT and other programs leave the prefix out.
fn plain_name(stored: &str) -> String {
    stored.strip_prefix(PREFIX).unwrap_or(stored).to_owned()
}

/// `config` for a model into which the adapter of `lora` is merged: a head that was tied and is
/// trained is one of its own.
pub fn merged_config(config: ModelConfig, lora: &LoraConfig) -> ModelConfig {
    if !unties(&config, lora) {
        return config;
    }
    let mut merged = ModelConfig { tie_word_embeddings: false, ..config };
    merged.raw["tie_word_embeddings"] = serde_json::json!(false);
    merged
}

/// The name of the parameter whose values `name` has if the base does not store it.
pub fn stored_as(name: &str) -> Option<&'static str> {
    (name == LM_HEAD).then_some(crate::model::decoder::EMBED_TOKENS)
}
