//! Memory of weights in 4 bits.

use crate::kernels::Form;
use crate::kernels::nf4::BLOCK;
use crate::model::config::ModelConfig;
use crate::recipe::Quantization;

/// Bytes of a float32.
const F32: f64 = 4.0;

/// Bytes of all weights, `dtype_bytes` for each one that is not quantized. A quantized one takes
/// half a byte and its share of a block's scale: a float32, or a byte with double quantization.
pub fn weight_bytes(
    config: &ModelConfig,
    dtype_bytes: usize,
    quantization: Option<Quantization>,
) -> f64 {
    let block = BLOCK as f64;
    let a_weight = match quantization {
        None => dtype_bytes as f64,
        Some(Quantization { nested: false }) => 0.5 + F32 / block,
        Some(Quantization { nested: true }) => 0.5 + (1.0 + F32 / 256.0) / block,
    };
    let linear = config.num_hidden_layers * config.quantized_parameters();
    let others = config.parameters() - linear;
    others as f64 * dtype_bytes as f64 + linear as f64 * a_weight
}

/// Bytes of quantized weights as numbers, `dtype_bytes` each, while `graphs` graphs of layers
/// exist. The form of the CPU keeps none of them in a graph.
pub fn dequantized_bytes(
    config: &ModelConfig,
    form: Form,
    dtype_bytes: usize,
    graphs: usize,
) -> f64 {
    let largest = config.largest_linear() as f64 * F32;
    match form {
        Form::Flex => largest,
        // The GPU has no form of its own.
        Form::Composed | Form::Cube => {
            (graphs * config.quantized_parameters() * dtype_bytes) as f64 + 2.0 * largest
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[track_caller]
    fn close(ours: f64, expected: f64) {
        assert!((ours / expected - 1.0).abs() < 1e-3, "{ours:e} is not {expected:e}");
    }

    /// Mistral-7B: 6.98 of its 7.24 billion weights are in linear layers.
    #[test]
    fn weights_of_a_7b_model() {
        let raw = json!({"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 32768});
        let config = ModelConfig::from_json(raw, Path::new("config.json")).unwrap();
        let bytes = |quantization| weight_bytes(&config, 2, quantization);
        assert_eq!(bytes(None), 2.0 * config.parameters() as f64);
        close(bytes(Some(Quantization { nested: false })), 4.451e9);
        close(bytes(Some(Quantization { nested: true })), 4.126e9);
        assert_eq!(config.largest_linear(), 4096 * 14336);
    }
}
