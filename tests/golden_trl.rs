//! The same numbers as TRL. Each golden file holds a recipe, TRL's log and a digest of its final
//! weights (made by `scripts/golden/trl_runs.py`). The program runs the recipe and must reproduce
//! them.

mod common;

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use common::*;
use favonius::model::adapter::lora::initial_a;
use favonius::model::weights::{SHARD_BYTES, WeightFiles};
use serde_json::{Value, json};

/// The relative tolerance of every logged number.
const RELATIVE: f64 = 1e-4;

/// The smallest magnitude that a relative difference is computed with. Log-ratios are differences
/// of log-probs of some hundred nats, which float32 resolves to about 1e-5 only.
fn scale(name: &str) -> f64 {
    let name = name.trim_start_matches("eval_");
    match name {
        _ if name.starts_with("rewards/") => 0.2,
        _ if name.starts_with("logits/") => 0.2,
        "learning_rate" => 1e-12,
        _ => 0.1,
    }
}

fn golden(name: &str) -> Value {
    golden_file(&format!("trl_{name}.json")).expect("a golden file")
}

fn golden_file(name: &str) -> Option<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read(folder.join(name)).ok()?;
    Some(serde_json::from_slice(&text).expect("valid JSON"))
}

/// TRL's log of the same run in float64. It exists for the runs in which TRL's own rounding errors
/// in float32 are about as large as the tolerance (`scripts/golden/README.md`).
fn log_in_float64(name: &str, golden: &Value) -> Value {
    let exact = golden_file(&format!("float64_{name}.json"));
    exact.map_or_else(|| golden["log"].clone(), |exact| exact["log"].clone())
}

/// The distance of a number from the interval between TRL's values in float32 and in float64.
fn distance(ours: f64, theirs: f64, exact: f64) -> f64 {
    let (least, most) = (theirs.min(exact), theirs.max(exact));
    (ours - ours.clamp(least, most)).abs()
}

/// The folder of the model that a golden run started from.
fn start_model(golden: &Value, work: &Path) -> Option<PathBuf> {
    if golden["model"] == "stories260k" {
        let base = asset("models/stories260k")?;
        return Some(if golden["adapter"] == true { start_adapter(&base, work) } else { base });
    }
    let tokenizer = asset("tokenizers/mistral-7b-v0.1")?;
    let folder = work.join("mistral");
    std::fs::create_dir_all(&folder).unwrap();
    let mut shape = json!({"vocab_size": 32000, "hidden_size": 256,
        "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096,
        "tie_word_embeddings": false, "architectures": ["MistralForCausalLM"]});
    for (key, value) in golden["model_config"].as_object().into_iter().flatten() {
        shape[key] = value.clone();
    }
    let config = small_config(shape);
    random_model(config.clone(), 0.125).save_weights(&folder, DType::F32, SHARD_BYTES).unwrap();
    std::fs::write(folder.join("config.json"), config.raw.to_string()).unwrap();
    for entry in std::fs::read_dir(tokenizer).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    Some(folder)
}

