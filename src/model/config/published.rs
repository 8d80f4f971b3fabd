//! Published models: their number of weights, and what their `config.json` says about the layers.

use super::*;
use serde_json::json;

/// `config.json` with these sizes: vocabulary, hidden, intermediate, layers, heads, key-value heads.
fn parse(model_type: &str, sizes: [usize; 6], more: Value) -> ModelConfig {
    let [vocab, hidden, intermediate, layers, heads, kv_heads] = sizes;
    let mut raw = json!({
        "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads
    });
    for (key, value) in more.as_object().unwrap() {
        raw[key] = value.clone();
    }
    ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
}

#[test]
fn gemma2() {
    let of = |sizes, more| parse("gemma2", sizes, more);
    let gelu = json!({"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"});
    let small = of([256_000, 2304, 9216, 26, 8, 4], gelu.clone());
    assert_eq!(small.parameters(), 2_614_341_888);
    assert_eq!((small.window(0), small.window(1)), (Some(4096), None));
    assert_eq!(small.query_factor(), None, "256 is the square root's default");
    let caps = (small.family.attention_softcap, small.family.logits_softcap);
    assert_eq!(caps, (Some(50.0), Some(30.0)));
    assert_eq!(of([256_000, 3584, 14_336, 42, 16, 8], gelu).parameters(), 9_241_705_984);
    let large = json!({"head_dim": 128, "query_pre_attn_scalar": 144,
        "final_logit_softcapping": null});
    let large = of([256_000, 4608, 36_864, 46, 32, 16], large);
    assert_eq!(large.parameters(), 27_227_128_320);
    let factor = large.query_factor().unwrap();
    assert!((factor - (128.0f64 / 144.0).sqrt()).abs() < 1e-12);
    assert_eq!(large.family.logits_softcap, None);
}
