//! A run that is killed at any moment, is interrupted, or has a damaged checkpoint ends with the
//! same bits as an unbroken run.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::*;
use favonius::train::checkpoint;
use safetensors::SafeTensors;
use serde_json::Value;
use serde_json::json;

/// The arguments of a short run that saves every second step and logs every third step.
fn arguments(world: &Path, stage: &str, out: &Path) -> Vec<String> {
    let recipe = world.join(format!("{stage}.yaml"));
    let mut arguments = vec![stage.to_string(), recipe.display().to_string()];
    arguments.extend([
        format!("--output_dir={}", out.display()),
        format!("--model_name_or_path={}", world.join("base").display()),
        "--max_steps=10".into(),
        "--gradient_accumulation_steps=2".into(),
        "--per_device_train_batch_size=4".into(),
        "--save_strategy=steps".into(),
        "--save_steps=2".into(),
        "--logging_steps=3".into(),
        "--eval_strategy=steps".into(),
        "--eval_steps=5".into(),
        "--max_eval_samples=32".into(),
    ]);
    arguments
}

fn start(arguments: &[String]) -> Child {
    let mut command = favonius();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

fn straight(world: &Path, stage: &str, out: &Path) {
    assert!(start(&arguments(world, stage, out)).wait().unwrap().success());
}

fn assert_same_run(a: &Path, b: &Path) {
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(a) == weights(b), "final weights differ");
    let optimizer = |folder: &Path| {
        std::fs::read(folder.join("checkpoint-10").join("optimizer.safetensors")).unwrap()
    };
    assert!(optimizer(a) == optimizer(b), "optimizer state differs");
    let text = |folder: &Path| {
        let own = folder.display().to_string();
        record_without_times(folder).to_string().replace(&own, "")
    };
    assert_eq!(text(a), text(b));
}

/// A run in bfloat16 keeps the weights of a file in float32 as they are: its rate is so small that
/// nothing changes them.
#[test]
fn bfloat16_keeps_the_bits_of_a_float32_checkpoint() {
    let world = world("resume-bf16");
    let out = world.join("out");
    let mut arguments = arguments(&world, "sft", &out);
    arguments.retain(|argument| !["--max_steps", "--eval"].iter().any(|k| argument.starts_with(k)));
    let own = ["--bf16=true", "--max_steps=2", "--learning_rate=1e-30", "--eval_strategy=no"];
    arguments.extend(own.map(String::from));
    assert!(start(&arguments).wait().unwrap().success());
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let base = read(world.join("base/model.safetensors"));
    let state = read(out.join("checkpoint-2/optimizer.safetensors"));
    let [base, state] = [&base, &state].map(|file| SafeTensors::deserialize(file).unwrap());
    assert!(!base.is_empty());
    for (name, weight) in base.tensors() {
        let master = state.tensor(&format!("master.{name}")).unwrap();
        assert_eq!(weight.dtype(), safetensors::Dtype::F32);
        assert!(master.data() == weight.data(), "{name} was rounded");
    }
}

/// Starts and kills the run until one start reaches the end, and returns the number of kills.
/// `unbroken` is the duration of the run if it is not killed.
fn killed_until_done(world: &Path, stage: &str, out: &Path, unbroken: Duration) -> usize {
    let mut kills = 0;
    for attempt in 0..200u64 {
        let mut child = start(&arguments(world, stage, out));
        // The waiting time is random and grows with each attempt, so that the run ends at last. It
        // is a fraction of the run's duration, so that fast and slow machines kill equally often.
        let part = (splitmix64(attempt) % 1000) as f64 / 1000.0;
        std::thread::sleep(unbroken.mul_f64(0.05 + part * (0.1 + 0.03 * attempt as f64)));
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                return kills;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
        }
    }
    panic!("the run never reached its end");
}

fn kill_and_compare(stage: &str) {
    let world = world(&format!("resume-{stage}"));
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    let started = Instant::now();
    straight(&world, stage, &whole);
    let kills = killed_until_done(&world, stage, &broken, started.elapsed());
    assert!(kills >= 3, "only {kills} kills: the run is too fast for this test");
    assert_same_run(&whole, &broken);
}

