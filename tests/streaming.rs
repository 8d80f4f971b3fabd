//! `streaming: true` gives the run that the same rows give in the order of the files, and continues
//! after a kill with the same bits.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

/// Rows of each data set. One of them has a prompt that leaves no room for a response.
const ROWS: u64 = 80;

/// A world with chats of different lengths, and pairs with a gold response.
fn streamed_world(name: &str) -> PathBuf {
    let world = world(name);
    let words = |seed: u64, longest: u64| {
        let word = |i| {
            ["the", "cat", "sees", "a", "red", "ball", "today"]
                [(splitmix64(seed * 977 + i) % 7) as usize]
        };
        (0..1 + splitmix64(seed) % longest).map(word).collect::<Vec<_>>().join(" ")
    };
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let row = |i: u64| {
        let prompt = match i {
            7 => turn("user", "cat ".repeat(200)),
            _ => turn("user", words(900 + 5 * i, 6)),
        };
        let side = |k: u64| json!([prompt, turn("assistant", words(900 + 5 * i + k, 20))]);
        json!({"messages": side(1), "chosen": side(2), "rejected": side(3), "reference": side(4)})
    };
    let rows: String = (0..ROWS).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(world.join("rows.jsonl"), rows).unwrap();
    world
}

/// The arguments of a run of eight steps.
fn arguments(world: &Path, stage: &str, out: &Path, more: &[&str]) -> Vec<String> {
    let recipe = world.join("streamed.yaml");
    let text = format!(
        "model_name_or_path: {0}/base\ndataset_name: {0}/rows.jsonl\nmax_length: 96\n\
         learning_rate: 3.0e-3\nreport_to: none\nlogging_steps: 1\nmax_steps: 8\n\
         per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nsave_steps: 3\n",
        world.display()
    );
    std::fs::write(&recipe, text).unwrap();
    let mut arguments = vec![stage.to_owned(), recipe.display().to_string()];
    arguments.push(format!("--output_dir={}", out.display()));
    arguments.extend(more.iter().map(|more| format!("--{more}")));
    arguments
}

fn run(arguments: &[String]) -> (Option<i32>, String) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, _, err) = run_program(&arguments);
    (code, err)
}

/// The history without times and epochs: an epoch of a streamed run is the whole run.
fn history(out: &Path) -> Value {
    let mut history = record_without_times(out)["log_history"].take();
    for row in history.as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("epoch");
    }
    history
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

#[test]
fn streamed_rows_give_the_run_of_the_same_order() {
    let world = streamed_world("streaming-same");
    let runs: [(&str, &[&str]); 7] = [
        ("sft", &[]),
        ("sft", &["packing=true", "max_length=48", "max_steps=5"]),
        ("sft", &["packing=true", "packing_strategy=wrapped", "max_length=48", "max_steps=5"]),
        ("dpo", &[]),
        ("dpo", &["use_peft=true", "lora_r=2", "ld_alpha=0.5"]),
        ("orpo", &["per_device_train_batch_size=4"]),
        ("tpo", &["loss_type=tpo-l", "beta=2"]),
    ];
    for (index, (stage, more)) in runs.into_iter().enumerate() {
        let [whole, streamed] = ["whole", "streamed"].map(|name| {
            let out = world.join(format!("{name}-{index}"));
            let own = match name {
                "whole" => "train_sampling_strategy=sequential",
                _ => "streaming=true",
            };
            let (code, err) = run(&arguments(&world, stage, &out, &[more, &[own]].concat()));
            assert_eq!(code, Some(0), "{stage} {more:?} {own}: {err}");
            out
        });
        assert_eq!(history(&whole), history(&streamed), "{stage} {more:?}");
        if !more.contains(&"use_peft=true") {
            assert!(weights(&whole) == weights(&streamed), "{stage} {more:?}: the weights differ");
        }
    }
}

#[test]
fn a_streamed_run_resumes_with_the_same_bits() {
    let world = streamed_world("streaming-resumed");
    for (stage, more) in [("sft", "packing=false"), ("dpo", "beta=0.2")] {
        let [whole, broken] = ["whole", "broken"].map(|name| {
            let out = world.join(format!("{stage}-{name}"));
            let arguments = arguments(&world, stage, &out, &["streaming=true", more]);
            assert_eq!(run(&arguments).0, Some(0));
            out
        });
        std::fs::remove_dir_all(broken.join("checkpoint-6")).unwrap();
        std::fs::remove_dir_all(broken.join("checkpoint-8")).unwrap();
        std::fs::remove_file(broken.join("favonius.json")).unwrap();
        let again = arguments(&world, stage, &broken, &["streaming=true", more]);
        let (code, err) = run(&again);
        assert_eq!(code, Some(0), "{err}");
        assert!(weights(&whole) == weights(&broken), "{stage}: the weights differ");
        assert_eq!(history(&whole), history(&broken), "{stage}");
    }
}

#[test]
fn a_stream_that_is_too_short_or_has_bad_rows_ends_the_run() {
    let world = streamed_world("streaming-errors");
    let failed = |name: &str, more: &[&str]| {
        let out = world.join(name);
        let more = [&["streaming=true"], more].concat();
        let (code, err) = run(&arguments(&world, "orpo", &out, &more));
        assert_eq!(code, Some(1), "{err}");
        err
    };
    // Known from the counts of the files, before the first step.
    let err = failed("long", &["max_steps=21"]);
    assert!(err.contains("only 80 rows to train on, but `max_steps` takes 84"), "{err}");
    // One of 80 rows leaves no room for a response.
    let err = failed("full", &["max_steps=20"]);
    assert!(err.contains("only 79 rows to train on, but `max_steps` takes 80"), "{err}");

    let mut rows = std::fs::read_to_string(world.join("rows.jsonl")).unwrap();
    for _ in 0..3 {
        rows.insert_str(0, "{\"chosen\": null, \"rejected\": null}\n");
    }
    std::fs::write(world.join("rows.jsonl"), rows).unwrap();
    let err = failed("bad", &[]);
    assert!(err.contains("max_bad_rows") && err.contains("`chosen` is null"), "{err}");
}

/// The thread that reads has threads of its own, so that it does not need the one that waits.
#[test]
fn a_streamed_run_works_on_one_thread() {
    let world = streamed_world("streaming-one-thread");
    let outs = ["1", "2"].map(|threads| {
        let out = world.join(threads);
        let arguments = arguments(&world, "orpo", &out, &["streaming=true"]);
        let mut command = favonius();
        let command = command.args(&arguments).env("RAYON_NUM_THREADS", threads);
        assert!(command.output().unwrap().status.success());
        out
    });
    assert!(weights(&outs[0]) == weights(&outs[1]));
}
