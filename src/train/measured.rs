//! Checks of measured numbers: finite losses, the metric of the best model, tokens in a log row.

use super::error::TrainError;
use super::event::LogRow;
use crate::recipe::TrainSettings;

/// Fails if the loss or the gradient norm is NaN or infinite.
pub fn check_finite(step: u64, loss: f64, grad_norm: f64) -> Result<(), TrainError> {
    let numbers = [("the loss", loss), ("the norm of the gradient", grad_norm)];
    match numbers.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((what, value)) => Err(TrainError::NotFinite { step, what, value }),
        None => Ok(()),
    }
}

/// Fails if the loss of an evaluation is NaN or infinite.
pub fn check_evaluation(row: &LogRow) -> Result<(), TrainError> {
    match row.get("eval_loss").filter(|loss| !loss.is_finite()) {
        Some(value) => {
            let what = "the loss of the evaluation";
            Err(TrainError::NotFinite { step: row.step, what, value })
        }
        None => Ok(()),
    }
}

/// The value by which the best model is chosen, from the row of an evaluation. `None` if the run
/// does not choose one.
pub fn metric_for_best_model(
    settings: &TrainSettings,
    row: &LogRow,
) -> Result<Option<f64>, TrainError> {
    let Some(metric) = &settings.metric_for_best_model else { return Ok(None) };
    if let Some(value) = row.get(&format!("eval_{metric}")) {
        return Ok(Some(value));
    }
    let names = row.values.iter().filter_map(|(name, _)| name.strip_prefix("eval_"));
    let found = names.collect::<Vec<_>>().join(", ");
    Err(TrainError::NoMetric { metric: metric.clone(), found })
}

/// Inserts TRL's `num_tokens` in its place behind `entropy`.
pub fn with_tokens(
    mut values: Vec<(String, f64)>,
    prefix: &str,
    tokens: u64,
) -> Vec<(String, f64)> {
    let entropy = format!("{prefix}entropy");
    let place = values.iter().position(|(name, _)| *name == entropy);
    let place = place.map_or(values.len(), |place| place + 1);
    values.insert(place, (format!("{prefix}num_tokens"), tokens as f64));
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::identity::tests::settings;

    #[test]
    fn a_number_that_is_not_finite_is_named() {
        let message = |loss, norm| check_finite(3, loss, norm).unwrap_err().to_string();
        assert!(message(f64::NAN, f64::NAN).starts_with("step 3: the loss is NaN; training"));
        let of_norm = message(0.69, f64::INFINITY);
        assert!(of_norm.starts_with("step 3: the norm of the gradient is inf; training"));
        assert!(!of_norm.contains("loss"), "{of_norm}");
        assert!(check_finite(3, 0.69, 1.0).is_ok());
    }

    #[test]
    fn the_loss_of_an_evaluation_must_be_finite() {
        let check = |values: &[(&str, f64)]| {
            let values = values.iter().map(|(name, value)| (name.to_string(), *value)).collect();
            check_evaluation(&LogRow { step: 3, epoch: 0.5, values })
        };
        let message = check(&[("eval_loss", f64::NAN)]).unwrap_err().to_string();
        assert!(message.starts_with("step 3: the loss of the evaluation is NaN; training"));
        assert!(check(&[("eval_loss", 0.5), ("eval_rewards/chosen", f64::NAN)]).is_ok());
    }

    #[test]
    fn the_best_model_s_metric_is_found_or_named() {
        let values = [("eval_loss", 0.5), ("eval_runtime", 2.0), ("eval_rewards/margins", 0.1)];
        let values = values.map(|(name, value)| (name.to_string(), value)).into();
        let row = LogRow { step: 5, epoch: 0.5, values };
        let of = |more: &str| metric_for_best_model(&settings(more), &row);
        assert_eq!(of("").unwrap(), None);
        for metric in ["loss", "eval_loss"] {
            assert_eq!(of(&format!("metric_for_best_model: {metric}\n")).unwrap(), Some(0.5));
        }
        let message = of("metric_for_best_model: rewards/margin\n").unwrap_err().to_string();
        let says = "`metric_for_best_model: rewards/margin` is not among the metrics of this \
                    evaluation, which are loss, runtime, rewards/margins";
        assert!(message.starts_with(says), "{message}");
    }
}
