//! A checkpoint of Favonius, read by candle-transformers, gives the same logits and the same greedy
//! continuation.

#[path = "../../../tests/common/models.rs"]
mod models;
#[path = "../../../tests/common/numbers.rs"]
mod numbers;

use std::path::Path;

use burn::tensor::DType;
use candle_core::{DType as CandleType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::mistral::{Config, Model};
use favonius::data::ragged::RaggedBatch;
use favonius::model::weights::SHARD_BYTES;
use models::*;
use numbers::*;
use serde_json::json;

/// Logits of the last position, `[v]`, from the whole prompt at once.
fn candle_logits(model: &mut Model, ids: &[u32]) -> Vec<f32> {
    model.clear_kv_cache();
    let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = model.forward(&input, 0).unwrap();
    logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

#[test]
fn candle_reads_what_we_write() {
    // Without a sliding window: in candle, a query sees one key more than in transformers.
    for shard_bytes in [SHARD_BYTES, 20_000] {
        let config = small_config(json!({"sliding_window": null, "hidden_size": 48,
            "num_hidden_layers": 3, "vocab_size": 97, "hidden_act": "silu",
            "tie_word_embeddings": false}));
        let model = random_model(config.clone(), 0.5);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("candle-{shard_bytes}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        model.save_weights(&folder, DType::F32, shard_bytes).unwrap();
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        assert_eq!(files.len() > 1, shard_bytes < SHARD_BYTES);

        let theirs: Config = serde_json::from_value(config.raw.clone()).unwrap();
        // SAFETY: no process writes the files while they are mapped.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&files, CandleType::F32, &Device::Cpu) };
        let mut candle = Model::new(&theirs, weights.unwrap()).unwrap();
        let mut ids: Vec<u32> = pair(3, [40, 0, 0], 97).prompt;
        for _ in 0..12 {
            let theirs = candle_logits(&mut candle, &ids);
            let hidden = model.hidden(&RaggedBatch::whole(&ids));
            let ours = values(model.logits(hidden, &[ids.len() - 1]));
            assert!(relative_difference(&ours, &theirs) < 1e-4);
            let best = |logits: &[f32]| {
                let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                best.map(|(id, _)| id as u32)
            };
            assert_eq!(best(&ours), best(&theirs));
            ids.extend(best(&ours));
        }
        let greedy = model.generate_greedy(&ids[..40], 12, &[]);
        assert_eq!(greedy, ids[40..]);
    }
}
