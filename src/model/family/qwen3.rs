//! Qwen3: norms on the heads of queries and keys.

use super::{Architecture, Defaults, Family, QueryKeyNorm, qwen_windows};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys, layers: usize) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Qwen3, 32_768);
    let attention_bias = keys.flag("attention_bias")?;
    let (sliding_window, windowed) = qwen_windows(keys, layers)?;
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        query_key_norm: Some(QueryKeyNorm::Heads),
        sliding_window,
        windowed,
        defaults: Defaults { head_dim: Some(128), ..common.defaults },
        ..common
    })
}
