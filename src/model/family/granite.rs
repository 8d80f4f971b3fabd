//! Granite 3: Llama with multipliers of embeddings, residuals, scores and logits.

use super::{Architecture, Family};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let attention_bias = keys.flag("attention_bias")?;
    let factor = |key| Ok::<f64, ConfigError>(keys.number(key)?.unwrap_or(1.0));
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias")?,
        embedding_multiplier: factor("embedding_multiplier")?,
        residual_multiplier: factor("residual_multiplier")?,
        attention_multiplier: Some(factor("attention_multiplier")?),
        logits_scaling: factor("logits_scaling")?,
        ..Family::common(Architecture::Granite, 2048)
    })
}
