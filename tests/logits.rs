//! Logits of every supported architecture, compared with transformers. `scripts/golden/logits.py`
//! wrote the configurations, the ids and a summary of the logits. The weights come from a formula
//! that both programs implement.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::model::config::ModelConfig;
use favonius::model::decoder::Decoder;
use favonius::train::layerwise::{Keep, LayerwisePass};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/logits.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "{what}: {ours} {theirs}");
    }
}

fn compare(name: &str, model: &Decoder, golden: &Value) {
    let ids: Vec<u32> = numbers(&golden["ids"]).iter().map(|id| *id as u32).collect();
    let batch = RaggedBatch::whole(&ids);
    let scores = LayerwisePass::forward(model, &batch, Keep::Nothing).scores;
    close(&scores.logp, &numbers(&golden["logps"]), name);
    let sums = numbers(&golden["logsumexp"]);
    let of_row = |(highest, norm): (&f32, &f32)| highest + norm.ln();
    let ours: Vec<f32> = scores.highest.iter().zip(&scores.norm).map(of_row).collect();
    close(&ours, &sums[..ids.len() - 1], name);
    let tail: Vec<usize> = (ids.len() - 8..ids.len()).collect();
    let logits = values(model.logits(model.hidden(&batch), &tail));
    let places = numbers(&golden["places"]);
    for (row, theirs) in
        logits.chunks(model.config.vocab_size).zip(golden["logits"].as_array().unwrap())
    {
        let ours: Vec<f32> = places.iter().map(|place| row[*place as usize]).collect();
        close(&ours, &numbers(theirs), name);
    }
}

#[test]
fn every_architecture_agrees_with_transformers() {
    let golden = golden();
    for (name, golden) in golden["models"].as_object().unwrap() {
        for form in ["config", "config_v5"] {
            let Some(raw) = golden.get(form) else { continue };
            let config = ModelConfig::from_json(raw.clone(), Path::new("config.json")).unwrap();
            let scale = golden["scale"].as_f64().unwrap() as f32;
            compare(name, &random_model(Arc::new(config), scale), golden);
        }
    }
}

#[test]
fn smollm2_agrees_with_transformers() {
    let Some(folder) = std::env::var_os("FAVONIUS_SMOLLM2") else {
        eprintln!("skipped: set FAVONIUS_SMOLLM2 to a folder with SmolLM2-135M-Instruct");
        return;
    };
    let golden = golden();
    let golden = &golden["models"]["smollm2_135m"];
    let device = burn::tensor::Device::flex();
    let model = Decoder::load(Path::new(&folder), &device, burn::tensor::DType::F32, |_, _| ());
    let model = model.unwrap();
    compare("smollm2", &model, golden);
    for prompt in golden["prompts"].as_array().unwrap() {
        let ids: Vec<u32> = numbers(&prompt["ids"]).iter().map(|id| *id as u32).collect();
        let greedy: Vec<u32> = numbers(&prompt["greedy_ids"]).iter().map(|id| *id as u32).collect();
        assert_eq!(model.generate_greedy(&ids, greedy.len(), &[]), greedy, "{}", prompt["text"]);
    }
}
