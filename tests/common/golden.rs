//! Golden files of TRL's runs: the recipe of each, the model that it started from, and the
//! comparison of logs.
#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use favonius::model::adapter::lora::initial_a;
use favonius::model::weights::{SHARD_BYTES, WeightFiles};
use serde_json::{Value, json};

use crate::common::{asset, random_model, small_config};

/// The relative tolerance of every logged number.
pub const RELATIVE: f64 = 1e-4;

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

pub fn golden(name: &str) -> Value {
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

pub const ADAPTER: &str = "adapter_model.safetensors";

/// Writes the recipe of a golden run into the folder `work`. Returns the folder of the model that
/// it starts from, and the recipe; `None` if the assets are missing.
pub fn write_recipe(golden: &Value, work: &Path) -> Option<(PathBuf, PathBuf)> {
    let kind = golden["kind"].as_str().unwrap();
    let (data, train, test) = match kind {
        "sft" => (asset("data/ultrachat_200k_like")?, "train_sft", "test_sft"),
        "tpo" => (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tpo"), "train", "test"),
        _ => (asset("data/ultrafeedback_binarized_like")?, "train_prefs", "test_prefs"),
    };
    let model = start_model(golden, work)?;
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
    Some((model, file))
}

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

/// Compares the norm and samples of every weight, and their change by training, with TRL's.
pub fn compare_weights(name: &str, golden: &Value, start: &Path, end: &Path) -> Vec<String> {
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

/// The comparison of a run's log with TRL's.
pub struct Comparison<'a> {
    pub name: &'a str,
    pub golden: &'a Value,
    /// The device of the run, if it is not the CPU.
    pub device: Option<&'a str>,
}

impl Comparison<'_> {
    /// Compares every number that TRL logged with ours, and prints the largest difference.
    pub fn of_logs(&self, ours: &[Value]) -> Vec<String> {
        let Self { name, golden, .. } = *self;
        let mut wrong = Vec::new();
        let mut furthest = (0.0, String::new());
        let exact = log_in_float64(name, golden);
        let kind = golden["kind"].as_str().unwrap();
        let rows = |log: &[Value], key: &str| -> Vec<Value> {
            log.iter().filter(|row| row.get(key).is_some()).cloned().collect()
        };
        let (theirs, exact) = (golden["log"].as_array().unwrap(), exact.as_array().unwrap());
        for key in ["loss", "eval_loss", "train_loss"] {
            let (theirs, ours) = (rows(theirs, key), rows(ours, key));
            let expected = theirs.len();
            assert!(
                ours.len() >= expected,
                "{name}: {} rows with {key}, TRL has {expected}",
                ours.len()
            );
            for ((theirs, ours), exact) in theirs.iter().zip(&ours).zip(rows(exact, key)) {
                let step = &theirs["step"];
                for (metric, value) in theirs.as_object().unwrap() {
                    if metric.ends_with("rewards/accuracies") && self.is_a_tie_elsewhere(theirs) {
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
                    let difference =
                        distance(ours, theirs, exact) / theirs.abs().max(scale(metric));
                    if difference > furthest.0 {
                        furthest = (difference, format!("step {step}: {metric}"));
                    }
                    if difference.is_nan() || difference > RELATIVE {
                        wrong
                            .push(format!("{name} step {step}: {metric} TRL {theirs} ours {ours}"));
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
    fn is_a_tie_elsewhere(&self, row: &Value) -> bool {
        self.device.is_some()
            && [&row["rewards/margins"], &row["eval_rewards/margins"]].iter().any(|m| **m == 0.0)
    }
}
