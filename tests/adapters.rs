//! LoRA: an adapter is trained, continued, put on another one, merged, and read back; its bits do
//! not depend on threads or kills; the adapter of PEFT in tests/golden/adapter is read.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::model::adapter::ModelSource;
use favonius::model::adapter::source::Outermost;
use favonius::model::decoder::Decoder;
use serde_json::Value;

/// The arguments of a short run that trains an adapter with dropout.
fn arguments(world: &Path, stage: &str, model: &str, out: &str, more: &[&str]) -> Vec<String> {
    let recipe = world.join(format!("{stage}.yaml")).display().to_string();
    let mut arguments = vec![stage.to_string(), recipe];
    arguments.push(format!("--model_name_or_path={}", world.join(model).display()));
    arguments.push(format!("--output_dir={}", world.join(out).display()));
    let fixed = [
        "max_steps=6",
        "per_device_train_batch_size=4",
        "gradient_accumulation_steps=2",
        "learning_rate=3.0e-3",
        "logging_steps=1",
        "max_eval_samples=16",
        "report_to=none",
    ];
    arguments.extend(fixed.iter().chain(more).map(|setting| format!("--{setting}")));
    arguments
}

const NEW: [&str; 4] =
    ["use_peft=true", "lora_r=4", "lora_dropout=0.1", "lora_target_modules=all-linear"];

fn train(world: &Path, stage: &str, model: &str, out: &str, more: &[&str]) -> PathBuf {
    let output = favonius().args(arguments(world, stage, model, out, more)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    world.join(out)
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn json(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&bytes(folder, file)).unwrap()
}

fn load(folder: &Path) -> Decoder {
    Decoder::load(folder, &Device::flex(), DType::F32, |_, _| ()).unwrap()
}

fn logits(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let all: Vec<usize> = (0..ids.len()).collect();
    values(model.logits(model.hidden(&RaggedBatch::whole(ids)), &all))
}

const IDS: [u32; 8] = [1, 30, 40, 50, 33, 27, 60, 44];

#[test]
fn an_adapter_is_trained_read_and_merged() {
    let world = world("adapters-new");
    let base = load(&world.join("base"));
    let saved = [&NEW[..], &["lora_modules_to_save=[norm]", "use_rslora=true"]].concat();
    let out = train(&world, "sft", "base", "lora", &saved);
    assert!(!out.join("model.safetensors").exists() && !out.join("config.json").exists());
    assert!(out.join("tokenizer.json").is_file());
    let config = json(&out, "adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], world.join("base").display().to_string());
    assert_eq!((&config["r"], &config["lora_dropout"]), (&4.into(), &0.1.into()));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
    let card = String::from_utf8(bytes(&out, "README.md")).unwrap();
    assert!(card.contains("\nlibrary_name: peft\n") && card.contains("\n- lora\n"), "{card}");
    let adapter = load(&out);
    let is_trained = |name: &str| name.contains(".lora_") || name.ends_with("norm.weight");
    let trained = adapter.parameters().into_iter().filter(|p| is_trained(&p.name));
    let trained = trained.map(|p| p.len()).sum::<usize>().to_string();
    assert_eq!(json(&out, "plan.json")["plan"]["trained parameters"], trained.as_str());

    // The same command finds a finished run.
    let again = favonius().args(arguments(&world, "sft", "base", "lora", &saved)).output().unwrap();
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(text.contains("holds a finished run; nothing to do"), "{text}");

    let adapted = load(&out);
    let [before, after] = [&base, &adapted].map(|model| logits(model, &IDS));
    assert!(relative_difference(&after, &before) > 1e-2, "training changed the model");
    let merged = world.join("merged");
    let [adapter, target] = [&out, &merged].map(|path| path.display().to_string());
    let (code, _, err) = run_program(&["merge", &adapter, &target]);
    assert_eq!(code, Some(0), "{err}");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        assert!(merged.join(file).is_file(), "{file}");
    }
    let difference = relative_difference(&logits(&load(&merged), &IDS), &after);
    assert!(difference < 1e-5, "{difference}");
    let (code, _, err) = run_program(&["merge", &adapter, &target]);
    assert_eq!(code, Some(1));
    assert!(err.contains("is not empty"), "{err}");

    // The adapter generates, and a full run in its folder replaces it.
    let prompts = world.join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"What is a cow?\"}\n").unwrap();
    let answers = world.join("answers.jsonl").display().to_string();
    let prompts = prompts.display().to_string();
    let greedy = ["--max-new-tokens", "8", "--temperature", "0"];
    let generate = [&["generate", &adapter, &prompts, "--out", &answers][..], &greedy].concat();
    let (code, out_text, err) = run_program(&generate);
    assert_eq!(code, Some(0), "{out_text}{err}");
    train(
        &world,
        "sft",
        "base",
        "lora",
        &["overwrite_output_dir=true", "resume_from_checkpoint=false"],
    );
    assert!(out.join("model.safetensors").is_file() && out.join("config.json").is_file());
    assert!(!out.join("adapter_config.json").exists());
    assert!(!out.join("adapter_model.safetensors").exists());
}

