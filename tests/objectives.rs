//! Losses and gradients of every objective, near and far from the reference, compared with a second
//! implementation of the formulas (`scripts/golden/losses_by_formula.py`).

mod common;

use std::path::Path;

use common::*;
use favonius::data::{RowReport, Splits, UnpairedRow};
use favonius::objective::preference::{PairLogps, PairObjective, preference_loss};
use favonius::objective::unpaired::{UnpairedLogps, unpaired_loss};
use favonius::parallel::Ranks;
use favonius::recipe::{Objective, Recipe, Stage};
use favonius::train::evaluation::{HeldOut, evaluate};
use favonius::train::task::{Split, Task};
use favonius::train::tasks::{ReferenceSource, UnpairedTask};
use serde_json::{Value, json};

/// The tolerance, relative to the number or, if it is below 1, absolute.
const TOLERANCE: f64 = 1e-9;

fn formulas() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/losses_by_formula.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn lengths(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

fn close(ours: f64, theirs: f64) -> bool {
    (ours - theirs).abs() <= TOLERANCE * theirs.abs().max(1.0)
}

/// The objective of a recipe with these settings.
fn objective(stage: Stage, settings: &Value) -> Objective {
    let mut recipe = settings.clone();
    recipe["model_name_or_path"] = json!("m");
    recipe["dataset_name"] = json!("d");
    // JSON is YAML.
    let recipe = Recipe::parse(&recipe.to_string(), Path::new("recipe.yaml"), stage, &[]);
    recipe.unwrap_or_else(|errors| panic!("{errors}")).objective
}

fn pair_objective(case: &Value) -> PairObjective {
    let mut settings = case["settings"].clone();
    let stage = match (case["objective"].as_str().unwrap(), settings["loss_type"].as_str()) {
        ("pair", _) => Stage::Dpo,
        ("tpo", _) => {
            settings["tpo_alpha"] = json!(0.0);
            Stage::Tpo
        }
        (_, Some("orpo")) => {
            settings.as_object_mut().unwrap().remove("loss_type");
            Stage::Orpo
        }
        _ => {
            settings["cpo_alpha"] = json!(0.0);
            Stage::Cpo
        }
    };
    match objective(stage, &settings) {
        Objective::Dpo(dpo) => PairObjective::Dpo(dpo),
        Objective::Orpo(orpo) => PairObjective::Orpo(orpo),
        Objective::Cpo(cpo) => PairObjective::Cpo(cpo),
        Objective::Tpo(tpo) => PairObjective::Tpo(tpo),
        _ => unreachable!("these stages have pairs"),
    }
}

fn pairs_of(set: &Value, objective: &PairObjective) -> PairLogps {
    let pairs = lengths(&set["chosen_lengths"]).len();
    let reference = |key: &str| match objective {
        PairObjective::Dpo(dpo) if !dpo.reference_free => numbers(&set[key]),
        _ => vec![0.0; pairs],
    };
    PairLogps {
        chosen: numbers(&set["chosen"]),
        rejected: numbers(&set["rejected"]),
        reference_chosen: reference("ref_chosen"),
        reference_rejected: reference("ref_rejected"),
        chosen_tokens: lengths(&set["chosen_lengths"]),
        rejected_tokens: lengths(&set["rejected_lengths"]),
        text: numbers(&set["chosen"]),
        text_tokens: lengths(&set["chosen_lengths"]),
        weights: None,
    }
}

#[test]
fn dpo_and_gradients_equal_the_formulas() {
    let golden = formulas();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        if case["objective"] == "kto" {
            continue;
        }
        let objective = pair_objective(case);
        let pairs = pairs_of(&golden["pairs"][case["set"].as_str().unwrap()], &objective);
        let ours = preference_loss(&pairs, &objective);
        let what = format!("{} on {}", case["settings"], case["set"]);
        // The golden file holds the odds-ratio term of ORPO only.
        let is_orpo = matches!(objective, PairObjective::Orpo(_));
        let nll: f64 =
            ours.metrics.iter().filter(|(name, _)| *name == "nll_loss").map(|m| m.1).sum();
        let loss = if is_orpo { ours.loss - nll } else { ours.loss };
        let mean = case["mean"].as_f64().unwrap();
        assert!(close(loss, mean), "{what}: loss {loss}, not {mean}");
        let of_text = |pair: usize| if is_orpo { 0.0 } else { ours.d_text[pair] };
        let (d_chosen, d_rejected) = (numbers(&case["d_chosen"]), numbers(&case["d_rejected"]));
        for pair in 0..pairs.chosen.len() {
            let chosen = ours.d_chosen[pair] + of_text(pair);
            assert!(close(chosen, d_chosen[pair]), "{what}: {chosen}, not {}", d_chosen[pair]);
            let rejected = ours.d_rejected[pair];
            assert!(
                close(rejected, d_rejected[pair]),
                "{what}: {rejected}, not {}",
                d_rejected[pair]
            );
        }
        compared += 1;
    }
    assert!(compared > 150, "{compared} cases");
}

