//! Gemma 2: as Gemma 1, with norms before and after attention and MLP, soft caps on scores and
//! logits, and a sliding window in every other layer.

use super::gemma::embedding_multiplier;
use super::{Activation, Architecture, Defaults, Family, NormPlaces, windowed_by_type};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys, layers: usize) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Gemma2, 8192);
    let attention_bias = keys.flag("attention_bias")?;
    keys.refuse_if_set("use_bidirectional_attention")?;
    let alternating = || (0..layers).map(|layer| layer % 2 == 0).collect();
    let scalar = keys.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        norms: NormPlaces::Both,
        norms_add_one: true,
        activation: Activation::GeluTanh,
        embedding_multiplier: embedding_multiplier(keys)?,
        attention_multiplier: Some(scalar.sqrt().recip()),
        attention_softcap: keys.number_or("attn_logit_softcapping", Some(50.0))?,
        logits_softcap: keys.number_or("final_logit_softcapping", Some(30.0))?,
        sliding_window: keys.size_or("sliding_window", Some(4096))?,
        windowed: windowed_by_type(keys, layers)?.unwrap_or_else(alternating),
        defaults: Defaults { head_dim: Some(256), tie_word_embeddings: true, ..common.defaults },
        ..common
    })
}