/// Threads do not change a bit, and neither do the parts of a micro-batch that gradient
/// checkpointing computes again.
fn assert_threads_do_not_matter(name: &str, settings: &[&str]) {
    let world = world(name);
    let settings = [&NEW[..], settings].concat();
    let one = train(&world, "sft", "base", "a", &settings);
    for (out, threads, more) in
        [("b", "1", "gradient_checkpointing=true"), ("c", "3", "gradient_checkpointing=false")]
    {
        let more = [&settings[..], &[more]].concat();
        let mut command = favonius();
        command
            .args(arguments(&world, "sft", "base", out, &more))
            .env("RAYON_NUM_THREADS", threads);
        assert!(command.output().unwrap().status.success());
        let other = world.join(out);
        let file = "adapter_model.safetensors";
        assert!(bytes(&one, file) == bytes(&other, file), "{threads} threads");
        let records =
            [&one, &other].map(|folder| record_without_times(folder)["log_history"].clone());
        assert_eq!(records[0], records[1]);
    }
    let other_seed = [&settings[..], &["data_seed=42", "seed=1"]].concat();
    let other = train(&world, "sft", "base", "d", &other_seed);
    let file = "adapter_model.safetensors";
    assert!(bytes(&one, file) != bytes(&other, file), "another seed is another adapter");
}

#[test]
fn threads_and_checkpointing_do_not_change_an_adapter() {
    assert_threads_do_not_matter("adapters-threads", &[]);
}

#[test]
fn threads_and_checkpointing_do_not_change_an_adapter_on_four_bits() {
    assert_threads_do_not_matter("adapters-threads-4bit", &["load_in_4bit=true"]);
}

fn start(arguments: &[String]) -> Child {
    let mut command = favonius();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

/// The step of the newest checkpoint in a run's folder; 0 without one.
fn newest_checkpoint(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let steps = names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok());
    steps.max().unwrap_or(0)
}

#[test]
fn a_killed_run_ends_with_the_same_adapter_and_its_checkpoints_are_small() {
    kill_and_compare("adapters-killed", "load_in_4bit=false");
}

#[test]
fn a_killed_run_on_four_bits_ends_with_the_same_adapter() {
    kill_and_compare("adapters-killed-4bit", "load_in_4bit=true");
}

