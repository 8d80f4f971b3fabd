//! The files beside the weights in a model folder: config.json, generation_config.json, the
//! tokenizer's files.

use std::io;
use std::path::Path;

use burn::tensor::DType;
use serde_json::{Value, json};

use super::config::{ModelConfig, QUANTIZATION_CONFIG};
use crate::data::Tokenizer;
use crate::files::json_object::{self, ObjectError};

const GENERATION: &str = "generation_config.json";

/// Both configurations of a model, with the special tokens that it is trained with.
///
/// They are built before training, so that a file that cannot be read stops the run at its start,
/// not at its end.
pub struct ModelFiles {
    config: Value,
    generation: Value,
}

/// Ids of a tokenizer's special tokens.
#[derive(Clone, Copy)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl ModelFiles {
    /// The files of the model in `folder`, changed for training with `tokenizer`.
    pub fn of(
        folder: &Path,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ObjectError> {
        let mut config = config.raw.clone();
        // Weights are always written as numbers.
        if let Some(config) = config.as_object_mut() {
            config.shift_remove(QUANTIZATION_CONFIG);
        }
        let generation = match read_object(&folder.join(GENERATION))? {
            Some(generation) => generation,
            None => of_config(&config),
        };
        let mut companions = Self { config, generation };
        let [bos, eos, pad] = [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()];
        companions.align(SpecialIds { bos, eos, pad });
        Ok(companions)
    }

    /// Makes both configurations agree with the tokenizer, as transformers' `Trainer` does. A token
    /// that the tokenizer does not have stays unchanged. All EOS tokens of a list still end a
    /// response.
    fn align(&mut self, ids: SpecialIds) {
        for (key, id) in
            [("eos_token_id", ids.eos), ("bos_token_id", ids.bos), ("pad_token_id", ids.pad)]
        {
            let Some(id) = id else { continue };
            if [&self.config, &self.generation]
                .iter()
                .all(|object| named(object, key).contains(&id))
            {
                continue;
            }
            let several = key == "eos_token_id";
            let in_front = |object: &Value| {
                let others = named(object, key).into_iter().filter(|other| *other != id);
                json!(std::iter::once(id).chain(others).collect::<Vec<_>>())
            };
            let listed = several && self.config[key].is_array();
            self.config[key] = if listed { in_front(&self.config) } else { json!(id) };
            self.generation[key] = if several { in_front(&self.generation) } else { json!(id) };
        }
    }

    /// Writes all files beside weights of type `dtype` into `folder`.
    pub fn write(&self, tokenizer: &Tokenizer, dtype: DType, folder: &Path) -> io::Result<()> {
        let mut config = self.config.clone();
        let name = dtype_name(dtype);
        config["torch_dtype"] = json!(name);
        if config.get("dtype").is_some() {
            config["dtype"] = json!(name);
        }
        for (name, object) in [("config.json", &config), (GENERATION, &self.generation)] {
            std::fs::write(folder.join(name), format!("{object:#}\n"))?;
        }
        tokenizer.save(folder)
    }
}

/// The name of an element type in config.json.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

/// The ids under `key`, which holds one id, a list, or none.
pub fn named(object: &Value, key: &str) -> Vec<u32> {
    let listed = match &object[key] {
        Value::Array(ids) => ids.as_slice(),
        one => std::slice::from_ref(one),
    };
    listed.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// The JSON object in a file of a model; `None` if the file does not exist.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read_object(path: &Path) -> Result<Option<Value>, ObjectError> {
    let object = json_object::read_object(path, |text| serde_json::from_str(text))?;
    Ok(object.map(Value::Object))
}

/// The generation config of a model that has none: the special tokens of its config.json.
fn of_config(config: &Value) -> Value {
    let mut generation = json!({"_from_model_config": true});
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
            generation[key] = id.clone();
        }
    }
    generation
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: SpecialIds = SpecialIds { bos: Some(1), eos: Some(7), pad: Some(2) };

    fn aligned(config: Value, generation: Value, ids: SpecialIds) -> [Value; 2] {
        let mut companions = ModelFiles { config, generation };
        companions.align(ids);
        [companions.config, companions.generation]
    }

    #[test]
    fn the_tokenizers_special_tokens_reach_both_files() {
        let [config, generation] = aligned(
            json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null}),
            json!({"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.6}),
            IDS,
        );
        assert_eq!(config, json!({"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 2}));
        let expected = json!({
            "bos_token_id": 1, "eos_token_id": [7, 2], "pad_token_id": 2, "temperature": 0.6});
        assert_eq!(generation, expected);
    }

    #[test]
    fn what_agrees_and_what_the_tokenizer_lacks_is_left_alone() {
        let config = json!({"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 2});
        let generation = json!({"bos_token_id": 1, "eos_token_id": [3, 7], "pad_token_id": 2});
        let same = [config.clone(), generation.clone()];
        assert_eq!(aligned(config.clone(), generation.clone(), IDS), same);
        let none = SpecialIds { bos: None, eos: None, pad: None };
        assert_eq!(aligned(config, generation, none), same);
    }

    #[test]
    fn a_list_keeps_the_ids_that_it_had() {
        let [config, generation] = aligned(
            json!({"eos_token_id": [3, 4]}),
            json!({}),
            SpecialIds { bos: None, pad: None, ..IDS },
        );
        assert_eq!(config, json!({"eos_token_id": [7, 3, 4]}));
        assert_eq!(generation, json!({"eos_token_id": [7]}));
    }

    #[test]
    fn a_model_without_generation_config_gets_its_configs_tokens() {
        let config = json!({"bos_token_id": 1, "eos_token_id": [3, 4], "pad_token_id": null});
        let expected =
            json!({"_from_model_config": true, "bos_token_id": 1, "eos_token_id": [3, 4]});
        assert_eq!(of_config(&config), expected);
    }
}
