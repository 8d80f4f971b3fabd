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

#[test]
fn phi3() {
    let of = |sizes, more| parse("phi3", sizes, more);
    let mini = json!({"sliding_window": 2047, "rope_scaling": null});
    let mini = of([32_064, 3072, 8192, 32, 32, 32], mini);
    assert_eq!(mini.parameters(), 3_821_079_552);
    assert_eq!((mini.window(31), mini.short_positions()), (Some(2047), None));
    // The version for long texts writes `su` for `longrope`.
    let long = json!({"rope_scaling": {"type": "su", "short_factor": vec![1.05; 64],
        "long_factor": vec![2.0; 64]}, "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096});
    let medium = of([32_064, 5120, 17_920, 40, 40, 10], long);
    assert_eq!(medium.parameters(), 13_960_238_080);
    let scaling = json!({"type": "longrope", "short_factor": vec![1.0; 48],
        "long_factor": vec![1.5; 48]});
    let mini4 = json!({"tie_word_embeddings": true, "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "rope_scaling": scaling, "sliding_window": 262_144});
    let mini4 = of([200_064, 3072, 8192, 32, 24, 8], mini4);
    assert_eq!(mini4.parameters(), 3_836_021_760);
    assert_eq!((mini4.rotary_frequencies().len(), mini4.short_positions()), (48, Some(4096)));
    let kind = &mini4.attention_shape().kinds[0];
    // √(1 + ln 32 / ln 4096) = √(1 + 5 / 12).
    assert!((kind.rotary_factor - (17.0f64 / 12.0).sqrt()).abs() < 1e-12);
}

#[test]
fn starcoder2() {
    let of = |sizes, more| parse("starcoder2", sizes, more);
    let small = json!({"hidden_act": "gelu_pytorch_tanh", "use_bias": true,
        "norm_epsilon": 1e-5, "sliding_window": 4096});
    let small = of([49_152, 3072, 12_288, 30, 24, 2], small);
    assert_eq!(small.parameters(), 3_030_371_328);
    assert_eq!(small.window(0), Some(4096));
    let medium = of([49_152, 4608, 18_432, 32, 36, 4], json!({}));
    assert_eq!(medium.parameters(), 7_173_923_840);
    let large = json!({"tie_word_embeddings": false});
    assert_eq!(of([49_152, 6144, 24_576, 40, 48, 4], large).parameters(), 15_957_889_024);
}

#[test]
fn mixtral() {
    let of = |sizes, more: Value| {
        let mut all = json!({"num_local_experts": 8, "num_experts_per_tok": 2,
            "output_router_logits": false, "router_aux_loss_coef": 0.02, "rope_theta": 1e6,
            "sliding_window": null, "tie_word_embeddings": false, "hidden_act": "silu"});
        more.as_object().unwrap().iter().for_each(|(key, value)| all[key] = value.clone());
        parse("mixtral", sizes, all)
    };
    let small = of([32_000, 4096, 14_336, 32, 32, 8], json!({"max_position_embeddings": 32_768}));
    assert_eq!(small.parameters(), 46_702_792_704);
    assert_eq!(small.active_parameters(), 12_879_925_248);
    assert_eq!(small.window(0), None);
    let experts = small.family.experts.as_ref().unwrap();
    assert_eq!((experts.count, experts.per_token, experts.aux_loss_coef), (8, 2, 0.02));
    // That of zephyr-141b, as transformers 5 writes it.
    let newer = json!({"router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}});
    let large = of([32_000, 6144, 16_384, 56, 48, 8], newer);
    assert_eq!(large.parameters(), 140_620_634_112);
    assert_eq!(large.active_parameters(), 39_152_031_744);
    assert_eq!((large.rope_theta, large.norm_eps), (1e6, 1e-5));
}
