use std::path::Path;

use serde_json::json;

use super::*;
use crate::data::{PreferencePair, RowReport, Splits};
use crate::plan::Rows;
use crate::plan::estimate::BatchSize;
use crate::recipe::Stage;

/// A small model, so that a batch needs much memory compared with the weights.
fn config() -> ModelConfig {
    let raw = json!({"model_type": "mistral", "vocab_size": 1000, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0});
    ModelConfig::from_json(raw, Path::new("config.json")).unwrap()
}

fn recipe(stage: Stage, more: &[&str]) -> Recipe {
    let text = "model_name_or_path: m\ndataset_name: d\nmax_length: 512\n";
    let more: Vec<String> = more.iter().map(|setting| format!("--{setting}")).collect();
    Recipe::parse(text, Path::new("r.yaml"), stage, &more).unwrap()
}

/// A run over 100 rows on one rank.
fn forecast<'a>(
    recipe: &'a Recipe,
    config: &'a ModelConfig,
    hardware: &'a Hardware,
) -> Forecast<'a> {
    Forecast {
        recipe,
        config,
        adapter: None,
        dtype_bytes: 4,
        rows: [100, 100],
        size: RowSize::upper_bound(recipe, config, None),
        schedule: StepSchedule::new(&recipe.train, 100, 1),
        hardware,
    }
}

fn peak(recipe: &Recipe) -> f64 {
    let (config, hardware) = (config(), Hardware::default());
    let run = forecast(recipe, &config, &hardware);
    run.peak(&run.workload())
}

fn verdict(recipe: &Recipe, device_memory: f64) -> String {
    let hardware = Hardware { device_memory: Some(device_memory), ..Hardware::default() };
    forecast(recipe, &config(), &hardware).verdict().unwrap()
}

#[test]
fn each_device_has_its_form() {
    let (config, hardware) = (config(), Hardware::default());
    for (device, dtype_bytes, form, keeps_scores) in [
        ("cpu", 4, Form::Flex, false),
        ("cpu", 2, Form::Composed, true),
        ("tch", 4, Form::Composed, true),
        ("tch:cuda", 2, Form::Composed, false),
        ("cuda", 4, Form::Cube, false),
        ("cuda:1", 2, Form::Cube, false),
    ] {
        let recipe = recipe(Stage::Dpo, &[&format!("device={device}")]);
        let run = Forecast { dtype_bytes, ..forecast(&recipe, &config, &hardware) };
        let workload = run.workload();
        assert_eq!(
            (workload.form, workload.keeps_scores),
            (form, keeps_scores),
            "{device}, {dtype_bytes} bytes"
        );
    }
}

#[test]
fn a_smaller_batch_is_not_proposed_if_it_changes_the_loss() {
    let verdict_of = |stage, loss: &str| {
        let loss = format!("loss_type={loss}");
        let recipe = recipe(stage, &["per_device_train_batch_size=8", &loss]);
        verdict(&recipe, 0.9 * peak(&recipe))
    };
    for (stage, loss) in
        [(Stage::Dpo, "sigmoid"), (Stage::Dpo, "bco_pair"), (Stage::Kto, "apo_zero_unpaired")]
    {
        let smaller =
            "with per_device_train_batch_size: 4 and gradient_accumulation_steps: 2 it would";
        let text = verdict_of(stage, loss);
        assert!(text.contains(smaller), "{loss}: {text}");
    }
    for (stage, loss) in [
        (Stage::Dpo, "aot"),
        (Stage::Dpo, "aot_unpaired"),
        (Stage::Dpo, "kto_pair"),
        (Stage::Kto, "kto"),
    ] {
        let text = verdict_of(stage, loss);
        assert!(text.contains("a smaller batch would change the loss ("), "{loss}: {text}");
        assert!(!text.contains("batch_size"), "{loss}: {text}");
    }
}