#[test]
fn kto_losses_and_gradients_equal_the_formulas() {
    let golden = formulas();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        if case["objective"] != "kto" {
            continue;
        }
        let Objective::Kto(settings) = objective(Stage::Kto, &case["settings"]) else {
            unreachable!("this is a KTO recipe")
        };
        let set = &golden["rows"][case["set"].as_str().unwrap()];
        let rows = UnpairedLogps {
            policy: numbers(&set["logps"]),
            reference: numbers(&set["ref_logps"]),
            mismatched: numbers(&set["kl_logps"]),
            reference_mismatched: numbers(&set["ref_kl_logps"]),
            labels: numbers(&set["labels"]).into_iter().map(|label| label == 1.0).collect(),
        };
        let ours = unpaired_loss(&rows, &settings, 0.0);
        let what = format!("{} on {}", case["settings"], case["set"]);
        let mean = case["mean"].as_f64().unwrap();
        assert!(close(ours.loss, mean), "{what}: loss {}, not {mean}", ours.loss);
        for (ours, theirs) in ours.d_policy.iter().zip(numbers(&case["d_logps"])) {
            assert!(close(*ours, theirs), "{what}: {ours}, not {theirs}");
        }
        compared += 1;
    }
    assert!(compared >= 10, "{compared} cases");
}

