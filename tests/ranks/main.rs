//! Ranks over MPI: the same bits on any number of ranks, and a clean end if one fails.
//!
//! The tests start real `mpirun` jobs of the program. They need Open MPI and
//! `cargo test --features mpi`. Without these they print that they are skipped.

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod same_bits;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::*;
use favonius::parallel::buckets::Layout;
use serde_json::{Value, json};

fn finish(job: &mut Command) -> Output {
    job.stdin(Stdio::null()).output().expect("the job starts")
}

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The demo's world with rows of very unequal lengths, 4 to 250 tokens.
fn unequal_world(name: &str) -> PathBuf {
    let world = world(name);
    let words = |seed: u64, longest: u64| {
        let count = 1 + splitmix64(seed) % longest;
        let word = |i| {
            ["the", "cat", "sees", "a", "red", "ball", "today"]
                [(splitmix64(seed * 977 + i) % 7) as usize]
        };
        (0..count).map(word).collect::<Vec<_>>().join(" ")
    };
    let message = |role: &str, content: String| json!({"role": role, "content": content});
    let lines = |rows: &mut dyn Iterator<Item = Value>| {
        rows.map(|row| format!("{row}\n")).collect::<String>()
    };
    let longest = |i: u64| if i.is_multiple_of(5) { 40 } else { 4 };
    let chats = &mut (0..43).map(|i| {
        let turns =
            [message("user", words(2 * i, 6)), message("assistant", words(2 * i + 1, longest(i)))];
        json!({"messages": turns})
    });
    std::fs::write(world.join("chats.jsonl"), lines(chats)).unwrap();
    let pairs = &mut (0..43).map(|i| {
        let prompt = message("user", words(900 + 3 * i, longest(i + 2)));
        let side =
            |k: u64| json!([prompt, message("assistant", words(900 + 3 * i + k, longest(i + k)))]);
        json!({"chosen": side(1), "rejected": side(2), "reference": side(3)})
    });
    std::fs::write(world.join("pairs.jsonl"), lines(pairs)).unwrap();
    for (stage, data) in [("sft", "chats"), ("dpo", "pairs")] {
        let recipe = format!(
            "model_name_or_path: {0}/base\ndataset_name: {0}/{data}.jsonl\nmax_length: 128\n\
             learning_rate: 3.0e-3\nwarmup_ratio: 0.1\nreport_to: [none]\n",
            world.display()
        );
        std::fs::write(world.join(format!("{stage}-unequal.yaml")), recipe).unwrap();
    }
    world
}

/// A run with `micro_batches` micro-batches of `rows` rows per step in total, on any number of
/// ranks.
struct Run<'a> {
    recipe: &'a Path,
    stage: &'a str,
    rows: usize,
    micro_batches: usize,
    more: Vec<String>,
}

impl Run<'_> {
    fn arguments(&self, ranks: usize, out: &Path) -> Vec<String> {
        let mut arguments = vec![
            self.stage.to_string(),
            self.recipe.display().to_string(),
            format!("--output_dir={}", out.display()),
            format!("--per_device_train_batch_size={}", self.rows),
            format!("--gradient_accumulation_steps={}", self.micro_batches / ranks),
            "--quiet".into(),
        ];
        arguments.extend(self.more.iter().cloned());
        arguments
    }

    fn start(&self, ranks: usize, out: &Path) -> Command {
        let mut job = job(ranks);
        job.args(self.arguments(ranks, out));
        job
    }

    /// Trains on `ranks` ranks, and returns the output.
    fn train(&self, ranks: usize, out: &Path) -> String {
        let output = finish(&mut self.start(ranks, out));
        assert!(output.status.success(), "{ranks} rank(s): {}", text(&output));
        text(&output)
    }

    /// Trains on each number of ranks, and fails if the bits differ.
    fn assert_same_bits(&self, world: &Path, ranks: &[usize]) {
        let outs: Vec<PathBuf> =
            ranks.iter().map(|n| world.join(format!("{}-on-{n}", self.stage))).collect();
        for (ranks, out) in ranks.iter().zip(&outs) {
            self.train(*ranks, out);
        }
        for (ranks, out) in ranks.iter().zip(&outs).skip(1) {
            assert_same(&outs[0], out, &format!("{} on {ranks} ranks", self.stage));
        }
    }
}

fn settings(settings: &[&str]) -> Vec<String> {
    settings.iter().map(|setting| format!("--{setting}")).collect()
}

