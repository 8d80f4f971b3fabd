//! What a run must share with the checkpoint that it goes on from.

use std::collections::BTreeMap;

use crate::recipe::{LrSchedulerKwargs, TrainSettings};

/// What must not change between a checkpoint and the run that goes on from it. Of the batch that is the
/// rows of a step, not how ranks share them; `extra` has what else the objective asks for.
pub fn identity(
    settings: &TrainSettings,
    rows_a_step: usize,
    extra: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let s = settings;
    let numbers = [
        ("seed", s.seed.to_string()),
        ("data_seed", s.data_seed.unwrap_or(s.seed).to_string()),
        ("num_train_epochs", s.num_train_epochs.to_string()),
        ("max_steps", format!("{:?}", s.max_steps)),
        ("rows a step", rows_a_step.to_string()),
        ("bf16", s.bf16.to_string()),
        ("optim", format!("{:?}", s.optim)),
        ("learning_rate", s.learning_rate.to_string()),
        ("adam_beta1", s.adam_beta1.to_string()),
        ("adam_beta2", s.adam_beta2.to_string()),
        ("adam_epsilon", s.adam_epsilon.to_string()),
        ("weight_decay", s.weight_decay.to_string()),
        ("max_grad_norm", s.max_grad_norm.to_string()),
        ("lr_scheduler_type", format!("{:?}", s.lr_scheduler_type)),
        ("lr_scheduler_kwargs", kwargs_text(s.lr_scheduler_kwargs)),
        ("warmup", format!("{:?}", s.warmup)),
        ("train_sampling_strategy", format!("{:?}", s.train_sampling_strategy)),
    ];
    // The best value so far is compared with those to come.
    let best = s.metric_for_best_model.as_ref().map(|metric| {
        let greater = s.greater_is_better.unwrap_or(true);
        [("metric_for_best_model", metric.clone()), ("greater_is_better", greater.to_string())]
    });
    let numbers = numbers.into_iter().chain(best.into_iter().flatten());
    numbers.map(|(key, value)| (key.to_string(), value)).chain(extra).collect()
}

/// A value of an identity as a recipe has it.
pub fn plain(value: &str) -> &str {
    match value {
        "None" | "null" => "not set",
        _ => value.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(value),
    }
}

/// The entries that are set, as a recipe has them.
fn kwargs_text(kwargs: LrSchedulerKwargs) -> String {
    let LrSchedulerKwargs { min_lr, min_lr_rate, num_cycles, timescale } = kwargs;
    let entries = [
        ("min_lr", min_lr),
        ("min_lr_rate", min_lr_rate),
        ("num_cycles", num_cycles),
        ("timescale", timescale),
    ];
    let set = entries.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", value?)));
    format!("{{{}}}", set.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::{Recipe, Stage};

    /// Training settings of a recipe with `more` lines.
    pub fn settings(more: &str) -> TrainSettings {
        let text = format!("model_name_or_path: m\ndataset_name: d\n{more}");
        Recipe::parse(&text, Path::new("r.yaml"), Stage::Sft, &[]).unwrap().train
    }

    #[test]
    fn a_metric_for_the_best_model_is_part_of_the_identity() {
        let of = |more: &str| identity(&settings(more), 8, []);
        assert!(!of("").contains_key("greater_is_better"));
        let best = of("metric_for_best_model: rewards/margins\n");
        assert_eq!(best["metric_for_best_model"], "rewards/margins");
        assert_eq!(best["greater_is_better"], "true");
    }

    #[test]
    fn schedule_settings_are_part_of_the_identity() {
        let of = |more: &str| identity(&settings(more), 8, [])["lr_scheduler_kwargs"].clone();
        assert_eq!(of(""), "{}");
        let cosine = "lr_scheduler_type: cosine_with_min_lr\n\
                      lr_scheduler_kwargs: {min_lr_rate: 0.1, num_cycles: 0.5}\n";
        assert_eq!(of(cosine), "{min_lr_rate: 0.1, num_cycles: 0.5}");
    }
}
