//! Mixtral (arXiv 2401.04088): Mistral's layer with sparse experts instead of the MLP.

use serde_json::Value;

use super::{Architecture, Defaults, Family, Projections, SparseExperts};
use crate::model::config_keys::{ConfigError, Keys};

/// The most experts that are accepted. Larger numbers are mistakes.
const MOST_EXPERTS: usize = 1024;

pub(super) fn family(keys: &Keys) -> Result<Family, ConfigError> {
    let common = Family::common(Architecture::Mixtral, 131_072);
    Ok(Family {
        projections: Projections::Experts,
        experts: Some(experts(keys)?),
        sliding_window: keys.size_or("sliding_window", None)?,
        defaults: Defaults { norm_eps: 1e-5, rope_theta: 1e6, ..common.defaults },
        ..common
    })
}

fn experts(keys: &Keys) -> Result<SparseExperts, ConfigError> {
    let count = keys.optional_size("num_local_experts")?.unwrap_or(8);
    if count > MOST_EXPERTS {
        let expected = format!("at most {MOST_EXPERTS}");
        return Err(keys.invalid("num_local_experts", count, expected));
    }
    let per_token = keys.optional_size("num_experts_per_tok")?.unwrap_or(2);
    if per_token > count {
        let expected = format!("at most num_local_experts ({count})");
        return Err(keys.invalid("num_experts_per_tok", per_token, expected));
    }
    let key = "router_jitter_noise";
    let noise = keys.raw.get(key).filter(|noise| !noise.is_null());
    if let Some(noise) = noise.filter(|noise| noise.as_f64() != Some(0.0)) {
        return Err(keys.invalid(key, noise, "0: noise on the router's input is not supported"));
    }
    let key = "router_aux_loss_coef";
    let aux_loss_coef = match keys.raw.get(key) {
        None | Some(Value::Null) => 0.001,
        Some(coef) => match coef.as_f64() {
            Some(number) if number >= 0.0 => number,
            _ => return Err(keys.invalid(key, coef, "a number of at least 0")),
        },
    };
    let outputs_router_logits = keys.flag("output_router_logits")?;
    Ok(SparseExperts { count, per_token, aux_loss_coef, outputs_router_logits })
}
