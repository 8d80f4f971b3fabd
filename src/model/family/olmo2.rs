//! OLMo 2: norms after attention and MLP, and on all queries and keys.

use super::{Architecture, Defaults, Family, NormPlaces, QueryKeyNorm};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Olmo2, 2048);
    let attention_bias = keys.flag("attention_bias")?;
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        query_key_norm: Some(QueryKeyNorm::Whole),
        norms: NormPlaces::After,
        defaults: Defaults { rms_norm_eps: 1e-5, ..common.defaults },
        ..common
    })
}
