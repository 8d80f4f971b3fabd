//! StarCoder2: LayerNorm, biases in all linear layers, an MLP without a gate, a sliding window.

use super::{Activation, Architecture, Defaults, Family, Projections};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::StarCoder2, 4096);
    let use_bias = keys.optional_flag("use_bias")?.unwrap_or(true);
    Ok(Family {
        projections: Projections::Ungated,
        qkv_bias: use_bias,
        output_bias: use_bias,
        mlp_bias: use_bias,
        has_layer_norm: true,
        activation: Activation::GeluTanh,
        sliding_window: keys.size_or("sliding_window", None)?,
        defaults: Defaults { norm_eps: 1e-5, tie_word_embeddings: true, ..common.defaults },
        ..common
    })
}
