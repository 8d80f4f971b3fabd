//! What makes two starts of a recipe the same run: what a checkpoint, or a finished run, must share with the recipe that
//! finds it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::plan::Plan;
use crate::recipe::{Objective, Recipe, ReferenceKind};
use crate::train::identity::{identity, plain, text_of};

/// What must be the same for a checkpoint of this run to be continued.
pub fn of_checkpoint(plan: &Plan) -> BTreeMap<String, String> {
    let Plan { recipe, schedule, .. } = plan;
    let data = blake3::Hash::from(plan.rows.fingerprint()).to_hex()[..16].to_string();
    let mut extra = vec![
        ("data".to_string(), data),
        ("compute type".to_string(), text_of(&plan.dtype)),
        ("model_name_or_path".to_string(), recipe.model.model_name_or_path.clone()),
    ];
    extra.extend(reference(recipe));
    let micro_batch = micro_batch(&recipe.objective, schedule.rows, schedule.micro_batch);
    extra.extend(micro_batch.map(|rows| ("per_device_train_batch_size".to_string(), rows)));
    extra.extend(preference_settings(&recipe.objective));
    identity(&recipe.train, schedule.rows_a_step(), extra)
}

/// What of a recipe must be the same for a finished run to be its own: known before anything is read. How ranks share a
/// step is not among it, nor what is held out.
pub fn of_finished(recipe: &Recipe) -> BTreeMap<String, String> {
    const NO_NUMBER: [&str; 6] = [
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
    ];
    extra.extend(settings(model));
    extra.extend(settings(data));
    extra.extend(settings(&own_settings(objective)));
    let mut all = identity(train, 0, extra);
    all.retain(|key, _| !NO_NUMBER.contains(&key.as_str()));
    // A folder may be moved with all that it holds.
    if let Some(place) = train.output_dir.parent().filter(|place| place.is_absolute()) {
        let place = place.display().to_string();
        all.values_mut().for_each(|value| *value = value.replace(&place, "."));
    }
    all
}

/// A key that differs (the stage before all others), with what it was and is. Keys that one of the two lacks are of another
/// version.
pub fn difference<'a>(
    was: &'a BTreeMap<String, String>,
    is: &'a BTreeMap<String, String>,
) -> Option<(&'a str, &'a str, &'a str)> {
    let pairs = was.iter().filter_map(|(key, was)| Some((key.as_str(), was, is.get(key)?)));
    let other = pairs.filter(|(_, was, is)| was != is);
    let first = other.min_by_key(|(key, ..)| *key != "stage");
    first.map(|(key, was, is)| (key, plain(was), plain(is)))
}

fn reference(recipe: &Recipe) -> Option<(String, String)> {
    if matches!(ReferenceKind::of(&recipe.objective), ReferenceKind::None) {
        return None;
    }
    let model = &recipe.model;
    let reference = model.ref_model_name_or_path.as_ref().unwrap_or(&model.model_name_or_path);
    Some(("ref_model_name_or_path".to_string(), reference.clone()))
}

/// Settings by key, those in groups too; not what is held out.
fn settings(of: &impl Serialize) -> Vec<(String, String)> {
    let mut all = Vec::new();
    flatten(&serde_json::to_value(of).expect("settings are plain data"), "", "", &mut all);
    all
}

fn flatten(value: &Value, key: &str, group: &str, into: &mut Vec<(String, String)>) {
    // Its `seed` is not that of the training.
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

/// The rows of a micro-batch, as far as a step over the same rows depends on them: wholly where rows meet in the loss; and
/// where a short last micro-batch counts as much as the others. SFT counts tokens, whatever micro-batch they are in.
fn micro_batch(objective: &Objective, rows: usize, micro_batch: usize) -> Option<String> {
    match objective {
        Objective::Sft(_) => None,
        _ if objective.rows_meet().is_some() || !rows.is_multiple_of(micro_batch) => {
            Some(micro_batch.to_string())
        }
        _ => Some("one that divides the rows".to_string()),
    }
}

/// Settings of a preference objective that its numbers depend on, by key. Lengths are not among them:
/// they show in the data.
fn preference_settings(objective: &Objective) -> Vec<(String, String)> {
    const NO_NUMBER: [&str; 3] = ["lengths", "logits_over", "precompute_ref_log_probs"];
    if matches!(objective, Objective::Sft(_)) {
        return Vec::new();
    }
    let settings = own_settings(objective);
    let keys = settings.as_object().into_iter().flatten();
    keys.filter(|(key, _)| !NO_NUMBER.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect()
}

/// What an objective's stage has of its own in a recipe.
fn own_settings(objective: &Objective) -> Value {
    let settings = match objective {
        Objective::Sft(sft) => serde_json::to_value(sft),
        Objective::Dpo(dpo) => serde_json::to_value(dpo),
        Objective::Orpo(orpo) => serde_json::to_value(orpo),
        Objective::Cpo(cpo) => serde_json::to_value(cpo),
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
    fn a_finished_run_is_told_from_that_of_another_recipe() {
        let of = |stage: Stage, more: &str| {
            let text = format!("model_name_or_path: m\ndataset_name: d\noutput_dir: o\n{more}");
            of_finished(&Recipe::parse(&text, Path::new("r.yaml"), stage, &[]).unwrap())
        };
        let was = of(Stage::Dpo, "beta: 0.1\n");
        let now = |more: &str| {
            let is = of(Stage::Dpo, more);
            difference(&was, &is).map(|(key, was, is)| format!("{key} {was} {is}"))
        };
        assert_eq!(
            now("per_device_train_batch_size: 2\nmax_bad_rows: 0.5\nlogging_steps: 3\n"),
            None
        );
        assert_eq!(now("beta: 0.9\n").as_deref(), Some("beta 0.1 0.9"));
        assert_eq!(now("learning_rate: 1.0e-3\n").as_deref(), Some("learning_rate 0.000001 0.001"));
        assert_eq!(now("max_length: 7\n").as_deref(), Some("max_length 1024 7"));
        assert_eq!(now("max_steps: 7\n").as_deref(), Some("max_steps not set 7"));
        assert_eq!(now("max_train_samples: 7\n").as_deref(), Some("max_train_samples not set 7"));
        assert_eq!(now("dataset_train_split: b\n").as_deref(), Some("dataset split train b"));
        assert_eq!(now("eval_strategy: epoch\n"), None);
        let sft = of(Stage::Sft, "");
        assert_eq!(difference(&was, &sft), Some(("stage", "DPO", "SFT")));
    }
}