fn kill_and_compare(name: &str, four_bits: &str) {
    let world = world(name);
    let more = [
        &NEW[..],
        &[
            four_bits,
            "lora_modules_to_save=[embed_tokens]",
            "save_strategy=steps",
            "save_steps=1",
            "max_steps=10",
        ],
    ]
    .concat();
    let whole = train(&world, "sft", "base", "whole", &more);
    let broken = arguments(&world, "sft", "base", "broken", &more);
    for kill_at in [2, 5, 8] {
        let mut child = start(&broken);
        let started = Instant::now();
        while newest_checkpoint(&world.join("broken")) < kill_at {
            assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint {kill_at}");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(start(&broken).wait().unwrap().success());
    let broken = world.join("broken");
    for file in ["adapter_model.safetensors", "checkpoint-10/optimizer.safetensors"] {
        assert!(bytes(&whole, file) == bytes(&broken, file), "{file}");
    }
    let checkpoint = whole.join("checkpoint-10");
    assert!(!checkpoint.join("model.safetensors").exists());
    let size = |path: PathBuf| std::fs::metadata(path).unwrap().len();
    let adapter = size(checkpoint.join("adapter_model.safetensors"));
    let optimizer = size(checkpoint.join("optimizer.safetensors"));
    assert!((optimizer as f64 / (2.0 * adapter as f64) - 1.0).abs() < 0.1, "two moments a weight");
    let other = arguments(&world, "sft", "base", "broken", &[&more[..], &["lora_r=8"]].concat());
    let text = favonius().args(other).output().unwrap();
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(text.contains("`lora_r` was 4 there and is 8 now"), "{text}");
}

/// SFT makes an adapter; DPO trains it further, or puts a new one on it. The reference of the first
/// is the SFT adapter, that of the second is the base with the SFT adapter merged. Both are the
/// same model up to rounding, so the first step has the loss ln 2.
#[test]
fn dpo_continues_an_adapter_or_puts_a_new_one_on_it() {
    let world = world("adapters-dpo");
    let sft = train(&world, "sft", "base", "sft-lora", &NEW);
    let continued = train(&world, "dpo", "sft-lora", "further", &[]);
    let new = train(&world, "dpo", "sft-lora", "second", &["use_peft=true", "lora_r=2"]);
    let first = |folder: &Path| record_without_times(folder)["log_history"][0].clone();
    for folder in [&continued, &new] {
        let loss = first(folder)["loss"].as_f64().unwrap();
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-6, "{loss}");
    }
    let [chosen, other] = [&continued, &new].map(|f| first(f)["logps/chosen"].as_f64().unwrap());
    assert!((chosen / other - 1.0).abs() < 1e-5, "{chosen} {other}");
    let config = json(&continued, "adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], world.join("base").display().to_string());
    assert_eq!(config["r"], 4);
    let config = json(&new, "adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], sft.display().to_string());
    // The new adapter's base is an adapter: both are read, and merged one after the other.
    let source = ModelSource::of(&new).unwrap();
    assert_eq!(source.adapters.len(), 2);
    let merge = |outermost| source.load(outermost, &Device::flex(), DType::F32, |_, _| ()).unwrap();
    let [attached, merged] = [Outermost::Attached, Outermost::Merged].map(merge);
    let difference = relative_difference(&logits(&merged, &IDS), &logits(&attached, &IDS));
    assert!(difference < 1e-5, "{difference}");
    // A reference that follows the policy is refused before anything is trained.
    let follows = arguments(&world, "dpo", "sft-lora", "follows", &["sync_ref_model=true"]);
    let output = favonius().args(follows).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("`sync_ref_model` cannot be used with an adapter"), "{text}");
}

/// A new adapter has the reference of full training: its stored log-probs are used again.
#[test]
fn the_reference_of_a_new_adapter_is_its_base() {
    let world = world("adapters-reference");
    let run = |out: &str, more: &[&str]| {
        let output = favonius().args(arguments(&world, "dpo", "base", out, more)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let pass = "reference log-probs (train): ";
    assert!(run("full", &[]).contains(pass));
    let saved = [&NEW[..], &["lora_modules_to_save=[lm_head]"]].concat();
    assert!(!run("lora", &saved).contains(pass));
    // The other way round: the pass runs through the model without its adapter.
    std::fs::remove_dir_all(world.join(".favonius-cache")).unwrap();
    let saved = [&NEW[..], &["lora_modules_to_save=[embed_tokens]"]].concat();
    assert!(run("lora-2", &saved).contains(pass));
    assert!(!run("full-2", &[]).contains(pass));
    let rows =
        ["full", "full-2"].map(|out| record_without_times(&world.join(out))["log_history"].clone());
    assert_eq!(rows[0], rows[1]);
}

/// The adapter of tests/golden/adapter with its base at the assets' place.
fn golden_adapter(name: &str) -> Option<PathBuf> {
    let base = asset("models/stories260k")?;
    let folder = scratch(name);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter");
    for file in ["adapter_model.safetensors", "logits.json"] {
        std::fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    let mut config = json(&golden, "adapter_config.json");
    config["base_model_name_or_path"] = base.display().to_string().into();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    Some(folder)
}

#[test]
fn an_adapter_of_peft_gives_pefts_logits() {
    let Some(folder) = golden_adapter("adapters-peft") else { return };
    let golden = json(&folder, "logits.json");
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    let rows: Vec<Vec<f32>> = serde_json::from_value(golden["logits"].clone()).unwrap();
    let every = golden["every"].as_u64().unwrap() as usize;
    let source = ModelSource::of(&folder).unwrap();
    for outermost in [Outermost::Attached, Outermost::Merged] {
        let model = source.load(outermost, &Device::flex(), DType::F32, |_, _| ()).unwrap();
        let ours = logits(&model, &ids);
        let ours: Vec<f32> = ours
            .chunks(model.config.vocab_size)
            .flat_map(|row| row.iter().step_by(every).copied())
            .collect();
        let difference = relative_difference(&ours, &rows.concat());
        assert!(difference < 1e-5, "{outermost:?}: {difference}");
    }
    // Chat and cache: one token at a time.
    let model = load(&folder);
    assert_eq!(model.generate_greedy(&ids, 8, &[]).len(), 8);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let world = world("adapters-bad");
    let out = train(&world, "sft", "base", "lora", &[&NEW[..], &["max_steps=1"]].concat());
    let config = json(&out, "adapter_config.json");
    let adapter = out.display().to_string();
    let change = |key: &str, value: Value| {
        let mut changed = config.clone();
        changed[key] = value;
        std::fs::write(out.join("adapter_config.json"), changed.to_string()).unwrap();
        let target = world.join("merged").display().to_string();
        let (code, _, err) = run_program(&["merge", &adapter, &target]);
        assert_eq!(code, Some(1), "{err}");
        err
    };
    for (key, value, part) in [
        ("use_dora", true.into(), "`use_dora` is true, which is not supported: DoRA"),
        ("r", 2.into(), "has shape [4, "),
        ("target_modules", vec!["q_proj"].into(), "belongs to no module that adapter_config.json"),
        (
            "modules_to_save",
            vec!["lm_head"].into(),
            "tensor `base_model.model.lm_head.weight` is missing",
        ),
        (
            "base_model_name_or_path",
            "no/such/place".into(),
            "base model `no/such/place` cannot be used",
        ),
        ("base_model_name_or_path", adapter.clone().into(), "that adapter itself"),
    ] {
        let err = change(key, value);
        assert!(err.contains(part) && err.contains(&adapter), "{err}");
    }
    let base = world.join("base").display().to_string();
    let (code, _, err) = run_program(&["merge", &base, &world.join("x").display().to_string()]);
    assert_eq!(code, Some(1));
    assert!(err.contains("is a full model, not an adapter"), "{err}");
    let targets =
        arguments(&world, "sft", "base", "y", &["use_peft=true", "lora_target_modules=[lm_head]"]);
    let output = favonius().args(targets).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("match `lm_head`, and an adapter on it is not supported"), "{text}");
}

/// `plan` counts what an adapter trains.
#[test]
fn a_plan_knows_adapters() {
    let world = world("adapters-plan");
    let plan = |more: &[&str]| {
        let recipe = world.join("sft.yaml").display().to_string();
        let model = format!("--model_name_or_path={}", world.join("base").display());
        let (code, out, err) = run_program(&[&["plan", &recipe, &model], more].concat());
        assert_eq!(code, Some(0), "{err}");
        out
    };
    let moments = |text: &str| {
        let line = text.lines().find(|line| line.contains("optimizer moments")).unwrap();
        let size = line.split_whitespace().nth(2).unwrap();
        size.parse::<f64>().unwrap()
    };
    let full = plan(&[]);
    let lora = plan(&["--use_peft=true", "--lora_r=2"]);
    assert!(lora.contains("a new one") && lora.contains("`q_proj`, `v_proj`"), "{lora}");
    assert!(moments(&lora) < 0.1 * moments(&full), "{lora}");
}