#[test]
fn an_sft_run_killed_at_random_points_ends_with_the_same_bits() {
    kill_and_compare("sft");
}

#[test]
fn a_dpo_run_killed_at_random_points_ends_with_the_same_bits() {
    kill_and_compare("dpo");
}

/// All steps are trained and saved, but the summary and the model are not written yet.
#[test]
fn a_run_killed_after_its_last_checkpoint_ends_with_its_summary() {
    let world = world("resume-last");
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    straight(&world, "sft", &whole);
    straight(&world, "sft", &broken);
    for name in ["favonius.json", "model.safetensors", "trainer_state.json"] {
        std::fs::remove_file(broken.join(name)).unwrap();
    }
    straight(&world, "sft", &broken);
    assert_same_run(&whole, &broken);
    // The times are the sums over both starts; the second start trained no step.
    let timed = checkpoint::read_position(&broken.join("checkpoint-10")).unwrap().timed;
    assert!(timed.steps == 10 && timed.seconds > 0.0, "{timed:?}");
    let text = std::fs::read_to_string(broken.join("trainer_state.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let mut rows = record["log_history"].as_array().unwrap().iter();
    let last = rows.rfind(|row| row["train_runtime"].is_number()).unwrap();
    let number = |key: &str| last[key].as_f64().unwrap();
    let seconds = number("train_runtime");
    assert!(seconds >= timed.seconds, "{seconds} {timed:?}");
    assert!((number("train_steps_per_second") * seconds - 10.0).abs() < 1e-6, "{last}");
    assert!((number("train_samples_per_second") * seconds - 80.0).abs() < 1e-6, "{last}");
}

/// With TR-DPO the reference changes, so a resumed run loads it from the checkpoint.
#[test]
fn a_reference_that_follows_the_policy_is_resumed_too() {
    let world = world("resume-following");
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    let run = |out: &Path| {
        let mut arguments = arguments(&world, "dpo", out);
        arguments.extend(["--sync_ref_model=true".into(), "--ref_model_sync_steps=3".into()]);
        assert!(start(&arguments).wait().unwrap().success());
    };
    run(&whole);
    run(&broken);
    for name in ["favonius.json", "model.safetensors", "trainer_state.json"] {
        std::fs::remove_file(broken.join(name)).unwrap();
    }
    for step in [8, 10] {
        std::fs::remove_dir_all(broken.join(format!("checkpoint-{step}"))).unwrap();
    }
    run(&broken);
    assert_same_run(&whole, &broken);
}

/// Each state that a resumed run must find again: the momentum of SGD, Lion's mean, Adafactor's
/// means of rows and columns, the running mean of rewards of BCO, and the noise of NEFTune.
#[test]
fn every_optimizer_bco_and_noise_resume_with_the_same_bits() {
    let world = world("resume-states");
    let keys: [(&str, &[&str]); 4] = [
        ("sft", &["optim=adafactor", "neftune_noise_alpha=5", "label_smoothing_factor=0.1"]),
        ("sft", &["optim=lion_32bit", "train_sampling_strategy=group_by_length"]),
        ("dpo", &["optim=sgd", "optim_args=momentum=0.9", "neftune_noise_alpha=5"]),
        ("kto", &["loss_type=bco"]),
    ];
    for (index, (stage, keys)) in keys.into_iter().enumerate() {
        let recipe = world.join("kto.yaml");
        if stage == "kto" {
            std::fs::copy(world.join("dpo.yaml"), &recipe).unwrap();
        }
        let [whole, broken] = ["whole", "broken"].map(|name| world.join(format!("{name}-{index}")));
        let run = |out: &Path| {
            let mut arguments = arguments(&world, stage, out);
            arguments.extend(keys.iter().map(|key| format!("--{key}")));
            assert!(start(&arguments).wait().unwrap().success(), "{keys:?}");
        };
        run(&whole);
        run(&broken);
        // Only the first half of the run is left.
        for step in [6, 8, 10] {
            std::fs::remove_dir_all(broken.join(format!("checkpoint-{step}"))).unwrap();
        }
        std::fs::remove_file(broken.join("favonius.json")).unwrap();
        run(&broken);
        assert_same_run(&whole, &broken);
    }
}

/// Sparse experts, resumed on one thread.
#[test]
fn experts_resume_with_the_same_bits() {
    let world = world("resume-experts");
    let mixtral =
        json!({"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2});
    let model = family_folder(&world, mixtral);
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    let run = |out: &Path, threads: &str| {
        let mut arguments = arguments(&world, "dpo", out);
        arguments.retain(|argument| !argument.starts_with("--model_name_or_path"));
        arguments.push(format!("--model_name_or_path={}", model.display()));
        let mut program = favonius();
        program.args(arguments).env("RAYON_NUM_THREADS", threads);
        assert!(program.output().unwrap().status.success());
    };
    run(&whole, "2");
    run(&broken, "2");
    for step in [6, 8, 10] {
        std::fs::remove_dir_all(broken.join(format!("checkpoint-{step}"))).unwrap();
    }
    std::fs::remove_file(broken.join("favonius.json")).unwrap();
    run(&broken, "1");
    assert_same_run(&whole, &broken);
}

#[test]
fn a_run_gives_the_same_bits_on_two_threads_and_on_one() {
    let world = world("resume-threads");
    let [two, one] = ["two", "one"].map(|name| world.join(name));
    straight(&world, "dpo", &two);
    let status = favonius()
        .args(arguments(&world, "dpo", &one))
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_same_run(&two, &one);
}

#[test]
#[cfg(unix)]
fn after_a_signal_the_step_is_finished_and_saved_and_the_same_command_resumes() {
    let world = world("resume-signal");
    let whole = world.join("whole");
    straight(&world, "dpo", &whole);
    for signal in ["-TERM", "-HUP"] {
        let broken = world.join(format!("broken{signal}"));
        let mut child = start(&arguments(&world, "dpo", &broken));
        while !broken.join("checkpoint-2").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = child.id().to_string();
        std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        let status = child.wait().unwrap();
        if status.code() == Some(1) {
            assert!(newest(&broken) >= 2);
            straight(&world, "dpo", &broken);
        } else {
            assert!(status.success(), "ended by {signal} itself: {status:?}");
        }
        assert_same_run(&whole, &broken);
    }
}

#[test]
fn a_run_continues_after_its_stdout_is_closed() {
    let world = world("resume-unread");
    let [whole, unread] = ["whole", "unread"].map(|name| world.join(name));
    straight(&world, "sft", &whole);
    let mut command = favonius();
    command.args(arguments(&world, "sft", &unread)).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert_same_run(&whole, &unread);
}

fn checkpoints(out: &Path) -> Vec<PathBuf> {
    checkpoint::list(out).into_iter().map(|(_, path)| path).collect()
}

fn newest(out: &Path) -> u64 {
    checkpoint::list(out)[0].0
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_previous_one_is_used() {
    let world = world("resume-damaged");
    let [whole, broken] = ["whole", "broken"].map(|name| world.join(name));
    straight(&world, "sft", &whole);
    straight(&world, "sft", &broken);
    for file in ["favonius.json", "model.safetensors", "trainer_state.json"] {
        std::fs::remove_file(broken.join(file)).unwrap();
    }
    let bad = checkpoints(&broken)[0].join("optimizer.safetensors");
    let mut bytes = std::fs::read(&bad).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&bad, bytes).unwrap();
    let arguments = arguments(&world, "sft", &broken);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, out, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("checkpoint-10 is damaged: optimizer.safetensors is not what was"),
        "{out}"
    );
    assert!(out.contains("resuming at step 8"), "{out}");
    assert_same_run(&whole, &broken);
}

#[test]
fn a_changed_schedule_reference_or_batch_is_refused_as_another_run() {
    let world = world("resume-identity");
    let out = world.join("out");
    let run = |more: &[&str]| {
        let arguments = arguments(&world, "dpo", &out);
        let arguments = arguments.iter().map(String::as_str).chain(["--max_train_samples=64"]);
        let arguments: Vec<&str> = arguments.chain(more.iter().copied()).collect();
        let _ = std::fs::remove_file(out.join("favonius.json"));
        run_program(&arguments)
    };
    let aot = ["--loss_type=aot", "--lr_scheduler_type=cosine"];
    let half = "--lr_scheduler_kwargs={num_cycles: 0.5}";
    let smaller = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=4"];
    let (code, text, err) = run(&[&aot[..], &[half]].concat());
    assert_eq!(code, Some(0), "{text}{err}");
    let refused = |changed: &[&str], says: &str| {
        let (code, _, err) = run(&[&aot[..], changed].concat());
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(says), "{err}");
    };
    refused(
        &["--lr_scheduler_kwargs={num_cycles: 1.5}"],
        "`lr_scheduler_kwargs` was {num_cycles: 0.5} there and is {num_cycles: 1.5} now",
    );
    let elsewhere = "--ref_model_name_or_path=elsewhere";
    refused(&[half, elsewhere], "base there and is elsewhere now");
    let says = "`per_device_train_batch_size` was 4 there and is 2 now";
    refused(&[half, smaller[0], smaller[1]], says);
    // A plain mean over pairs does not depend on the micro-batches, so these may change.
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(run(&[]).0, Some(0));
    let (code, text, err) = run(&smaller);
    assert_eq!(code, Some(0), "{err}");
    assert!(text.contains("resuming at step 10"), "{text}");
}

#[test]
fn a_checkpoint_of_another_recipe_is_refused_with_the_key_that_differs() {
    let world = world("resume-other");
    let out = world.join("out");
    straight(&world, "dpo", &out);
    std::fs::remove_file(out.join("favonius.json")).unwrap();
    let mut arguments = arguments(&world, "dpo", &out);
    arguments.push("--beta=0.3".into());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, _, err) = run_program(&arguments);
    assert_eq!(code, Some(1));
    assert!(err.contains("`beta` was 0.1 there and is 0.3 now"), "{err}");
}

/// Writes enough pairs for several blocks of a reference pass.
fn write_many_pairs(world: &Path) -> PathBuf {
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let line = |index: usize| {
        let answer = |word: &str| format!("{} {index}", [word; 60].join(" "));
        let chat = |word: &str| {
            json!([message("user", format!("Say {index}.")), message("assistant", answer(word))])
        };
        json!({"chosen": chat("Wednesday"), "rejected": chat("Monday")}).to_string()
    };
    let path = world.join("many.jsonl");
    std::fs::write(&path, (0..2000).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

#[test]
#[cfg(unix)]
fn an_interrupted_reference_pass_continues() {
    let world = world("resume-reference");
    let pairs = write_many_pairs(&world);
    let [whole, broken] = ["whole/run", "broken/run"].map(|name| world.join(name));
    let arguments = |out: &Path| {
        let mut all = arguments(&world, "dpo", out);
        all.extend([
            format!("--dataset_mixer={{{}: 1.0}}", pairs.display()),
            "--dataset_splits=[train]".into(),
            "--do_eval=false".into(),
            "--eval_strategy=no".into(),
            "--max_steps=-1".into(),
            "--num_train_epochs=0.12".into(),
        ]);
        all
    };
    let stored_files = |out: &Path| {
        let cache = std::fs::read_dir(out.with_file_name(".favonius-cache"));
        let names = cache.into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".logps")).count()
    };
    assert!(start(&arguments(&whole)).wait().unwrap().success());
    assert_eq!(stored_files(&whole), 1, "blocks were left next to the complete file");

    let mut child = start(&arguments(&broken));
    while stored_files(&broken) == 0 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "the pass is too fast for this test");
    assert!(checkpoints(&broken).is_empty(), "the signal came too late for this test");
    let all = arguments(&broken);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let (code, out, err) = run_program(&all);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(" kept from an earlier start"), "{out}");
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&broken), "final weights differ");
    assert_eq!(
        record_without_times(&whole)["log_history"],
        record_without_times(&broken)["log_history"]
    );
}
