//! Learning-rate schedules against those of transformers.

use std::path::Path;

use favonius::recipe::{Recipe, Stage};
use favonius::train::schedule::LearningRate;
use serde_json::Value;

/// The schedule `name` with `kwargs`, as a recipe writes them.
fn schedule(name: &str, kwargs: &Value, golden: &Value) -> LearningRate {
    let recipe = format!(
        "model_name_or_path: m\ndataset_name: d\neval_strategy: steps\nlearning_rate: {}\n\
         lr_scheduler_type: {name}\nlr_scheduler_kwargs: {kwargs}\n",
        golden["peak"]
    );
    let train = Recipe::parse(&recipe, Path::new("r.yaml"), Stage::Sft, &[]).unwrap().train;
    LearningRate {
        peak: train.learning_rate,
        schedule: train.lr_scheduler_type,
        warmup: golden["warmup"].as_u64().unwrap(),
        total: golden["total"].as_u64().unwrap(),
        kwargs: train.lr_scheduler_kwargs,
    }
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// `found` is `wanted`, but for rounding.
fn assert_same(found: f64, wanted: f64, of: &str) {
    let tolerance = 1e-12 * wanted.abs().max(1e-9);
    assert!((found - wanted).abs() <= tolerance, "{of}: {found} instead of {wanted}");
}

#[test]
fn every_schedule_has_the_rates_of_transformers() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/schedules.json")).expect("a golden file");
    for case in golden["cases"].as_array().unwrap() {
        let name = case["schedule"].as_str().unwrap();
        let schedule = schedule(name, &case["kwargs"], &golden);
        for (done, wanted) in numbers(&case["rates"]).into_iter().enumerate() {
            let of = format!("{name} {}, step {done}", case["kwargs"]);
            assert_same(schedule.at(done as u64, &[]), wanted, &of);
        }
    }
}

#[test]
fn plateaus_lower_the_rate_as_in_torch() {
    let golden: Value =
        serde_json::from_str(include_str!("golden/schedules.json")).expect("a golden file");
    let evaluations = numbers(&golden["evaluations"]);
    for case in golden["plateaus"].as_array().unwrap() {
        let schedule = schedule("reduce_lr_on_plateau", &case["kwargs"], &golden);
        for (after, wanted) in numbers(&case["rates"]).into_iter().enumerate() {
            let of = format!("{}, evaluation {after}", case["kwargs"]);
            assert_same(schedule.at(99, &evaluations[..=after]), wanted, &of);
        }
    }
}