/// The adapter of `tests/golden/adapter` on the model in `base`.
fn start_adapter(base: &Path, work: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter");
    let folder = work.join("adapter");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(golden.join(ADAPTER), folder.join(ADAPTER)).unwrap();
    let text = std::fs::read(golden.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["base_model_name_or_path"] = json!(base);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

const ADAPTER: &str = "adapter_model.safetensors";

/// The weights in a folder: of a full model, or of an adapter.
fn open_weights(folder: &Path) -> WeightFiles {
    match folder.join(ADAPTER).is_file() {
        true => WeightFiles::open_one(folder, ADAPTER, str::to_owned).unwrap(),
        false => WeightFiles::open(folder).unwrap(),
    }
}

/// The values of a tensor before training. A new adapter begins with values that the program and
/// `scripts/golden/adapters.py` compute by the same formula; a module that is trained whole begins
/// with those of the base.
fn values_before(start: &WeightFiles, tensor: &str, shape: &[usize]) -> Vec<f32> {
    if start.shape(tensor).is_some() {
        return start.read(tensor, shape).unwrap();
    }
    let plain = tensor.strip_prefix("base_model.model.").expect("a tensor of an adapter");
    match plain {
        _ if plain.ends_with(".lora_A.weight") => initial_a(42, plain, [shape[0], shape[1]]),
        _ if plain.ends_with(".lora_B.weight") => vec![0.0; shape[0] * shape[1]],
        // A tied head begins with the embedding.
        "lm_head.weight" if start.shape(plain).is_none() => {
            start.read("model.embed_tokens.weight", shape).unwrap()
        }
        _ => start.read(plain, shape).unwrap(),
    }
}

/// Runs the golden recipe; `None` if the assets are missing.
fn run_golden(name: &str, golden: &Value, extra: &[String]) -> Option<(PathBuf, PathBuf)> {
    let work = scratch(&format!("golden-{name}-{}", extra.len()));
    let kind = golden["kind"].as_str().unwrap();
    let (data, train, test) = match kind {
        "sft" => (asset("data/ultrachat_200k_like")?, "train_sft", "test_sft"),
        "tpo" => (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tpo"), "train", "test"),
        _ => (asset("data/ultrafeedback_binarized_like")?, "train_prefs", "test_prefs"),
    };
    let model = start_model(golden, &work)?;
    let mut recipe = golden["recipe"].clone();
    for (key, value) in [
        ("model_name_or_path", json!(model)),
        ("dataset_name", json!(data)),
        ("dataset_train_split", json!(train)),
        ("dataset_test_split", json!(test)),
        ("output_dir", json!(work.join("out"))),
        ("save_strategy", json!("no")),
        ("report_to", json!("none")),
    ] {
        recipe[key] = value;
    }
    if recipe.get("logging_steps").is_none() {
        recipe["logging_steps"] = json!(1);
    }
    let file = work.join("recipe.yaml");
    std::fs::write(&file, recipe.to_string()).unwrap(); // JSON is YAML
    let output = favonius().arg(kind).arg(&file).args(extra).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stdout));
    Some((model, work.join("out")))
}

/// Compares every number that TRL logged with ours, and prints the largest difference.
fn compare_logs(name: &str, golden: &Value, ours: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut furthest = (0.0, String::new());
    let exact = log_in_float64(name, golden);
    let kind = golden["kind"].as_str().unwrap();
    let rows = |log: &Value, key: &str| -> Vec<Value> {
        let rows = log.as_array().unwrap().iter().filter(|row| row.get(key).is_some());
        rows.cloned().collect()
    };
    for key in ["loss", "eval_loss", "train_loss"] {
        let (theirs, ours) = (rows(&golden["log"], key), rows(&ours["log_history"], key));
        let expected = theirs.len();
        assert!(
            ours.len() >= expected,
            "{name}: {} rows with {key}, TRL has {expected}",
            ours.len()
        );
        for ((theirs, ours), exact) in theirs.iter().zip(&ours).zip(rows(&exact, key)) {
            let step = &theirs["step"];
            for (metric, value) in theirs.as_object().unwrap() {
                if metric.ends_with("rewards/accuracies") && is_a_tie_elsewhere(theirs) {
                    continue;
                }
                // TRL's ORPO and CPO trainers include padding in this mean.
                if metric.contains("logits/") && matches!(kind, "orpo" | "cpo") {
                    continue;
                }
                let (Some(theirs), Some(ours)) = (value.as_f64(), ours[metric].as_f64()) else {
                    wrong.push(format!("{name} step {step}: {metric} is not in our row"));
                    continue;
                };
                let exact = exact[metric].as_f64().expect("the same metrics");
                let difference = distance(ours, theirs, exact) / theirs.abs().max(scale(metric));
                if difference > furthest.0 {
                    furthest = (difference, format!("step {step}: {metric}"));
                }
                if difference.is_nan() || difference > RELATIVE {
                    wrong.push(format!("{name} step {step}: {metric} TRL {theirs} ours {ours}"));
                }
            }
        }
    }
    println!("{name}: at most {:.1e} ({})", furthest.0, furthest.1);
    wrong
}

/// If the policy equals the reference, all pairs are ties, which count as wrong. On the CPU
/// log-probs do not depend on the other pairs of a batch, so ours are exact ties too. On another
/// device, rounding decides.
fn is_a_tie_elsewhere(row: &Value) -> bool {
    let elsewhere = !extra_arguments().is_empty();
    elsewhere && [&row["rewards/margins"], &row["eval_rewards/margins"]].iter().any(|m| **m == 0.0)
}

/// Compares the norm and samples of every weight, and their change by training, with TRL's.
fn compare_weights(name: &str, golden: &Value, start: &Path, end: &Path) -> Vec<String> {
    let (start, end) = (open_weights(start), open_weights(end));
    let mut wrong = Vec::new();
    for (tensor, digest) in golden["weights"].as_object().unwrap() {
        let shape = shape_of(&end, tensor);
        let (before, after) =
            (values_before(&start, tensor, &shape), end.read(tensor, &shape).unwrap());
        let moved: Vec<f64> =
            after.iter().zip(&before).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let number = |key: &str| digest[key].as_f64().unwrap();
        let numbers = |key: &str| -> Vec<f64> {
            digest[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let norm_after = norm(&mut after.iter().map(|x| f64::from(*x)));
        let norm_moved = norm(&mut moved.iter().copied());
        let mut check = |what: &str, theirs: f64, ours: f64, scale: f64| {
            if (theirs - ours).abs() > RELATIVE * scale {
                wrong.push(format!("{name} {tensor}: {what} TRL {theirs} ours {ours}"));
            }
        };
        check("norm", number("norm"), norm_after, number("norm"));
        // Adam divides by the root of the squared gradient. If a gradient is near zero, rounding
        // decides how far a single weight moves. The norm of the change is much more accurate.
        check("movement", number("moved"), norm_moved, 10.0 * number("moved"));
        let largest = after.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        for (index, theirs) in numbers("values").into_iter().enumerate() {
            let place = (2 * index + 1) * after.len() / 16;
            check("value", theirs, f64::from(after[place]), largest);
        }
    }
    wrong
}

fn shape_of(files: &WeightFiles, tensor: &str) -> Vec<usize> {
    files.shape(tensor).expect("the tensor is in the model")
}

fn agrees(name: &str) {
    let golden = golden(name);
    let Some((start, out)) = run_golden(name, &golden, &extra_arguments()) else { return };
    let mut wrong = compare_logs(name, &golden, &record_without_times(&out));
    wrong.extend(compare_weights(name, &golden, &start, &out));
    assert!(wrong.is_empty(), "{} numbers differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// `FAVONIUS_TEST_DEVICE=tch` runs the same comparison on another device.
fn extra_arguments() -> Vec<String> {
    std::env::var("FAVONIUS_TEST_DEVICE")
        .iter()
        .map(|device| format!("--device={device}"))
        .collect()
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
