//! Phi-3 and Phi-4-mini: fused projections, and in the newer ones a rotary embedding of a part of
//! each head, with `longrope` scaling.

use super::{Architecture, Defaults, Family, Projections};
use crate::model::config_keys::{ConfigError, Keys};

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Phi3, 4096);
    let share = match keys.rotary_number("partial_rotary_factor")? {
        Some(share) => share,
        None => keys.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if share > 1.0 {
        return Err(keys.invalid("partial_rotary_factor", share, "at most 1"));
    }
    Ok(Family {
        projections: Projections::Fused,
        sliding_window: keys.size_or("sliding_window", None)?,
        rotary_share: share,
        has_longrope: true,
        defaults: Defaults { norm_eps: 1e-5, ..common.defaults },
        ..common
    })
}
