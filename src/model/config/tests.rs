//! Configs of real models, and errors that name the key.

use super::*;
use serde_json::json;

fn base() -> Value {
    json!({
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false
    })
}

fn parse(raw: Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(raw, Path::new("config.json"))
}

#[test]
fn mistral_7b_has_its_published_size() {
    let config = parse(base()).unwrap();
    assert_eq!(config.parameters(), 7_241_732_096);
    assert_eq!(config.head_dim, 128);
    assert_eq!(config.sliding_window, Some(4096));
}

#[test]
fn every_mistral_layer_keeps_to_the_window() {
    let config = parse(base()).unwrap();
    assert!((0..32).all(|layer| config.window(layer) == Some(4096)));
    assert!(!config.windows_differ());
    let mut raw = base();
    raw.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(parse(raw.clone()).unwrap().window(0), Some(4096), "transformers' default");
    raw["sliding_window"] = Value::Null;
    let config = parse(raw).unwrap();
    assert!((0..32).all(|layer| config.window(layer).is_none()));
    assert!(!config.windows_differ());
}

/// A Qwen2 of four layers: the window of each, and that of the model.
fn qwen2(changes: Value) -> (Vec<Option<usize>>, Option<usize>) {
    let mut raw = base();
    raw["model_type"] = json!("qwen2");
    raw["num_hidden_layers"] = json!(4);
    for (key, value) in changes.as_object().unwrap() {
        raw[key] = value.clone();
    }
    let config = parse(raw).unwrap();
    let windows: Vec<_> = (0..4).map(|layer| config.window(layer)).collect();
    let differ = windows.contains(&None) && windows.contains(&Some(4096));
    assert_eq!(config.windows_differ(), differ);
    (windows, config.sliding_window)
}

#[test]
fn qwen2_windows_its_last_layers() {
    let (some, none) = (Some(4096), None);
    assert_eq!(qwen2(json!({})), (vec![none; 4], none));
    let uses = |first: usize| json!({"use_sliding_window": true, "max_window_layers": first});
    assert_eq!(qwen2(uses(0)), (vec![some; 4], some));
    assert_eq!(qwen2(uses(3)), (vec![none, none, none, some], some));
    assert_eq!(qwen2(uses(4)), (vec![none; 4], none));
    // transformers' default is 28.
    assert_eq!(qwen2(json!({"use_sliding_window": true})), (vec![none; 4], none));
    let unused = json!({"use_sliding_window": false, "max_window_layers": 2});
    assert_eq!(qwen2(unused), (vec![none; 4], none));
}

#[test]
fn layer_types_decide() {
    let (some, none) = (Some(4096), None);
    let types =
        json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"]);
    let listed = json!({"use_sliding_window": true, "max_window_layers": 3, "layer_types": types});
    assert_eq!(qwen2(listed), (vec![some, none, none, some], some));
    let mut raw = base();
    raw["num_hidden_layers"] = json!(4);
    raw["layer_types"] = types;
    let config = parse(raw.clone()).unwrap();
    assert_eq!((config.window(0), config.window(1)), (some, some), "Mistral takes no such list");
    raw["model_type"] = json!("qwen2");
    raw["use_sliding_window"] = json!(true);
    raw["layer_types"] = json!(["full_attention"]);
    assert_eq!(
        parse(raw).unwrap_err().to_string(),
        "config.json: `layer_types` is [\"full_attention\"]; expected `sliding_attention` or \
         `full_attention` for each of 4 layers"
    );
}

#[test]
fn errors_name_the_key() {
    let mut raw = base();
    raw["num_key_value_heads"] = json!(5);
    assert_eq!(
        parse(raw).unwrap_err().to_string(),
        "config.json: `num_key_value_heads` is 5; \
         expected a divisor of num_attention_heads (32)"
    );
    let mut raw = base();
    raw.as_object_mut().unwrap().remove("hidden_size");
    assert_eq!(parse(raw).unwrap_err().to_string(), "config.json: `hidden_size` is missing");
    let mut raw = base();
    raw["model_type"] = json!("gpt2");
    assert!(parse(raw).unwrap_err().to_string().contains("`gpt2` is not supported"));
}

