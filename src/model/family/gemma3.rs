//! Gemma 3 (text): as Gemma 1, with norms before and after attention and MLP and on the heads of
//! queries and keys. Most layers have a sliding window and a rotary base of their own.

use serde_json::Value;

use super::gemma::embedding_multiplier;
use super::{
    Activation, Architecture, Defaults, Family, NormPlaces, QueryKeyNorm, windowed_by_type,
};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys, layers: usize) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Gemma3, 131_072);
    let attention_bias = keys.flag("attention_bias")?;
    for key in ["use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping"]
    {
        keys.refuse_if_set(key)?;
    }
    let pattern = keys.size_or("sliding_window_pattern", Some(6))?.unwrap_or(6);
    let by_pattern = || (1..=layers).map(|layer| layer % pattern != 0).collect();
    let scalar = keys.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        query_key_norm: Some(QueryKeyNorm::Heads),
        norms: NormPlaces::Both,
        norms_add_one: true,
        activation: Activation::GeluTanh,
        embedding_multiplier: embedding_multiplier(keys)?,
        attention_multiplier: Some(scalar.sqrt().recip()),
        sliding_window: keys.size_or("sliding_window", Some(4096))?,
        windowed: windowed_by_type(keys, layers)?.unwrap_or_else(by_pattern),
        local_rope_theta: Some(local_theta(keys)?),
        defaults: Defaults {
            head_dim: Some(256),
            rope_theta: 1_000_000.0,
            tie_word_embeddings: true,
            ..common.defaults
        },
        ..common
    })
}

/// The rotary base of layers with the window: `rope_local_base_freq` or, since transformers 5,
/// `rope_parameters.sliding_attention.rope_theta`.
fn local_theta(keys: &Keys) -> Result<f64, ConfigError> {
    let nested = keys.raw.get("rope_parameters").and_then(|all| all.get("sliding_attention"));
    let nested = match nested {
        Some(settings @ Value::Object(_)) => {
            Keys { raw: settings, path: keys.path }.number("rope_theta")?
        }
        _ => None,
    };
    Ok(match nested {
        Some(theta) => theta,
        None => keys.number("rope_local_base_freq")?.unwrap_or(10_000.0),
    })
}
