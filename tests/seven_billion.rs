//! Loading a 7B model from bfloat16 shards, and one forward pass, need at most 1 GB of memory more
//! than the weights.
//!
//! Runs only if `FAVONIUS_SEVEN_BILLION` names a model folder, such as one that
//! `scripts/synthetic_mistral_7b.py` wrote.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{DType, Device};
use favonius::data::ragged::RaggedBatch;
use favonius::model::decoder::Decoder;
use favonius::train::layerwise::{Keep, LayerwisePass};

/// A value of `/proc/self/status`, in bytes.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with(key)).expect("the key exists");
    let number = line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok());
    number.expect("a number") * 1024.0
}

#[test]
fn a_7b_model_loads_and_runs_within_the_memory_of_its_weights_and_1_gb() {
    let Some(folder) = std::env::var_os("FAVONIUS_SEVEN_BILLION").map(PathBuf::from) else {
        eprintln!("skipped: FAVONIUS_SEVEN_BILLION names no model folder");
        return;
    };
    let started = Instant::now();
    let model = Decoder::load(&folder, &Device::flex(), DType::BF16, |_, _| ()).unwrap();
    let size = 2.0 * model.config.parameters() as f64;
    let loaded = (started.elapsed().as_secs_f64(), status("VmHWM"));
    println!("loaded {:.2} GB in {:.1} s, peak {:.2} GB", size / 1e9, loaded.0, loaded.1 / 1e9);
    assert!(loaded.1 < size + 1e9, "loading took {:.2} GB", loaded.1 / 1e9);

    let ids: Vec<u32> = (0..64).map(|i| (i * 331 + 7) % model.config.vocab_size as u32).collect();
    let started = Instant::now();
    let batch = RaggedBatch::whole(&ids);
    let scores = LayerwisePass::forward(&model, &batch, Keep::Nothing).scores;
    let (seconds, peak) = (started.elapsed().as_secs_f64(), status("VmHWM"));
    println!("64 tokens in {seconds:.1} s, peak {:.2} GB", peak / 1e9);
    assert_eq!(scores.logp.len(), 63);
    assert!(scores.logp.iter().all(|logp| logp.is_finite() && *logp < 0.0));
    assert!(peak < size + 1e9, "the forward pass took {:.2} GB", peak / 1e9);
}
