//! `favonius plan` without weights and data, and its memory estimate compared with a real run.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use burn::tensor::DType;
use common::*;
use favonius::model::weights::SHARD_BYTES;
use serde_json::json;

fn recipe(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(path).display().to_string()
}

/// Runs `favonius plan` offline, with an empty cache of the hub.
fn plan(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = favonius()
        .env("HF_HUB_CACHE", scratch("plan-empty-cache"))
        .arg("plan")
        .args(arguments)
        .output()
        .expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The number behind `name` at the start of a line.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no `{name}` in:\n{text}"));
    let mut words = line.trim_start()[name.len()..].split_whitespace();
    let number: f64 = words.next().and_then(|n| n.replace(',', "").parse().ok()).expect(line);
    let unit = match words.next() {
        Some("MB") => 1e6,
        Some("GB") => 1e9,
        _ => 1.0,
    };
    number * unit
}

#[test]
fn the_published_run_is_planned_without_weights_data_or_a_gpu() {
    let published = recipe("zephyr-7b-beta/dpo/published.yaml");
    let hardware =
        ["--ranks", "16", "--device-memory", "80GB", "--flops=312e12", "--bandwidth=25GB"];
    let arguments: Vec<&str> = [published.as_str()].into_iter().chain(hardware).collect();
    let (code, text, err) = plan(&arguments);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(value(&text, "steps an epoch "), 1937.0);
    assert_eq!(value(&text, "steps  "), 5811.0);
    assert_eq!(value(&text, "warm-up steps "), 582.0);
    assert_eq!(value(&text, "training rows "), 61_966.0);
    assert_eq!(value(&text, "parameters "), 7_241_732_096.0);
    // ZeRO-2 on 16 ranks, calculated by hand: 22.6 GB; 37.1 GB with the reference in memory.
    let state = value(&text, "state together ");
    assert!((state / 22.6e9 - 1.0).abs() < 0.05, "{state}");
    let resident = state + value(&text, "weights ");
    assert!((resident / 37.1e9 - 1.0).abs() < 0.05, "{resident}");
    for part in ["computing a step", "sending a step", "the run", "PFLOP", "reference, once"] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    assert!(text.contains("it does not fit:"), "{text}");
    assert!(text.contains("with gradient_checkpointing: true it would"), "{text}");

    let with = arguments.iter().copied().chain(["--gradient_checkpointing=true"]);
    let (_, text, _) = plan(&with.collect::<Vec<_>>());
    assert!(text.contains("it fits:"), "{text}");
}

/// On GPUs gradients are sent in bfloat16, and most of the traffic is hidden.
#[test]
fn the_published_run_fits_16_gpus_and_hides_most_of_its_traffic() {
    let published = recipe("zephyr-7b-beta/dpo/published.yaml");
    let hardware = ["--ranks=16", "--device-memory=80GB", "--flops=312e12", "--bandwidth=25GB"];
    let arguments: Vec<&str> =
        [published.as_str(), "--device=cuda"].into_iter().chain(hardware).collect();
    let (code, text, err) = plan(&arguments);
    assert_eq!(code, Some(0), "{err}");
    assert!(text.contains("it fits:") && value(&text, "peak ") < 72e9, "{text}");
    let sent = value(&text, "sent by a rank a step ");
    // 2 bytes of gradients and 2 of weights, of 15/16 of all of them.
    assert!((sent / 26.9e9 - 1.0).abs() < 0.01, "{sent}");
    assert!(text.contains(" of bfloat16 gradients, "), "{text}");
    let [sending, hidden] = ["sending a step ", "hidden a step "].map(|name| value(&text, name));
    assert!(hidden > 0.6 * sending, "{hidden} s of {sending} s");
    // Minutes: 2.2 hours at most.
    assert!(text.contains(" min (5811 steps") && value(&text, "the run ") <= 132.0, "{text}");

    let wide: Vec<&str> =
        arguments.iter().copied().chain(["--gradient_reduce_dtype=float32"]).collect();
    let (_, text, _) = plan(&wide);
    let float32 = value(&text, "sent by a rank a step ");
    assert!((float32 / sent - 1.5).abs() < 0.02, "{float32} and {sent}");
    assert!(text.contains(" of float32 gradients, "), "{text}");
}

