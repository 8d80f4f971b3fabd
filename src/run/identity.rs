//! The identity of a run: the settings that a checkpoint, or a finished run, must share with the
//! recipe that finds it in its folder.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::plan::{Plan, PlannedAdapter};
use crate::recipe::{
    Objective, Quantization, Recipe, ReferenceKind, Schedule, SftLoss, SftSettings,
};
use crate::train::checkpoint::TRAINING_DATA;
use crate::train::identity::{LENGTH, identity, plain, text_of};

/// The settings that must be equal if the plan's run continues from a checkpoint: every setting
/// that affects its steps. The length of the run may differ, see [`LENGTH`]. Held-out rows count
/// only if the learning rate follows the evaluations.
pub fn of_checkpoint(plan: &Plan) -> BTreeMap<String, String> {
    let Plan { recipe, schedule, .. } = plan;
    // Evaluations change steps if the learning rate follows them.
    let data = match recipe.train.lr_scheduler_type {
        Schedule::ReduceLrOnPlateau => plan.rows.fingerprint(),
        _ => plan.rows.train_fingerprint(),
    };
    let data = blake3::Hash::from(data).to_hex()[..16].to_string();
    let mut extra = vec![
        (TRAINING_DATA.to_string(), data),
        ("compute type".to_string(), text_of(&plan.dtype)),
        ("model_name_or_path".to_string(), recipe.model.model_name_or_path.clone()),
    ];
    if let Some(Quantization { nested }) = recipe.model.quantization {
        extra.push(("load_in_4bit".to_string(), true.to_string()));
        extra.push(("use_bnb_nested_quant".to_string(), nested.to_string()));
    }
    extra.extend(reference(recipe));
    let micro_batch = match plan.balance {
        // The load is balanced within a micro-batch.
        Some(_) => Some(schedule.micro_batch.to_string()),
        None => micro_batch(&recipe.objective, schedule.rows, schedule.micro_batch),
    };
    let balance = plan.balance.filter(|balance| balance.is_in_loss);
    extra.extend(balance.map(|b| ("router_aux_loss_coef".to_string(), b.coef.to_string())));
    extra.extend(micro_batch.map(|rows| ("per_device_train_batch_size".to_string(), rows)));
    extra.extend(objective_settings(&recipe.objective));
    extra.extend(plan.adapter.iter().flat_map(adapter_settings));
    identity(&recipe.train, schedule.rows_a_step(), extra)
}

/// The settings of the adapter that a run trains.
fn adapter_settings(adapter: &PlannedAdapter) -> Vec<(String, String)> {
    let config = &adapter.config;
    let begins = if adapter.from.is_some() { "trained further" } else { "new" };
    let settings = [
        ("adapter", begins.to_string()),
        ("lora_r", config.r.to_string()),
        ("lora_alpha", config.alpha.to_string()),
        ("lora_dropout", adapter.dropout.to_string()),
        ("use_rslora", config.use_rslora.to_string()),
        ("lora_target_modules", config.selection.targets.shown()),
        ("lora_modules_to_save", config.selection.modules_to_save.join(", ")),
    ];
    settings.map(|(key, value)| (key.to_string(), value)).to_vec()
}

/// The settings that must be equal if a finished run is the run of `recipe`. They come from the
/// recipe alone, so that nothing has to be read first. How ranks share a step and what is held out
/// does not count.
pub fn of_finished(recipe: &Recipe) -> BTreeMap<String, String> {
    /// Settings that do not change the model.
    const IGNORED: [&str; 6] = [
        "rows a step",
        "dataset_num_proc",
        "max_bad_rows",
        "max_eval_samples",
        "precompute_ref_log_probs",
        "logits_over",
    ];
    let Recipe { stage, model, data, train, objective, .. } = recipe;
    let mut extra = vec![
        ("stage".to_string(), stage.name().to_string()),
        ("load_best_model_at_end".to_string(), train.load_best_model_at_end.to_string()),
        ("use_peft".to_string(), model.lora.is_some().to_string()),
    ];
    extra.extend(settings(model));
    extra.extend(settings(data));
    extra.extend(settings(&own_settings(objective)));
    let mut all = identity(train, 0, extra);
    all.retain(|key, _| !IGNORED.contains(&key.as_str()));
    // The folder that holds the run and its inputs may be moved.
    if let Some(parent) = train.output_dir.parent().filter(|parent| parent.is_absolute()) {
        let parent = parent.display().to_string();
        all.values_mut().for_each(|value| *value = value.replace(&parent, "."));
    }
    all
}

/// A setting that differs: its key, its old and its new value. If the stage differs, it is the
/// stage. Keys that only one of the two has are ignored: they belong to another version of the
/// program.
pub fn difference<'a>(
    was: &'a BTreeMap<String, String>,
    is: &'a BTreeMap<String, String>,
) -> Option<(&'a str, &'a str, &'a str)> {
    let pairs = was.iter().filter_map(|(key, was)| Some((key.as_str(), was, is.get(key)?)));
    let different = pairs.filter(|(_, was, is)| was != is);
    let first = different.min_by_key(|(key, ..)| *key != "stage");
    first.map(|(key, was, is)| (key, plain(was), plain(is)))
}

/// Whether two runs differ in their length only.
pub fn differ_in_length(was: &BTreeMap<String, String>, is: &BTreeMap<String, String>) -> bool {
    let rest = |settings: &BTreeMap<String, String>| {
        let mut rest = settings.clone();
        rest.retain(|key, _| !LENGTH.contains(&key.as_str()));
        rest
    };
    difference(was, is).is_some() && difference(&rest(was), &rest(is)).is_none()
}

