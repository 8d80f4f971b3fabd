//! The load-balancing loss that a run has.

use super::error::PlanError;
use crate::model::config::ModelConfig;
use crate::recipe::{Objective, Optim, Recipe, SftLoss};
use crate::train::balance::Balance;

/// The load-balancing loss of a recipe with a model of `config`; `None` if it has none.
///
/// As in TRL, the loss of SFT, DPO and KTO has it with the recipe's `router_aux_loss_coef` or, by
/// default, that of `config.json`; 0 turns it off. Label smoothing leaves it out of the loss. ORPO
/// and CPO have it if `config.json` has `output_router_logits: true`, TPO never.
///
/// # Errors
/// The recipe asks for it and the model has no experts, or computes micro-batches in parts.
pub fn balance_of(recipe: &Recipe, config: &ModelConfig) -> Result<Option<Balance>, PlanError> {
    let asked = recipe.model.router_aux_loss_coef;
    let Some(experts) = &config.family.experts else {
        return match asked.filter(|coef| *coef > 0.0) {
            Some(_) => Err(PlanError::NoExperts(recipe.model.model_name_or_path.clone())),
            None => Ok(None),
        };
    };
    let own = experts.aux_loss_coef;
    let (coef, is_in_loss) = match &recipe.objective {
        Objective::Sft(sft) => {
            let smooths = sft.loss_type == SftLoss::Nll && sft.label_smoothing_factor > 0.0;
            (asked.unwrap_or(own), !smooths)
        }
        Objective::Dpo(_) | Objective::Kto(_) => (asked.unwrap_or(own), true),
        Objective::Orpo(_) | Objective::Cpo(_) if experts.outputs_router_logits => (own, true),
        Objective::Orpo(_) | Objective::Cpo(_) | Objective::Tpo(_) => return Ok(None),
    };
    if coef == 0.0 {
        return Ok(None);
    }
    if recipe.train.max_tokens_per_microbatch.is_some() {
        return Err(PlanError::BalanceInParts);
    }
    Ok(Some(Balance { coef, is_in_loss }))
}

/// Checks that the optimizer can train a model of `config` as transformers does. An adapter is not
/// on experts.
///
/// # Errors
/// Adafactor has sums over the rows and columns of a tensor. transformers stacks the experts of a
/// layer to one tensor, so its sums are others than those of single experts.
pub fn check_optimizer(
    recipe: &Recipe,
    config: &ModelConfig,
    trains_adapter: bool,
) -> Result<(), PlanError> {
    let trains_experts = config.family.experts.is_some() && !trains_adapter;
    match trains_experts && recipe.train.optim == Optim::Adafactor {
        true => Err(PlanError::FactoredExperts),
        false => Ok(()),
    }
}
