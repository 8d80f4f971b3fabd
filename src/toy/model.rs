//! A tiny Mistral with random weights, in the Hugging Face layout.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use super::error::ToyError;
use super::tokenizer::{BOS_ID, EOS_ID, MAX_LENGTH, VOCAB_SIZE};

const WIDTH: usize = 128;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KEY_VALUE_HEADS: usize = 2;
const HEAD_DIM: usize = WIDTH / HEADS;
const MLP_WIDTH: usize = 352;
/// Standard deviation of the embedding, which is tied to the head.
const EMBEDDING_STD: f64 = 0.05;
/// Standard deviation of the projections, about 1/√width, so that the gradient through attention is
/// not vanishingly small in the first steps.
const PROJECTION_STD: f64 = 0.09;

/// Writes config.json, generation_config.json and model.safetensors (float32, tied head) to
/// `folder`.
///
/// # Errors
/// The files cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<(), ToyError> {
    write_json(folder, "config.json", &config())?;
    write_json(folder, "generation_config.json", &generation_config())?;
    let path = folder.join("model.safetensors");
    fs::write(&path, weights(seed)?).map_err(ToyError::write(&path))
}

fn config() -> serde_json::Value {
    json!({
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": EMBEDDING_STD,
        "intermediate_size": MLP_WIDTH,
        "max_position_embeddings": MAX_LENGTH,
        "model_type": "mistral",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": MAX_LENGTH,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": VOCAB_SIZE
    })
}

fn generation_config() -> serde_json::Value {
    json!({ "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID })
}

fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<(), ToyError> {
    let path = folder.join(name);
    fs::write(&path, format!("{value:#}\n")).map_err(ToyError::write(&path))
}

/// The initial values of a tensor.
#[derive(Clone, Copy)]
enum Fill {
    Ones,
    /// Normally distributed with mean 0 and this standard deviation.
    Normal(f64),
}

/// The bytes of model.safetensors.
fn weights(seed: u64) -> Result<Vec<u8>, SafeTensorError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes()
        .into_iter()
        .map(|(name, shape, fill)| {
            let values = filled(shape.iter().product(), fill, &mut rng);
            (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    serialize(views, Some(metadata))
}

/// Name, shape and initial values of every tensor. Projections that write to the residual stream
/// are smaller by √(2·layers), so that its norm does not grow with the depth (GPT-2's rule).
fn shapes() -> Vec<(String, Vec<usize>, Fill)> {
    let embedding = Fill::Normal(EMBEDDING_STD);
    let inner = Fill::Normal(PROJECTION_STD);
    let outer = Fill::Normal(PROJECTION_STD / (2.0 * LAYERS as f64).sqrt());
    let queries = HEADS * HEAD_DIM;
    let keys = KEY_VALUE_HEADS * HEAD_DIM;
    let mut tensors =
        vec![("model.embed_tokens.weight".to_string(), vec![VOCAB_SIZE, WIDTH], embedding)];
    for layer in 0..LAYERS {
        let of_layer = [
            ("input_layernorm", vec![WIDTH], Fill::Ones),
            ("self_attn.q_proj", vec![queries, WIDTH], inner),
            ("self_attn.k_proj", vec![keys, WIDTH], inner),
            ("self_attn.v_proj", vec![keys, WIDTH], inner),
            ("self_attn.o_proj", vec![WIDTH, queries], outer),
            ("post_attention_layernorm", vec![WIDTH], Fill::Ones),
            ("mlp.gate_proj", vec![MLP_WIDTH, WIDTH], inner),
            ("mlp.up_proj", vec![MLP_WIDTH, WIDTH], inner),
            ("mlp.down_proj", vec![WIDTH, MLP_WIDTH], outer),
        ];
        tensors.extend(of_layer.map(|(name, shape, fill)| {
            (format!("model.layers.{layer}.{name}.weight"), shape, fill)
        }));
    }
    tensors.push(("model.norm.weight".to_string(), vec![WIDTH], Fill::Ones));
    tensors
}

fn filled(count: usize, fill: Fill, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count)
        .map(|_| match fill {
            Fill::Ones => 1.0,
            Fill::Normal(std) => (std * standard_normal(rng)) as f32,
        })
        .collect()
}

/// A standard normal number, by the Box–Muller transform of two uniform ones.
fn standard_normal(rng: &mut ChaCha8Rng) -> f64 {
    // In (0, 1], for the logarithm.
    let radius: f64 = 1.0 - rng.random::<f64>();
    let angle: f64 = rng.random();
    (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_standard_normal_before_scaling() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let values = filled(100_000, Fill::Normal(1.0), &mut rng);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
    }

    #[test]
    fn the_model_is_tiny() {
        let parameters: usize = shapes().iter().map(|t| t.1.iter().product::<usize>()).sum();
        assert!((400_000..1_000_000).contains(&parameters), "{parameters}");
    }
}