/// The handbook's ORPO of Mixtral-8x22B. Two of eight experts compute each token.
#[test]
fn zephyr_141b_is_planned_with_its_active_parameters() {
    let orpo = recipe("zephyr-141b-A35b/orpo/handbook.yaml");
    let (code, text, err) = plan(&[&orpo, "--rows=7563", "--ranks=32", "--device-memory=80GB"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(value(&text, "parameters "), 140_620_634_112.0);
    assert_eq!(value(&text, "… active "), 39_152_031_744.0);
    assert_eq!(value(&text, "experts "), 8.0);
    // Two bytes for each parameter, whether it is active or not.
    let weights = value(&text, "weights ");
    assert!((weights / 281.2e9 - 1.0).abs() < 0.01, "{weights}");
    assert!(text.contains("it does not fit:"), "{text}");
}

#[test]
fn a_plan_without_data_asks_for_the_number_of_rows() {
    let published = recipe("zephyr-7b-beta/dpo/published.yaml");
    let other = ["--dataset_mixer={nobody/knows: 1.0}", "--dataset_splits=[train, test]"];
    let (code, _, err) = plan(&[&[published.as_str()], &other[..]].concat());
    assert_eq!(code, Some(1), "{err}");
    let rows = [&[published.as_str()], &other[..], &["--rows=3200", "--ranks=2"]].concat();
    let (code, text, err) = plan(&rows);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(value(&text, "steps an epoch "), 800.0);
}

#[test]
fn hardware_options_out_of_range_are_bad_usage() {
    let published = recipe("zephyr-7b-beta/dpo/published.yaml");
    for (option, expected) in [
        ("--device-memory=much", "'--device-memory <SIZE>': a size such as 80GB"),
        ("--device-memory=80", "\nhelp: give the unit: 80GB\n"),
        ("--device-memory=1\u{212a}B", "a size such as 80GB"),
        ("--bandwidth=200Gb/s", "\nhelp: 200 Gb/s are 25GB\n"),
        ("--flops=1e-300", "operations a second such as 312e12"),
        ("--mfu=2", "a share above 0"),
        ("--ranks=0", "'--ranks <N>': a whole number of at least 1"),
        ("--rows=0", "a whole number of at least 1"),
        ("--beta=", "help: write null for the default"),
    ] {
        let (code, _, err) = plan(&[&published, option]);
        assert_eq!(code, Some(2), "{option}: {err}");
        assert!(err.contains(expected), "{option}: {err}");
    }
    let (code, _, err) = plan(&[&published, "--device-memory=80gb", "--bandwidth=25GB/s"]);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn the_peak_includes_evaluation_and_the_reference_pass() {
    let world = world("plan-evaluation");
    let recipe = world.join("dpo.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let plan = |more: &[&str]| {
        let one_row = "--per_device_train_batch_size=1";
        let (code, text, err) =
            run_program(&[&["plan", &recipe, &base, one_row][..], more].concat());
        assert_eq!(code, Some(0), "{err}");
        text
    };
    let alone = ["--reference_free=true", "--eval_strategy=no", "--do_eval=false"];
    let alone = value(&plan(&alone), "peak ");
    let evaluation = ["--reference_free=true", "--per_device_eval_batch_size=100"];
    let whole = value(&plan(&evaluation), "peak ");
    assert!(whole > 1.2 * alone, "{whole} {alone}");
    let parts = [&evaluation[..], &["--max_tokens_per_microbatch=200"]].concat();
    let parts = value(&plan(&parts), "peak ");
    assert!(parts < 0.9 * whole, "{parts} {whole}");
    let text = plan(&["--eval_strategy=no", "--do_eval=false"]);
    let line = text.lines().find(|line| line.trim_start().starts_with("reference pass "));
    assert!(line.is_some_and(|line| line.ends_with(" tokens at a time")), "{text}");
    assert!(value(&text, "peak ") > 1.2 * alone, "{text}");
}

/// Runs the program and returns its largest resident set in bytes.
fn largest_resident_set(arguments: &[String]) -> f64 {
    let mut child = favonius()
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak: f64 = 0.0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        peak = peak.max(kilobytes.unwrap_or(0.0) * 1024.0);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success(), "{arguments:?}");
    peak
}

/// `scripts/memory_check.py` does the same for larger models.
#[test]
#[cfg(target_os = "linux")]
fn the_predicted_peak_matches_a_real_run() {
    let world = world("plan-memory");
    let model = world.join("model");
    copy_tokenizer(&world.join("base"), &model);
    let config = small_config(
        json!({"vocab_size": 8192, "hidden_size": 384, "num_hidden_layers": 6,
        "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64}),
    );
    std::fs::write(model.join("config.json"), config.raw.to_string()).unwrap();
    random_model(config, 0.05).save_weights(&model, DType::F32, SHARD_BYTES).unwrap();
    for checkpointing in [false, true] {
        let out = world.join(format!("out-{checkpointing}"));
        let mut arguments: Vec<String> = ["dpo", "RECIPE"].map(String::from).into();
        arguments[1] = world.join("dpo.yaml").display().to_string();
        arguments.extend([
            format!("--model_name_or_path={}", model.display()),
            format!("--output_dir={}", out.display()),
            format!("--gradient_checkpointing={checkpointing}"),
            "--max_steps=3".into(),
            "--max_train_samples=64".into(),
            "--max_eval_samples=4".into(),
            "--per_device_train_batch_size=16".into(),
            "--eval_strategy=no".into(),
            "--do_eval=false".into(),
            "--report_to=none".into(),
        ]);
        let planned: Vec<&str> =
            ["plan"].into_iter().chain(arguments[1..].iter().map(String::as_str)).collect();
        let (code, text, err) = run_program(&planned);
        assert_eq!(code, Some(0), "{err}");
        let (predicted, measured) = (value(&text, "peak "), largest_resident_set(&arguments));
        let difference = predicted / measured - 1.0;
        println!("predicted {predicted:.3e}, measured {measured:.3e}: {difference:+.3}");
        assert!(difference.abs() < 0.15, "predicted {predicted}, measured {measured}");
    }
}

fn copy_tokenizer(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().contains("token") {
            std::fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}
