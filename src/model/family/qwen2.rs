//! Qwen2 and Qwen2.5: biases on queries, keys and values; windows in some layers.

use super::{Architecture, Family, qwen_windows};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys, layers: usize) -> Result<Family, ConfigError> {
    let (sliding_window, windowed) = qwen_windows(keys, layers)?;
    Ok(Family {
        qkv_bias: true,
        sliding_window,
        windowed,
        ..Family::common(Architecture::Qwen2, 32_768)
    })
}
