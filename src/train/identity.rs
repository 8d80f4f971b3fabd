//! The settings that a run must have in common with the checkpoint that it continues from.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::recipe::{Dtype, LrSchedulerKwargs, Optim, TrainSettings};

/// Version of the format in which checkpoints keep their position, and in which checkpoints and
/// finished runs keep their settings. Version 1 had the values as Rust's `Debug` wrote them.
pub const FORMAT_VERSION: u32 = 2;

/// The keys that say how long a run is. They may change between a checkpoint and the run that
/// continues from it, because they do not change the steps before the checkpoint.
pub const LENGTH: [&str; 2] = ["num_train_epochs", "max_steps"];

/// The settings that must not change between a checkpoint and the run that continues from it, by
/// key, except for those of [`LENGTH`]. They include the rows of a step, but not how ranks share
/// them. `extra` has the settings that only the objective has.
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
        ("max_steps", text_of(&s.max_steps)),
        ("rows a step", rows_a_step.to_string()),
        ("bf16", s.bf16.to_string()),
        ("optim", text_of(&s.optim)),
        ("learning_rate", s.learning_rate.to_string()),
        ("adam_beta1", s.adam_beta1.to_string()),
        ("adam_beta2", s.adam_beta2.to_string()),
        ("adam_epsilon", s.adam_epsilon.to_string()),
        ("weight_decay", s.weight_decay.to_string()),
        ("max_grad_norm", s.max_grad_norm.to_string()),
        ("lr_scheduler_type", text_of(&s.lr_scheduler_type)),
        ("lr_scheduler_kwargs", kwargs_text(s.lr_scheduler_kwargs)),
        ("warmup", text_of(&s.warmup)),
        ("train_sampling_strategy", text_of(&s.train_sampling_strategy)),
    ];
    // The best value so far is compared with the values of later evaluations.
    let best = s.metric_for_best_model.as_ref().map(|metric| {
        let greater = s.greater_is_better.unwrap_or(true);
        [("metric_for_best_model", metric.clone()), ("greater_is_better", greater.to_string())]
    });
    // A key that is missing has its default, as in checkpoints from before the key.
    let later = [
        s.dataloader_drop_last.then(|| ("dataloader_drop_last", "true".to_owned())),
        (s.gradient_reduce_dtype != Dtype::Auto)
            .then(|| ("gradient_reduce_dtype", text_of(&s.gradient_reduce_dtype))),
        (s.optim == Optim::Sgd).then(|| ("optim_args", text_of(&s.sgd))),
        s.neftune_noise_alpha
            .filter(|alpha| *alpha > 0.0)
            .map(|alpha| ("neftune_noise_alpha", alpha.to_string())),
    ];
    let best = best.into_iter().flatten();
    let numbers = numbers.into_iter().chain(best).chain(later.into_iter().flatten());
    numbers.map(|(key, value)| (key.to_string(), value)).chain(extra).collect()
}

/// A setting's value as serde writes it: names without quotes, everything else as JSON.
pub fn text_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value).expect("settings are plain data") {
        Value::String(name) => name,
        other => other.to_string(),
    }
}

/// A value of an identity as messages show it.
pub fn plain(value: &str) -> &str {
    if value == "null" { "not set" } else { value }
}

/// The entries that are set, in the form of a recipe.
fn kwargs_text(kwargs: LrSchedulerKwargs) -> String {
    let set = kwargs.set_entries().into_iter().map(|(name, value)| format!("{name}: {value}"));
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
    fn the_type_of_exchanged_gradients_is_part_of_the_identity_if_it_is_set() {
        let of = |more: &str| identity(&settings(more), 8, []);
        assert!(!of("").contains_key("gradient_reduce_dtype"));
        let set = of("gradient_reduce_dtype: bf16\n");
        assert_eq!(set["gradient_reduce_dtype"], "bfloat16");
    }

    #[test]
    fn values_have_their_serde_names() {
        let all = identity(&settings("optim: rmsprop\nwarmup_ratio: 0.5\n"), 8, []);
        assert_eq!(all["optim"], "rms_prop");
        assert_eq!(all["warmup"], r#"{"ratio":0.5}"#);
        assert_eq!(plain(&all["max_steps"]), "not set");
        assert_eq!(identity(&settings("max_steps: 7\n"), 8, [])["max_steps"], "7");
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