/// Runs a stage on the demo's pairs from its base model, and returns the record.
fn run_stage(stage: &str, name: &str, more: &[&str]) -> Value {
    let world = world(&format!("objectives-{name}"));
    let out = world.join("out");
    let recipe = world.join("dpo.yaml").display().to_string();
    let mut arguments = vec![stage.to_string(), recipe, format!("--output_dir={}", out.display())];
    arguments.extend([
        format!("--model_name_or_path={}", world.join("base").display()),
        "--max_steps=6".into(),
        "--per_device_train_batch_size=8".into(),
        "--max_train_samples=64".into(),
        "--max_eval_samples=16".into(),
        "--logging_steps=2".into(),
        "--learning_rate=1e-3".into(),
    ]);
    arguments.extend(more.iter().map(|more| (*more).to_string()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, _, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{name}: {err}");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains(&format!("- {stage}\n")), "{card}");
    record_without_times(&out)
}

/// The last row of the history that has this key.
fn last(record: &Value, key: &str) -> f64 {
    let rows = record["log_history"].as_array().unwrap().iter().rev();
    rows.filter_map(|row| row[key].as_f64()).next().unwrap_or_else(|| panic!("no {key}: {record}"))
}

#[test]
fn orpo_cpo_and_simpo_need_no_reference() {
    let orpo = run_stage("orpo", "orpo", &[]);
    assert!((last(&orpo, "loss") - last(&orpo, "nll_loss")).abs() < 0.5);
    assert!(last(&orpo, "log_odds_ratio") < 0.0);
    last(&orpo, "eval_log_odds_chosen");
    let cpo = run_stage("cpo", "cpo", &[]);
    assert!(last(&cpo, "nll_loss") > 0.0);
    let simpo = ["--loss_type=simpo", "--cpo_alpha=0", "--beta=2"];
    let simpo = run_stage("cpo", "simpo", &simpo);
    assert_eq!(last(&simpo, "nll_loss"), 0.0);
    // Rewards are β times a mean log-prob, of a model with random weights.
    assert!((-2.0 * 8.0..0.0).contains(&last(&simpo, "rewards/chosen")));
}

/// The gold responses are the chosen ones of the pairs.
#[test]
fn tpo_adds_the_nll_of_gold_responses() {
    let rows = scratch("objectives-tpo-rows").join("train.jsonl");
    let pair = |i: u64| {
        let word = |i: u64| ["cat", "ball", "red", "sees"][(splitmix64(i) % 4) as usize];
        let chat = |answer: String| json!([{"role": "user", "content": word(i)}, {"role": "assistant", "content": answer}]);
        let (chosen, rejected) = (format!("{} {}", word(i + 90), word(i + 80)), "the".to_owned());
        let [chosen, rejected] = [chosen, rejected].map(chat);
        json!({"reference": chosen, "chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    std::fs::write(&rows, (0..64).map(pair).collect::<String>()).unwrap();
    let data = [
        "--dataset_mixer=null".to_owned(),
        format!("--dataset_name={}", rows.display()),
        "--eval_strategy=no".to_owned(),
        "--do_eval=false".to_owned(),
        "--beta=0.2".to_owned(),
    ];
    let run = |name: &str, more: &[&str]| {
        let data = data.iter().map(String::as_str);
        run_stage("tpo", name, &data.chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let first = |record: &Value, key: &str| record["log_history"][0][key].as_f64().unwrap();
    let with = run("tpo", &["--logging_steps=1"]);
    let half = run("tpo-half", &["--logging_steps=1", "--tpo_alpha=0.5"]);
    let without = run("tpo-without", &["--logging_steps=1", "--tpo_alpha=0"]);
    let nll = first(&with, "loss") - first(&without, "loss");
    assert!(nll > 0.1, "{nll}");
    let of_half = first(&half, "loss") - first(&without, "loss");
    assert!((nll - 2.0 * of_half).abs() < 1e-6 * nll, "{nll} {of_half}");
    assert!(first(&with, "num_tokens") > 1.2 * first(&without, "num_tokens"));
    assert!(
        last(&with, "logps/chosen") > first(&with, "logps/chosen"),
        "it learns the chosen ones"
    );
    for record in [&with, &without] {
        let (reward, logp) = (first(record, "rewards/chosen"), first(record, "logps/chosen"));
        assert!((reward - 0.2 * logp).abs() < 1e-9 * logp.abs(), "{reward} {logp}");
    }
}

#[test]
fn kto_splits_pairs_into_labelled_responses() {
    let kto = run_stage("kto", "kto", &["--train_sampling_strategy=random"]);
    assert!(last(&kto, "kl") >= 0.0);
    let margin = last(&kto, "eval_rewards/chosen") - last(&kto, "eval_rewards/rejected");
    assert!(margin.is_finite());
    let apo = run_stage("kto", "kto-apo", &["--loss_type=apo_zero_unpaired"]);
    assert_eq!(last(&apo, "kl"), 0.0);
    // All chosen responses come before all rejected ones: the first 8 of 16 micro-batches have
    // chosen responses only.
    let rows = apo["log_history"].as_array().unwrap();
    assert!(rows[0]["rewards/chosen"].is_number() && rows[0]["rewards/rejected"].is_null());
}

/// The metrics must not depend on the batches, whose rows may have unequal numbers of both labels.
#[test]
fn an_evaluation_of_labelled_rows_counts_each_row_once() {
    let model = random_model(small_config(json!({})), 0.5);
    let labels = [true, true, true, false, true, false, false];
    let lengths = |i: usize| [5 + i, 3 + 2 * i, 0];
    let row = |i: usize| {
        let made = pair(i as u64, lengths(i), 61);
        let (prompt, completion, mismatched) = (made.prompt, made.chosen, made.rejected);
        UnpairedRow { prompt, completion, mismatched, label: labels[i] }
    };
    let test = (0..labels.len()).map(row).collect();
    let rows = Splits {
        train: Vec::new().into(),
        test,
        train_report: RowReport::default(),
        test_report: RowReport::default(),
        fingerprint: [0; 32],
        train_fingerprint: [0; 32],
    };
    let settings = objective(Stage::Kto, &json!({"loss_type": "apo_zero_unpaired"}));
    let Objective::Kto(settings) = settings else { unreachable!("this is a KTO recipe") };
    let task = UnpairedTask::new(&rows, ReferenceSource::None, settings);
    let order: Vec<usize> = (0..task.rows(Split::Test)).collect();
    let of = |batch_size: usize| {
        let held_out = HeldOut { order: &order, batch_size, most_tokens: None, balance: None };
        let values = evaluate(&model, &task, held_out, &Ranks::one(), |_| ());
        move |key: &str| {
            let value = values.iter().find(|(name, _)| name == key);
            value.unwrap_or_else(|| panic!("no {key} in {values:?}")).1
        }
    };
    let whole = of(7);
    for batch_size in [4, 3, 1] {
        let batches = of(batch_size);
        for key in ["loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"]
        {
            let key = format!("eval_{key}");
            let (a, b) = (whole(&key), batches(&key));
            assert!((a - b).abs() < 1e-6 * a.abs().max(1.0), "{key} {batch_size}: {a} {b}");
        }
        let difference = batches("eval_rewards/chosen") - batches("eval_rewards/rejected");
        assert_eq!(batches("eval_rewards/margins"), difference);
    }
}

#[test]
fn an_evaluation_in_parts_gives_the_same_metrics() {
    let first = |name: &str, more: &[&str]| {
        let more = [&["--eval_on_start=true"][..], more].concat();
        run_stage("dpo", name, &more)["log_history"][0].clone()
    };
    let whole = first("eval-whole", &[]);
    let parts = first("eval-parts", &["--max_tokens_per_microbatch=160"]);
    assert_eq!((&whole["step"], &parts["step"]), (&json!(0), &json!(0)));
    let (whole, parts) = (whole.as_object().unwrap(), parts.as_object().unwrap());
    assert_eq!(whole.len(), parts.len());
    for (key, value) in whole {
        let (a, b) = (value.as_f64().unwrap(), parts[key].as_f64().unwrap());
        assert!((a - b).abs() < 1e-6 * a.abs().max(1.0), "{key}: {a} {b}");
    }
}

#[test]
fn several_losses_use_weighting_and_sync_ref_model_train() {
    let both = ["--loss_type=[sigmoid, sft]", "--loss_weights=[1.0, 0.2]", "--use_weighting=true"];
    let both = run_stage("dpo", "list", &both);
    assert!(last(&both, "nll_loss") > 0.0);
    let follow = ["--sync_ref_model=true", "--ref_model_sync_steps=2", "--ref_model_mixup_alpha=1"];
    let followed = run_stage("dpo", "follow", &follow);
    // After step 6, the last one, the reference is a copy of the policy.
    assert_eq!(last(&followed, "eval_rewards/margins"), 0.0);
    let free = run_stage("dpo", "free", &["--reference_free=true"]);
    assert!((last(&free, "rewards/chosen") - 0.1 * last(&free, "logps/chosen")).abs() < 1e-6);
}