#[test]
fn every_rank_of_a_proposal_has_a_row() {
    let recipe = recipe(Stage::Dpo, &["per_device_train_batch_size=8"]);
    let (config, hardware) = (config(), Hardware::default());
    let run = forecast(&recipe, &config, &hardware);
    // 100 rows are 13 micro-batches of 8 rows.
    let mut trial = run.trial();
    let text = run.more_ranks(&mut trial, 0.0).unwrap();
    assert_eq!((text.as_str(), trial.run.ranks), ("--ranks 8 (8 × as many rows a step)", 8));
    // Smaller micro-batches are more numerous, so more ranks can share them.
    let mut trial = run.trial();
    run.smaller_batch(&mut trial, 0.0).unwrap();
    assert_eq!((trial.rows, trial.run.accumulation), (1, 8));
    run.more_ranks(&mut trial, 0.0).unwrap();
    assert_eq!(trial.run.ranks, 64);
}

#[test]
fn an_evaluation_must_fit_too() {
    let mut settings = vec!["per_device_train_batch_size=1"];
    let without = peak(&recipe(Stage::Dpo, &settings));
    settings.extend(["eval_strategy=epoch", "per_device_eval_batch_size=64"]);
    let with = recipe(Stage::Dpo, &settings);
    assert!(peak(&with) > 2.0 * without, "{:e} {without:e}", peak(&with));
    let text = verdict(&with, 1.5 * without);
    assert!(text.contains("with per_device_eval_batch_size: "), "{text}");
    // An evaluation in parts of one row needs no more than training on one row.
    settings.push("max_tokens_per_microbatch=1024");
    assert_eq!(peak(&recipe(Stage::Dpo, &settings)), without);
}

#[test]
fn counted_rows_are_batched_as_the_run_batches_them() {
    let pair = |prompt: usize| PreferencePair {
        prompt: vec![1; prompt],
        chosen: vec![2; 3],
        rejected: vec![3; 2],
        gold: vec![],
    };
    let pairs = |rows: &[usize]| rows.iter().map(|prompt| pair(*prompt)).collect();
    let rows = Rows::Pairs(Splits {
        train: pairs(&[10, 10, 10, 10]),
        test: pairs(&[5, 2_000, 2_000, 5, 5]),
        train_report: RowReport::default(),
        test_report: RowReport::default(),
        fingerprint: [0; 32],
        train_fingerprint: [0; 32],
    });
    let size = |more: &[&str]| {
        let settings = [&["per_device_train_batch_size=2"][..], more].concat();
        let recipe = recipe(Stage::Dpo, &settings);
        let schedule = StepSchedule::new(&recipe.train, 4, 1);
        let size = RowSize::counted(&recipe, &config(), &rows, &schedule);
        let tokens = |size: Option<BatchSize>| size.map(|size| size.tokens);
        (size.largest.tokens, tokens(size.evaluated), tokens(size.referenced))
    };
    // All test rows fit into one batch of the reference pass, which has 4096 tokens.
    assert_eq!(size(&[]), (30, None, Some(4_040)));
    let evaluation = ["eval_strategy=epoch", "per_device_eval_batch_size=2"];
    assert_eq!(size(&evaluation), (30, Some(2_015), Some(4_040)));
    let reference_free = [&evaluation[..], &["reference_free=true"]].concat();
    assert_eq!(size(&reference_free), (30, Some(2_015), None));
    let divided = [&evaluation[..], &["max_tokens_per_microbatch=20"]].concat();
    assert_eq!(size(&divided), (15, Some(2_005), Some(4_040)));
}

#[test]
fn numbers_are_readable() {
    assert_eq!(in_bytes(2.5e9), "2.50 GB");
    assert_eq!(in_flop(4.84e15), "4.84 PFLOP");
    assert_eq!((in_hours(60.0), in_hours(3600.0)), ("60 s".into(), "60 min".into()));
    assert_eq!(in_hours(14040.0), "3.9 h");
}
