//! Mistral: a sliding window in all layers.

use super::{Architecture, Family};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    Ok(Family {
        sliding_window: keys.size_or("sliding_window", Some(4096))?,
        ..Family::common(Architecture::Mistral, 131_072)
    })
}
