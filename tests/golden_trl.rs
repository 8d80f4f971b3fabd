//! The same numbers as TRL. Each golden file holds a recipe, TRL's log and a digest of its final
//! weights (made by `scripts/golden/trl_runs.py`). The program runs the recipe and must reproduce
//! them.

mod common;
#[path = "common/golden.rs"]
mod golden;

use std::path::PathBuf;

use common::*;
use golden::*;
use serde_json::Value;

/// Runs the golden recipe; `None` if the assets are missing.
fn run_golden(name: &str, golden: &Value, extra: &[String]) -> Option<(PathBuf, PathBuf)> {
    let work = scratch(&format!("golden-{name}-{}", extra.len()));
    let (model, recipe) = write_recipe(golden, &work)?;
    let kind = golden["kind"].as_str().unwrap();
    let output = favonius().arg(kind).arg(&recipe).args(extra).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stdout));
    Some((model, work.join("out")))
}

/// `FAVONIUS_TEST_DEVICE=tch` runs the same comparison on another device.
fn agrees(name: &str) {
    let golden = golden(name);
    let device = std::env::var("FAVONIUS_TEST_DEVICE").ok();
    let extra: Vec<String> = device.iter().map(|device| format!("--device={device}")).collect();
    let Some((start, out)) = run_golden(name, &golden, &extra) else { return };
    let record = record_without_times(&out);
    let rows = record["log_history"].as_array().expect("a history");
    let comparison = Comparison { name, golden: &golden, device: device.as_deref() };
    let mut wrong = comparison.of_logs(rows);
    wrong.extend(compare_weights(name, &golden, &start, &out));
    assert!(wrong.is_empty(), "{} numbers differ:\n{}", wrong.len(), wrong.join("\n"));
}

macro_rules! golden_runs {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            agrees(stringify!($name));
        })*
    };
}

golden_runs!(
    dpo_stories,
    dpo_mistral,
    dpo_label_smoothing,
    dpo_hinge,
    dpo_ipo,
    dpo_rmsprop,
    dpo_no_clipping,
    dpo_epochs,
    dpo_logged_by_3,
    dpo_exo_pair,
    dpo_nca_pair,
    dpo_robust,
    dpo_bco_pair,
    dpo_sppo_hard,
    dpo_aot,
    dpo_aot_unpaired,
    dpo_apo_zero,
    dpo_apo_down,
    dpo_discopop,
    dpo_sft,
    dpo_sigmoid_norm,
    dpo_forward_kl,
    dpo_js_divergence,
    dpo_js_ipo,
    dpo_alpha_divergence,
    dpo_ld_alpha,
    dpo_rpo,
    dpo_mpo,
    dpo_use_weighting,
    dpo_reference_free,
    dpo_sync_ref_model,
    orpo,
    cpo,
    cpo_hinge,
    cpo_ipo,
    simpo,
    tpo,
    tpo_hinge,
    tpo_ipo,
    tpo_l,
    kto,
    kto_weights,
    kto_apo_zero_unpaired,
    kto_bco,
    sft_stories,
    sft_mistral,
    sft_window,
    sft_bfd,
    sft_wrapped,
    sft_assistant_only,
    sft_min_lr,
    sft_adamw,
    sft_rmsprop,
    sft_epochs,
    sft_dft,
    sft_plateau,
    dpo_drop_last,
    sft_label_smoothing,
    sft_label_smoothing_mistral,
    sft_shuffled_bfd,
    sft_grouped,
    sft_neftune,
    sft_nesterov,
    sft_lion,
    sft_adafactor,
    sft_lora,
    dpo_lora,
    sft_lora_mistral,
    sft_lora_all_linear,
    dpo_lora_rslora,
    sft_lora_saved,
    dpo_lora_continued,
    dpo_qlora,
    dpo_qlora_nested,
    sft_qwen3,
    dpo_qwen3,
    sft_smollm3,
    dpo_smollm3,
    sft_olmo2,
    dpo_olmo2,
    sft_phi3,
    dpo_phi3,
    sft_phi3_long,
    dpo_phi3_long,
    sft_starcoder2,
    dpo_starcoder2,
    sft_mixtral,
    dpo_mixtral,
    sft_mixtral_window,
    sft_mixtral_smoothed,
    dpo_mixtral_plain,
    dpo_mixtral_lora,
    kto_mixtral,
    orpo_mixtral,
    sft_granite,
    dpo_granite,
    sft_gemma,
    dpo_gemma,
    sft_gemma2,
    dpo_gemma2,
    sft_gemma3_text,
    dpo_gemma3_text,
);