/// Fails unless the final weights, the last checkpoint and the record are the same.
fn assert_same(a: &Path, b: &Path, what: &str) {
    let last = |out: &Path| favonius::train::checkpoint::list(out)[0].1.clone();
    let read = |path: PathBuf| std::fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let same = |file: &str, a: &Path, b: &Path| {
        assert!(read(a.join(file)) == read(b.join(file)), "{what}: {file} differs");
    };
    let weights = match a.join("adapter_config.json").is_file() {
        true => "adapter_model.safetensors",
        false => "model.safetensors",
    };
    same(weights, a, b);
    same("optimizer.safetensors", &last(a), &last(b));
    same(weights, &last(a), &last(b));
    let record = |out: &Path| {
        let own = out.display().to_string();
        record_without_times(out).to_string().replace(&own, "")
    };
    assert_eq!(record(a), record(b), "{what}");
}

/// A DPO run with a checkpoint every second step.
fn long_run<'a>(world: &Path, recipe: &'a Path) -> Run<'a> {
    let base = format!("model_name_or_path={}", world.join("base").display());
    let more = [
        &base,
        "max_steps=60",
        "logging_steps=3",
        "save_strategy=steps",
        "save_steps=2",
        "eval_strategy=no",
        "max_train_samples=100",
    ];
    Run { recipe, stage: "dpo", rows: 2, micro_batches: 8, more: settings(&more) }
}

#[test]
fn the_bytes_sent_match_the_formula() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-bytes");
    let recipe = world.join("sft.yaml");
    let base = world.join("base");
    let model = format!("model_name_or_path={}", base.display());
    let more = [&model, "max_steps=3", "max_train_samples=64", "packing=false", "eval_strategy=no"];
    let run =
        Run { recipe: &recipe, stage: "sft", rows: 2, micro_batches: 8, more: settings(&more) };
    let device = burn::tensor::Device::flex();
    let dtype = burn::tensor::DType::F32;
    let model = favonius::model::decoder::Decoder::load(&base, &device, dtype, |_, _| ()).unwrap();
    for ranks in [2, 4] {
        let said = run.train(ranks, &world.join(format!("on-{ranks}")));
        let sent = Layout::of(&model, ranks).bytes_sent(8 / ranks, 4);
        let line = format!("rank 0 sent {sent} bytes of gradients and weights a step");
        assert!(said.contains(&line), "{ranks} ranks: `{line}` is not in {said}");
        // Without padding, the formula depends on the number of weights only.
        let weights: usize = model.parameters().iter().map(|p| p.len()).sum();
        // The embedding's gradient is sent row by row, unless the head is tied to it.
        let gradients =
            weights - if model.lm_head.is_some() { model.embed_tokens.len() } else { 0 };
        let bare = (4 * gradients * (8 / ranks) + 4 * weights) * (ranks - 1) / ranks;
        let padding = sent as f64 / bare as f64;
        assert!((1.0..1.3).contains(&padding), "{sent} bytes sent, {bare} bytes without padding");
    }
}

#[test]
fn collectives_agree_with_a_serial_sum() {
    if !can_run_ranks() {
        return;
    }
    for ranks in [1, 3, 4] {
        let output = finish(job(ranks).args(["dist-check", "--megabytes", "1"]));
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("agree with the serial result to the bit"), "{said}");
        assert!(said.contains("all-gather: ") && said.contains("GB/s"), "{said}");
        assert_eq!(said.matches("rank(s)").count(), 1, "only rank 0 prints: {said}");
    }
}

#[test]
fn ranks_with_different_overrides_are_refused_with_one_message() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-differ");
    let recipe = world.join("dpo.yaml");
    let run = long_run(&world, &recipe);
    let arguments = run.arguments(2, &world.join("out"));
    let mut mixed = job(2);
    mixed.args(&arguments).arg(":");
    mixed.args(["-n", "1"]).arg(favonius().get_program()).args(&arguments).arg("--beta=0.7");
    let output = finish(&mut mixed);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("rank 2 has another recipe or overrides than rank 0"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
}

#[test]
fn a_plan_shows_buckets_and_shards_and_refuses_idle_ranks() {
    let world = world("ranks-plan");
    let recipe = world.join("dpo.yaml").display().to_string();
    let model = format!("--model_name_or_path={}", world.join("base").display());
    let plan = |more: &[&str]| run_program(&[&["plan", &recipe, &model][..], more].concat());
    let (code, out, err) = plan(&["--ranks=4", "--per_device_train_batch_size=2"]);
    assert_eq!(code, Some(0), "{err}");
    for line in ["buckets model.layers.0 … model.layers.", "shards of", "sent by a rank a step"] {
        assert!(out.contains(line), "{out}");
    }
    assert!(
        out.lines().any(|line| line.split_whitespace().eq(["rows", "a", "step", "8"])),
        "{out}"
    );
    let (code, _, err) =
        plan(&["--ranks=16", "--per_device_train_batch_size=2", "--max_train_samples=20"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains(
            "too few for 16 ranks: start at most 10, or set per_device_train_batch_size to 1"
        ),
        "{err}"
    );
}
