//! `max_tokens_per_microbatch`: micro-batches that are computed in parts give the same update.

mod common;

use std::path::Path;

use common::*;
use serde_json::Value;

fn train(world: &Path, stage: &str, out: &str, more: &[&str]) -> Vec<Value> {
    let out = world.join(out);
    let recipe = world.join(format!("{stage}.yaml")).display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let output = format!("--output_dir={}", out.display());
    let settings = [
        stage,
        &recipe,
        &base,
        &output,
        "--max_steps=4",
        "--per_device_train_batch_size=8",
        "--gradient_accumulation_steps=2",
        "--logging_steps=1",
        "--packing=false",
        "--quiet",
    ];
    let settings = settings.iter().filter(|s| stage == "sft" || !s.starts_with("--packing"));
    let arguments: Vec<&str> = settings.chain(more).copied().collect();
    let (code, _, errors) = run_program(&arguments);
    assert_eq!(code, Some(0), "{errors}");
    let history = record_without_times(&out)["log_history"].as_array().unwrap().clone();
    history.into_iter().filter(|row| row.get("loss").is_some()).collect()
}

#[test]
fn a_micro_batch_computed_in_parts_gives_the_same_update() {
    let world = world("budget");
    for (stage, budget) in [("sft", 160), ("dpo", 160)] {
        let whole = train(&world, stage, &format!("{stage}-whole"), &[]);
        let budget = format!("--max_tokens_per_microbatch={budget}");
        let parts = train(&world, stage, &format!("{stage}-parts"), &[&budget]);
        assert_eq!(whole.len(), 4);
        for (a, b) in whole.iter().zip(&parts) {
            for key in ["loss", "grad_norm", "num_tokens", "rewards/margins", "rewards/chosen"] {
                let [a, b] = [a, b].map(|row| row.get(key).and_then(Value::as_f64));
                let (Some(a), Some(b)) = (a, b) else {
                    assert!(a.is_none() && b.is_none() && stage == "sft", "{key}");
                    continue;
                };
                assert!((a - b).abs() <= 2e-5 * a.abs().max(0.1), "{stage}: {key} {a} {b}");
            }
        }
    }
}

#[test]
fn a_row_beyond_the_budget_and_losses_that_combine_rows_are_refused() {
    let world = world("budget-refused");
    let recipe = world.join("dpo.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let plan = |more: &[&str]| run_program(&[&["plan", &recipe, &base][..], more].concat());
    let (code, _, errors) = plan(&["--max_tokens_per_microbatch=3"]);
    assert_eq!(code, Some(1));
    let says = "more than max_tokens_per_microbatch: 3; raise it, or lower max_length";
    assert!(errors.contains("training row 0") && errors.contains(says), "{errors}");
    let (code, _, errors) = plan(&["--max_tokens_per_microbatch=900", "--loss_type=aot"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("`loss_type: aot` sorts its pairs"), "{errors}");
}
