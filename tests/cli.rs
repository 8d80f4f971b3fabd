//! The command line: help, plans, pipelines, and the files that a finished stage writes.

mod common;

use std::path::Path;

use common::*;
use serde_json::Value;

#[test]
fn help_lists_every_command_and_the_exit_codes() {
    for arguments in [
        &["--help"][..],
        &["sft", "--help"],
        &["dpo", "--help"],
        &["run", "--help"],
        &["plan", "--help"],
        &["report", "--help"],
        &["chat", "--help"],
        &["generate", "--help"],
        &["evaluate", "--help"],
        &["merge", "--help"],
        &["push", "--help"],
        &["demo", "--help"],
        &["dist-check", "--help"],
        &["completions", "--help"],
    ] {
        let (code, out, _) = run_program(arguments);
        assert_eq!(code, Some(0), "{arguments:?}");
        assert!(out.contains("Usage: favonius"), "{arguments:?}: {out}");
    }
    let (_, out, _) = run_program(&["sweep", "--help"]);
    assert!(out.contains("--compare-only"), "{out}");
    for (command, options) in [
        ("dpo", &["--quiet", "--collective-timeout", "--KEY=VALUE"][..]),
        ("plan", &["--stage", "--ranks", "--device-memory", "--flops", "--mfu", "--rows"]),
        ("evaluate", &["--tasks", "--limit", "--num_fewshot", "--definition", "--batch-tokens"]),
        ("sweep", &["--plan", "--dry-run", "--slurm", "--jobs", "--ranks", "--bandwidth"]),
    ] {
        let (_, out, _) = run_program(&[command, "--help"]);
        for option in options {
            assert!(out.contains(option), "{option} is not in the help of {command}: {out}");
        }
    }
    let (_, out, _) = run_program(&["--help"]);
    assert!(out.lines().count() < 45, "the help is long: {out}");
    assert!(out.contains("Exit codes: 0 done; 1 failed or interrupted; 2 bad usage or recipe"));
    let commands = [
        "sft", "dpo", "run", "plan", "report", "chat", "generate", "evaluate", "merge", "push",
        "demo",
    ];
    for command in commands {
        assert!(out.contains(&format!("  {command} ")), "{command} is not in the help");
    }
}

