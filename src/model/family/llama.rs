//! Llama 2 and 3: the common layer, with biases if the configuration has them.

use super::{Architecture, Family};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let attention_bias = keys.flag("attention_bias")?;
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        ..Family::common(Architecture::Llama, 2048)
    })
}
