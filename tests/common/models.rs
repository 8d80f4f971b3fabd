//! Small models and small rows.
#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device};
use favonius::data::PreferencePair;
use favonius::model::config::ModelConfig;
use favonius::model::decoder::Decoder;
use favonius::model::parameter::Weight;
use serde_json::{Value, json};

use super::numbers::{splitmix64, uniforms};

/// config.json of a small Mistral, with `changes` on top.
pub fn small_config(changes: Value) -> Arc<ModelConfig> {
    let mut raw = json!({"model_type": "mistral", "vocab_size": 61, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0});
    for (key, value) in changes.as_object().expect("changes are an object") {
        raw[key] = value.clone();
    }
    Arc::new(ModelConfig::from_json(raw, Path::new("config.json")).expect("a valid config"))
}

/// A model whose weights come from [`uniform`]: tensor `j` in the order of its name has seed `j`.
pub fn random_model(config: Arc<ModelConfig>, scale: f32) -> Decoder {
    let mut names: Vec<String> = favonius::model::weights::expected_parameters(&config)
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    names.sort();
    let built: Result<_, std::convert::Infallible> = Decoder::build(config, |name, shape| {
        let seed = names.iter().position(|n| n == name).expect("a known name") as u64;
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values = uniforms(seed, shape.iter().product());
        let values = values.into_iter().map(|x| centre + x * scale).collect();
        Ok(Weight::from_values(values, &Device::flex(), DType::F32))
    });
    let Ok(model) = built;
    model
}

/// A small model of a family with random weights, and the demo's tokenizer, in a new folder.
pub fn family_folder(world: &Path, changes: Value) -> PathBuf {
    let base = world.join("base");
    let folder = world.join(changes["model_type"].as_str().unwrap());
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(&base).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let text = std::fs::read(base.join("config.json")).unwrap();
    let demo: Value = serde_json::from_slice(&text).unwrap();
    let mut all = changes;
    for key in ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"] {
        all[key] = demo[key].clone();
    }
    let config = small_config(all);
    random_model(config.clone(), 0.25).save_weights(&folder, DType::F32, 1 << 30).unwrap();
    std::fs::write(folder.join("config.json"), config.raw.to_string()).unwrap();
    folder
}

/// A pair of the given lengths with pseudo-random ids below `vocab`.
pub fn pair(seed: u64, [prompt, chosen, rejected]: [usize; 3], vocab: u32) -> PreferencePair {
    let ids = |part: u64, len: usize| {
        (0..len as u64)
            .map(move |i| (splitmix64(seed * 1000 + part * 100_000 + i) % u64::from(vocab)) as u32)
    };
    PreferencePair {
        prompt: ids(1, prompt).collect(),
        chosen: ids(2, chosen).collect(),
        rejected: ids(3, rejected).collect(),
        gold: vec![],
    }
}