#[test]
fn bad_usage_exits_with_2_and_a_failure_with_1() {
    assert_eq!(run_program(&["fly"]).0, Some(2));
    assert_eq!(run_program(&["sft"]).0, Some(2));
    let (code, _, err) = run_program(&["sft", "no-such-recipe.yaml"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("no-such-recipe.yaml"), "{err}");
}

#[test]
fn options_stand_anywhere_and_ranks_start_no_run() {
    let world = world("cli-options");
    let recipe = world.join("dpo.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let (code, before, err) = run_program(&["plan", "--ranks", "2", &base, "--stage=dpo", &recipe]);
    assert_eq!(code, Some(0), "{err}");
    let (code, behind, err) =
        run_program(&["plan", &recipe, &base, "--stage", "dpo", "-q", "--ranks=2"]);
    assert_eq!((code, before), (Some(0), behind), "{err}");

    let (code, _, err) = run_program(&["dpo", &recipe, "--ranks=2"]);
    assert_eq!(code, Some(2));
    assert!(err.starts_with("error: ") && err.contains("`mpirun -n N favonius dpo"), "{err}");
    let (code, _, err) = run_program(&["dpo", &recipe, "--beta", "0.1"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("`--beta` is not an override"), "{err}");
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = run_program(&["completions", shell]);
        assert_eq!(code, Some(0), "{shell}: {err}");
        assert!(out.contains("favonius") && out.contains("device-memory"), "{shell}: {out}");
    }
    assert_eq!(run_program(&["completions", "cmd"]).0, Some(2));
}

#[test]
fn plan_shows_the_arithmetic_and_every_default() {
    let world = world("cli-plan");
    let recipe = world.join("dpo.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let (code, out, err) = run_program(&["plan", &recipe, &base, "--warmup_ratio=0.1"]);
    assert_eq!(code, Some(0), "{err}");
    for part in [
        "training rows",
        "steps an epoch",
        "warm-up steps",
        "together",
        "filled in",
        "max_grad_norm",
        "written in the recipe",
        "parameters",
    ] {
        assert!(out.contains(part), "`{part}` is not in:\n{out}");
    }
    assert!(!world.join("dpo").exists(), "a plan writes no run");
}

#[test]
fn a_pipeline_writes_two_models_with_their_records_and_skips_finished_stages() {
    let world = world("cli-pipeline");
    let pipeline = world.join("pipeline.yaml").display().to_string();
    let short = [
        "--max_steps=4",
        "--max_eval_samples=16",
        "--save_strategy=steps",
        "--save_steps=3",
        "--save_total_limit=1",
        "--logging_steps=1",
        "--eval_strategy=steps",
        "--eval_steps=2",
    ];
    let arguments: Vec<&str> = ["run", &pipeline].into_iter().chain(short).collect();
    let (code, out, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{out}{err}");
    for stage in ["sft", "dpo"] {
        let folder = world.join(stage);
        for file in [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "trainer_state.json",
            "train_results.json",
            "eval_results.json",
            "all_results.json",
            "README.md",
            "checkpoint-4",
        ] {
            assert!(folder.join(file).exists(), "{stage}/{file} is missing");
        }
        assert!(tensorboard_files(&folder) > 0, "{stage} left no event file");
    }
    let dpo: Value = record_without_times(&world.join("dpo"));
    let first = &dpo["log_history"][0];
    assert_eq!(
        first["rewards/accuracies"], 0.0,
        "at the first step the policy equals the reference"
    );
    assert_eq!(first["rewards/margins"], 0.0);
    assert!((first["loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-9);
    assert_eq!(first["learning_rate"], 0.0);
    let card = std::fs::read_to_string(world.join("dpo/README.md")).unwrap();
    assert!(card.contains("| Training Loss | Epoch"), "{card}");
    assert!(card.contains("Rewards/chosen"), "{card}");

    let (code, out, _) = run_program(&arguments);
    assert_eq!(code, Some(0));
    assert_eq!(out.matches("holds a finished run").count(), 2, "{out}");

    let other: Vec<&str> = arguments.iter().copied().chain(["--learning_rate=0.7"]).collect();
    let (code, _, err) = run_program(&other);
    assert_eq!(code, Some(1));
    let says = "holds a finished run with other settings: `learning_rate` was ";
    assert!(err.contains(says) && err.contains("is 0.7 now"), "{err}");
}

fn tensorboard_files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder.join("runs")).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().contains("tfevents")).count()
}

#[test]
fn load_best_model_at_end_writes_the_best_model() {
    let world = world("cli-best");
    let recipe = world.join("sft.yaml").display().to_string();
    let out = world.join("best");
    let arguments = [
        "sft",
        &recipe,
        &format!("--output_dir={}", out.display()),
        "--max_steps=6",
        "--eval_strategy=steps",
        "--eval_steps=2",
        "--save_strategy=steps",
        "--save_steps=2",
        "--load_best_model_at_end=true",
        "--metric_for_best_model=eval_loss",
        "--learning_rate=0.5",
        "--lr_scheduler_type=constant",
        "--max_eval_samples=16",
        "--save_total_limit=2",
        "--max_grad_norm=0",
    ];
    let (code, text, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{text}{err}");
    let record = record_without_times(&out);
    let best = record["best_global_step"].as_u64().unwrap();
    let folder = out.join(format!("checkpoint-{best}"));
    let weights = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
    assert!(weights(&folder) == weights(&out), "the final model is not that of step {best}");
}

/// `num_tokens` only grows. So the last evaluation is the best, or the first one if lower is
/// better.
#[test]
fn the_best_checkpoint_is_named_only_if_it_was_saved() {
    let world = world("cli-best-saved");
    let recipe = world.join("sft.yaml").display().to_string();
    let train = |out: &str, more: &[&str]| {
        let output = format!("--output_dir={}", world.join(out).display());
        let settings = [
            "sft",
            &recipe,
            &output,
            "--max_steps=10",
            "--max_eval_samples=16",
            "--eval_strategy=steps",
            "--eval_steps=2",
            "--save_strategy=steps",
            "--save_steps=4",
            "--report_to=none",
        ];
        run_program(&[&settings[..], more].concat())
    };
    let metric = "--metric_for_best_model=eval_num_tokens";
    let (code, text, err) = train("most", &[metric]);
    assert_eq!(code, Some(0), "{text}{err}");
    let record = record_without_times(&world.join("most"));
    assert_eq!(record["best_global_step"], 10);
    let best = Path::new(record["best_model_checkpoint"].as_str().unwrap());
    assert!(
        best.ends_with("checkpoint-10") && best.is_dir(),
        "the last step was not saved: {best:?}"
    );

    let (code, text, err) = train("least", &[metric, "--greater_is_better=false"]);
    assert_eq!(code, Some(0), "{text}{err}");
    let record = record_without_times(&world.join("least"));
    assert_eq!(record["best_global_step"], 2);
    assert_eq!(
        record["best_model_checkpoint"],
        Value::Null,
        "step 2 was not saved, so no checkpoint can be named"
    );

    let (code, _, err) = train("typo", &["--metric_for_best_model=eval_los"]);
    assert_eq!(code, Some(1));
    let says = "`metric_for_best_model: los` is not among the metrics of this evaluation, which are loss, ";
    assert!(err.contains(says), "{err}");
}

#[test]
fn the_error_of_a_missing_device_names_it_without_a_panic() {
    let world = world("cli-device");
    let recipe = world.join("sft.yaml").display().to_string();
    let (code, _, err) = run_program(&["sft", &recipe, "--device=cuda"]);
    assert_ne!(code, Some(0));
    assert!(err.contains("device `cuda:0`") && !err.contains("panicked"), "{err}");
}

#[cfg(unix)]
#[test]
fn special_tokens_of_the_recipe_are_saved_even_if_the_base_model_is_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let world = world("cli-tokens");
    for file in std::fs::read_dir(world.join("base")).unwrap() {
        let read_only = std::fs::Permissions::from_mode(0o444);
        std::fs::set_permissions(file.unwrap().path(), read_only).unwrap();
    }
    let recipe = world.join("sft.yaml").display().to_string();
    let template = "--chat_template={% for m in messages %}{{ m.content + eos_token }}{% endfor %}";
    let (code, out, err) = run_program(&[
        "sft",
        &recipe,
        "--eos_token=<unk>",
        template,
        "--assistant_only_loss=false",
        "--max_steps=1",
    ]);
    assert_eq!(code, Some(0), "{out}{err}");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(world.join("sft").join(name)).unwrap()).unwrap()
    };
    let [config, generation] = ["config.json", "generation_config.json"].map(read);
    assert_eq!(config["eos_token_id"], 0);
    assert_eq!(generation["eos_token_id"], serde_json::json!([0, 2]), "both ids end an answer");
    for object in [&config, &generation] {
        assert_eq!(object["pad_token_id"], 2);
    }
    let tokenizer = read("tokenizer_config.json");
    assert_eq!(tokenizer["eos_token"], "<unk>");
    assert!(tokenizer["chat_template"].as_str().unwrap().starts_with("{% for m in"));
}

/// A run of few steps computes reference log-probs of the rows that it visits only. It trains
/// exactly like a run that has the log-probs of all rows.
#[test]
fn a_short_run_computes_reference_log_probs_of_its_own_rows_only() {
    let world = world("few-rows");
    let recipe = world.join("dpo.yaml").display().to_string();
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let train = |steps: &str, cache: &str| {
        let out = world.join("dpo");
        let _ = std::fs::remove_dir_all(&out);
        let rows = ["--per_device_train_batch_size=4", "--max_train_samples=100"];
        let rate = ["--lr_scheduler_type=constant", "--warmup_steps=0", "--logging_steps=1"];
        let mut command = favonius();
        command.args(["dpo", &recipe, &base, steps, "--do_eval=false", "--eval_strategy=no"]);
        command.args(rows).args(rate).env("FAVONIUS_CACHE", world.join(cache));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let made = text.split("reference log-probs (train): ").nth(1);
        let made = made.map(|rest| rest.lines().next().unwrap().to_string());
        let margin = |step: usize| {
            record_without_times(&out)["log_history"][step]["rewards/margins"].clone()
        };
        (made, [margin(0), margin(1)])
    };
    let (few, of_few) = train("--max_steps=2", "few");
    assert_eq!(few.as_deref(), Some("8 pairs"));
    let (all, of_all) = train("--max_steps=7", "all");
    assert_eq!(all.as_deref(), Some("100 pairs"));
    assert_eq!(of_few, of_all);
    assert_ne!(of_few[1], 0.0, "after one step the policy differs from the reference");
    let (none, again) = train("--max_steps=2", "all");
    assert_eq!((none, again), (None, of_all), "a short run reuses the log-probs of all rows");
}