#[test]
fn options_that_a_family_does_not_have_are_refused() {
    let linear = json!({"type": "linear", "factor": 2.0});
    let short = json!({"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]});
    for (model_type, key, value, message) in [
        ("gemma2", "use_bidirectional_attention", json!(true), "true; expected null"),
        ("gemma2", "final_logit_softcapping", json!(-30), "-30; expected a positive number"),
        ("gemma2", "hidden_activation", json!("gelu"), "gelu; expected `gelu_pytorch_tanh`"),
        ("gemma3_text", "attn_logit_softcapping", json!(50), "50; expected null"),
        ("phi3", "rope_scaling", linear, "linear; expected `default` or `longrope`"),
        ("phi3", "rope_scaling", short.clone(), "[1.0,2.0]; expected 64 positive numbers"),
        ("phi3", "partial_rotary_factor", json!(1.5), "1.5; expected at most 1"),
        ("phi3", "partial_rotary_factor", json!(0.01), "0.01; expected a share of head_dim (128)"),
        ("llama", "rope_scaling", short, "longrope; expected `default`, `linear` or `llama3`"),
        ("mixtral", "router_jitter_noise", json!(0.1), "0.1; expected 0: noise on the router's"),
        ("mixtral", "num_experts_per_tok", json!(9), "9; expected at most num_local_experts (8)"),
        ("mixtral", "num_local_experts", json!(5000), "5000; expected at most 1024"),
        ("mixtral", "router_aux_loss_coef", json!(-1), "-1; expected a number of at least 0"),
        ("starcoder2", "hidden_act", json!("gelu"), "gelu; expected `gelu_pytorch_tanh`"),
        ("starcoder2", "norm_epsilon", json!("x"), "\"x\"; expected a positive number"),
    ] {
        let mut raw = base();
        raw["model_type"] = json!(model_type);
        raw[key] = value;
        let error = parse(raw).unwrap_err().to_string();
        let key = if message.contains("64 positive") { "short_factor" } else { key };
        assert!(error.contains(&format!("`{key}` is {message}")), "{model_type}: {error}");
    }
}

#[test]
fn llama3_scaling_keeps_high_frequencies_and_divides_low_ones() {
    let mut raw = base();
    raw["model_type"] = json!("llama");
    raw["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let scaled = parse(raw).unwrap().rotary_frequencies();
    let plain = parse(base()).unwrap().rotary_frequencies();
    assert_eq!(scaled[0], plain[0]);
    let last = plain.len() - 1;
    assert!((scaled[last] - plain[last] / 8.0).abs() < 1e-12);
}

/// The values are those of transformers 5.24.
#[test]
fn rope_settings_are_read_as_in_transformers() {
    let llama = |changes: Value| {
        let mut raw = base();
        raw["model_type"] = json!("llama");
        for (key, value) in changes.as_object().unwrap() {
            raw[key] = value.clone();
        }
        let config = parse(raw).unwrap();
        (config.rope_theta, config.rope_scaling)
    };
    let linear = |factor: f64| json!({"rope_type": "linear", "factor": factor});
    // `rope_scaling` wins over `rope_parameters`, with the theta beside it.
    let both = json!({
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0},
        "rope_scaling": linear(2.0), "rope_theta": 7.0,
    });
    assert_eq!(llama(both), (7.0, RopeScaling::Linear { factor: 2.0 }));
    let empty = json!({"rope_parameters": linear(4.0), "rope_scaling": {}});
    assert_eq!(llama(empty), (10_000.0, RopeScaling::Linear { factor: 4.0 }));
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let original = |changes: Value| match llama(changes).1 {
        RopeScaling::Llama3 { original_max_position, .. } => original_max_position,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(json!({"rope_scaling": llama3})), 32_768.0);
    let beside = json!({"rope_scaling": llama3, "original_max_position_embeddings": 8192});
    assert_eq!(original(beside), 32_768.0);
    for (kind, positions) in [("llama", 2048), ("mistral", 131_072), ("qwen2", 32_768)] {
        let mut raw = base();
        raw["model_type"] = json!(kind);
        raw.as_object_mut().unwrap().remove("max_position_embeddings");
        assert_eq!(parse(raw).unwrap().max_position_embeddings, positions);
    }
}
