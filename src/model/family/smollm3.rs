//! SmolLM3: every fourth layer has no rotary embedding.

use serde_json::Value;

use super::{Architecture, Defaults, Family, windowed_by_type};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys, layers: usize) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::SmolLm3, 32_768);
    let attention_bias = keys.flag("attention_bias")?;
    let rotary = rotary_layers(keys, layers)?;
    let sliding_window = match keys.flag("use_sliding_window")? {
        true => keys.size_or("sliding_window", None)?,
        false => None,
    };
    let windowed = match sliding_window {
        None => Vec::new(),
        // As in transformers, the window is in the layers without a rotary embedding.
        Some(_) => windowed_by_type(keys, layers)?
            .unwrap_or_else(|| rotary.iter().map(|has_rotary| !has_rotary).collect()),
    };
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        sliding_window,
        windowed,
        rotary,
        defaults: Defaults {
            rope_theta: 2_000_000.0,
            tie_word_embeddings: true,
            ..common.defaults
        },
        ..common
    })
}

/// `no_rope_layers` lists 1 for each layer with a rotary embedding, and 0 for each without one.
fn rotary_layers(keys: &Keys, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let key = "no_rope_layers";
    let Some(list) = keys.raw.get(key).filter(|list| !list.is_null()) else {
        let interval = keys.size_or("no_rope_layer_interval", Some(4))?.unwrap_or(4);
        return Ok((1..=layers).map(|layer| layer % interval != 0).collect());
    };
    let flag = |value: &Value| match value.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    };
    let flags: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().map(flag).collect());
    match flags {
        Some(flags) if flags.len() == layers => Ok(flags),
        _ => Err(keys.invalid(key, list, format!("0 or 1 for each of {layers} layers"))),
    }
}
