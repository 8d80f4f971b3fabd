//! Weights are written and read back; errors name the file and the tensor.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};
use serde_json::json;

use super::error::{INDEX, SINGLE};
use super::*;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::parameter::Weight;

fn tiny() -> Decoder {
    let raw = json!({"model_type": "mistral", "vocab_size": 11, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32});
    let config = Arc::new(ModelConfig::from_json(raw, Path::new("config.json")).unwrap());
    let built: Result<_, std::convert::Infallible> = Decoder::build(config, |name, shape| {
        let len: usize = shape.iter().product();
        let seed = name.len() as f32;
        let values = (0..len).map(|i| (i as f32 + seed) * 0.01 - 0.3).collect();
        Ok(Weight::from_values(values, &Device::flex(), DType::F32))
    });
    let Ok(model) = built;
    model
}

fn write(model: &Decoder, folder: &Path, shard_bytes: usize) {
    std::fs::write(folder.join("config.json"), model.config.raw.to_string()).unwrap();
    model.save_weights(folder, DType::F32, shard_bytes).unwrap();
}

fn load(folder: &Path) -> Result<Decoder, WeightsError> {
    Decoder::load(folder, &Device::flex(), DType::F32, |_, _| ())
}

fn values(model: &Decoder) -> Vec<Vec<f32>> {
    model.parameters().iter().map(|p| p.vector().to_data().try_to_vec().unwrap()).collect()
}

#[test]
fn one_file_and_shards_give_the_same_weights_back() {
    let model = tiny();
    for shard_bytes in [SHARD_BYTES, 600] {
        let folder = tempfile::tempdir().unwrap();
        write(&model, folder.path(), shard_bytes);
        let index = folder.path().join(INDEX);
        assert_eq!(index.exists(), shard_bytes == 600);
        if let Ok(text) = std::fs::read_to_string(index) {
            let index: serde_json::Value = serde_json::from_str(&text).unwrap();
            let parameters = model.config.parameters();
            assert_eq!(index["metadata"]["total_parameters"], parameters);
            assert_eq!(index["metadata"]["total_size"], 4 * parameters);
        }
        assert_eq!(values(&load(folder.path()).unwrap()), values(&model));
    }
}

#[test]
fn weights_have_the_permissions_of_other_files() {
    let folder = tempfile::tempdir().unwrap();
    write(&tiny(), folder.path(), SHARD_BYTES);
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "x").unwrap();
    let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(&folder.path().join(SINGLE)), permissions(&plain));
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    write(&model, folder.path(), SHARD_BYTES);
    let mut raw = model.config.raw.clone();
    let mut with = |key: &str, value: serde_json::Value| {
        raw = model.config.raw.clone();
        raw[key] = value;
        std::fs::write(folder.path().join("config.json"), raw.to_string()).unwrap();
        load(folder.path()).unwrap_err().to_string()
    };
    let missing = with("num_hidden_layers", json!(3));
    assert!(missing.contains("tensor `model.layers.2.input_layernorm.weight` is missing"));
    assert!(missing.contains("9 in all"), "{missing}");
    let extra = with("num_hidden_layers", json!(1));
    assert!(extra.contains("tensor `model.layers.1.input_layernorm.weight` belongs to no part"));
    let shape = with("vocab_size", json!(12));
    assert!(shape.contains("`model.embed_tokens.weight` has shape [11, 8]"), "{shape}");
    assert!(shape.contains("config.json makes it [12, 8]"), "{shape}");
}

#[test]
fn a_file_cut_short_is_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write(&tiny(), folder.path(), SHARD_BYTES);
    let path = folder.path().join(SINGLE);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors is damaged"), "{error}");
}

/// The tiny model with one value of its first norm replaced.
fn with_value(value: f32) -> Decoder {
    let raw = tiny().config.raw.clone();
    let config = Arc::new(ModelConfig::from_json(raw, Path::new("config.json")).unwrap());
    let built: Result<_, std::convert::Infallible> = Decoder::build(config, |name, shape| {
        let mut values = vec![0.5; shape.iter().product()];
        if name == "model.norm.weight" {
            values[5] = value;
        }
        Ok(Weight::from_values(values, &Device::flex(), DType::F32))
    });
    let Ok(model) = built;
    model
}

#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let save = |value: f32, dtype: DType| {
        let folder = tempfile::tempdir().unwrap();
        let saved = with_value(value).save_weights(folder.path(), dtype, SHARD_BYTES);
        let written = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(written, usize::from(saved.is_ok()), "{value}");
        saved.map_err(|error| error.to_string())
    };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = save(value, dtype).unwrap_err();
            let start = "tensor `model.norm.weight` holds NaN or infinite values after training";
            assert!(error.starts_with(start), "{error}");
        }
        assert_eq!(save(65504.0, dtype), Ok(()));
    }
    let error = save(-1e5, DType::F16).unwrap_err();
    assert!(error.contains("`model.norm.weight` holds values that float16 cannot hold"), "{error}");
    assert_eq!(save(-1e5, DType::BF16), Ok(()));
    assert_eq!(save(f32::MAX, DType::F32), Ok(()), "its square is not finite in float32");
    assert!(save(f32::MAX, DType::BF16).unwrap_err().contains("bfloat16 cannot hold"));
}

/// Writes the single weight file again, with other names of its tensors; `None` leaves one out.
fn rename(folder: &Path, new_name: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(folder.join(SINGLE)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.iter().filter_map(|(name, view)| Some((new_name(name)?, view)));
    std::fs::write(folder.join(SINGLE), safetensors::serialize(renamed, None).unwrap()).unwrap();
}

#[test]
fn names_without_model_and_a_tied_head_alone_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny();
    write(&model, folder.path(), SHARD_BYTES);
    rename(folder.path(), |name| Some(name.strip_prefix("model.").unwrap_or(name).to_owned()));
    assert_eq!(values(&load(folder.path()).unwrap()), values(&model));

    let mut config = model.config.raw.clone();
    config["tie_word_embeddings"] = json!(true);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    rename(folder.path(), |name| match name {
        "embed_tokens.weight" => Some("lm_head.weight".to_owned()),
        "lm_head.weight" => None,
        other => Some(format!("model.{other}")),
    });
    let tied = load(folder.path()).unwrap();
    assert!(!values(&tied).is_empty());
    assert_eq!(values(&tied)[0], values(&model)[0]);
}