/// The reference model; `None` if the objective has none.
fn reference(recipe: &Recipe) -> Option<(String, String)> {
    if matches!(ReferenceKind::of(&recipe.objective), ReferenceKind::None) {
        return None;
    }
    let model = &recipe.model;
    let reference = model.ref_model_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    Some(("ref_model_name_or_path".to_string(), reference.clone()))
}

/// Settings as pairs of key and value, without groups and without the held-out data.
fn settings(group: &impl Serialize) -> Vec<(String, String)> {
    let mut all = Vec::new();
    flatten(&serde_json::to_value(group).expect("settings are plain data"), "", "", &mut all);
    all
}

fn flatten(value: &Value, key: &str, group: &str, into: &mut Vec<(String, String)>) {
    // The mixture has a `seed` of its own, which is not that of the training.
    let group = if key == "mixture" { "dataset " } else { group };
    let key = if key == "losses" { "loss_type" } else { key };
    let mut add = |text: String| into.push((format!("{group}{key}"), text));
    match value {
        Value::Object(entries) => {
            let entries = entries.iter().filter(|(key, _)| *key != "test");
            entries.for_each(|(key, value)| flatten(value, key, group, into));
        }
        Value::String(text) => add(text.clone()),
        other => add(other.to_string()),
    }
}

/// The number of rows of a micro-batch, if the loss of a step depends on it. It does if the loss
/// depends on which rows share a micro-batch, and if the last micro-batch is short but has the
/// weight of a whole one. It does not for SFT, which weighs tokens.
fn micro_batch(objective: &Objective, rows: usize, micro_batch: usize) -> Option<String> {
    match objective {
        Objective::Sft(_) => None,
        _ if objective.rows_meet().is_some() || !rows.is_multiple_of(micro_batch) => {
            Some(micro_batch.to_string())
        }
        _ => Some("one that divides the rows".to_string()),
    }
}

/// The settings of an objective that its numbers depend on, by key. Lengths are left out:
/// they are part of the data's fingerprint.
fn objective_settings(objective: &Objective) -> Vec<(String, String)> {
    const IGNORED: [&str; 3] = ["lengths", "logits_over", "precompute_ref_log_probs"];
    if let Objective::Sft(sft) = objective {
        return sft_settings(sft);
    }
    let settings = own_settings(objective);
    let keys = settings.as_object().into_iter().flatten();
    keys.filter(|(key, _)| !IGNORED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect()
}

/// The settings of SFT that its numbers depend on, beside those of its rows. A key that is missing
/// has its default, as in checkpoints from before the key.
fn sft_settings(sft: &SftSettings) -> Vec<(String, String)> {
    let is_plain = sft.loss_type == SftLoss::Nll;
    let epsilon = sft.label_smoothing_factor;
    let settings = [
        (!is_plain).then(|| ("loss_type", text_of(&sft.loss_type))),
        (is_plain && epsilon > 0.0).then(|| ("label_smoothing_factor", epsilon.to_string())),
    ];
    settings.into_iter().flatten().map(|(key, value)| (key.to_string(), value)).collect()
}

/// The settings that only this kind of objective has.
fn own_settings(objective: &Objective) -> Value {
    let settings = match objective {
        Objective::Sft(sft) => serde_json::to_value(sft),
        Objective::Dpo(dpo) => serde_json::to_value(dpo),
        Objective::Orpo(orpo) => serde_json::to_value(orpo),
        Objective::Cpo(cpo) => serde_json::to_value(cpo),
        Objective::Tpo(tpo) => serde_json::to_value(tpo),
        Objective::Kto(kto) => serde_json::to_value(kto),
    };
    settings.expect("settings are plain data")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Stage;

    #[test]
    fn settings_that_change_the_model_make_another_run() {
        let identity_of = |stage: Stage, more: &str| {
            let text = format!("model_name_or_path: m\ndataset_name: d\noutput_dir: o\n{more}");
            of_finished(&Recipe::parse(&text, Path::new("r.yaml"), stage, &[]).unwrap())
        };
        let was = identity_of(Stage::Dpo, "beta: 0.1\n");
        let change = |more: &str| {
            let is = identity_of(Stage::Dpo, more);
            difference(&was, &is).map(|(key, was, is)| format!("{key} {was} {is}"))
        };
        assert_eq!(
            change("per_device_train_batch_size: 2\nmax_bad_rows: 0.5\nlogging_steps: 3\n"),
            None
        );
        assert_eq!(change("beta: 0.9\n").as_deref(), Some("beta 0.1 0.9"));
        assert_eq!(
            change("learning_rate: 1.0e-3\n").as_deref(),
            Some("learning_rate 0.000001 0.001")
        );
        assert_eq!(change("max_length: 7\n").as_deref(), Some("max_length 1024 7"));
        assert_eq!(change("max_steps: 7\n").as_deref(), Some("max_steps not set 7"));
        assert_eq!(
            change("max_train_samples: 7\n").as_deref(),
            Some("max_train_samples not set 7")
        );
        assert_eq!(change("dataset_train_split: b\n").as_deref(), Some("dataset split train b"));
        assert_eq!(change("eval_strategy: epoch\n"), None);
        let sft = identity_of(Stage::Sft, "");
        assert_eq!(difference(&was, &sft), Some(("stage", "DPO", "SFT")));
    }
}
