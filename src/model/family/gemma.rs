//! Gemma 1: scaled embeddings, norms that scale by `1 + weight`, GeGLU.

use super::{Activation, Architecture, Defaults, Family};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Gemma, 8192);
    let attention_bias = keys.flag("attention_bias")?;
    keys.refuse_if_set("use_bidirectional_attention")?;
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        norms_add_one: true,
        activation: Activation::GeluTanh,
        embedding_multiplier: embedding_multiplier(keys)?,
        defaults: Defaults { head_dim: Some(256), tie_word_embeddings: true, ..common.defaults },
        ..common
    })
}

/// `√hidden_size`.
pub(super) fn embedding_multiplier(keys: &Keys) -> Result<f64, ConfigError> {
    Ok((keys.size("hidden_size")? as f64).sqrt())
}
