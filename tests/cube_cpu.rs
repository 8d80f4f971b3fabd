//! Whole runs with the kernels for GPUs, on CubeCL's CPU runtime: the numbers of TRL, few kernels,
//! few copies between host and device.
//!
//! The runs share this process, so that each kernel is compiled once.

mod common;
#[path = "common/golden.rs"]
mod golden;

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use common::*;
use cubecl::hash::StableHash;
use cubecl::launched::LaunchedKernels;
use favonius::kernels::host::HostCopies;
use favonius::parallel::Ranks;
use favonius::recipe::{Recipe, Stage};
use favonius::run::{Context, Ending, run_recipe};
use favonius::train::event::{Event, LogRow, Observer};
use golden::*;
use serde_json::{Value, json};

const DEVICE: &str = "cube-cpu";

/// Kernels of a run, at most: those of a step and those of an evaluation.
const MOST_KERNELS: usize = 36;

/// Kernels that a run launches after its first two steps only, at most: those of an evaluation, and
/// variants of a kernel for other alignments.
const MOST_LATE_KERNELS: usize = 4;

/// Copies from the host to the device in a step of one micro-batch, at most: token ids, tables of
/// segments, rotary angles, rows and targets of the head. Their number does not depend on the
/// number of layers.
const MOST_UPLOADS: u64 = 21;

/// The same for each further kind of layers: tables of segments and rotary angles.
const UPLOADS_OF_A_KIND: u64 = 6;

/// Kernels and copies are counted for the whole process: one run at a time.
static ONE_RUN: Mutex<()> = Mutex::new(());

/// What a run did from the end of one step to the end of the next.
struct Step {
    /// Kernels that no earlier step of the run had launched.
    new_kernels: usize,
    copies: HostCopies,
    /// Whether an evaluation was part of it.
    is_evaluated: bool,
}

/// Watches a run.
struct Watched {
    rows: Vec<Value>,
    steps: Vec<Step>,
    launched: Option<LaunchedKernels>,
    kernels: HashSet<StableHash>,
    /// Kernels that the run launched after its last step only.
    kernels_at_end: usize,
    copies: HostCopies,
    is_evaluated: bool,
    started: Instant,
}

impl Watched {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            steps: Vec::new(),
            launched: Some(LaunchedKernels::new()),
            kernels: HashSet::new(),
            kernels_at_end: 0,
            copies: HostCopies::so_far(),
            is_evaluated: false,
            started: Instant::now(),
        }
    }

    /// Kernels that the run launched after its first two steps only.
    fn late_kernels(&self) -> usize {
        let late: usize = self.steps.iter().skip(2).map(|step| step.new_kernels).sum();
        late + self.kernels_at_end
    }

    /// Adds the kernels that were launched since the last call. Returns how many of them are new.
    fn collect_kernels(&mut self) -> usize {
        let launched = self.launched.replace(LaunchedKernels::new());
        let known = self.kernels.len();
        self.kernels.extend(launched.map(LaunchedKernels::finish).unwrap_or_default());
        self.kernels.len() - known
    }

    fn end_step(&mut self) {
        let new_kernels = self.collect_kernels();
        let copies = HostCopies::so_far();
        let is_evaluated = std::mem::take(&mut self.is_evaluated);
        self.steps.push(Step { new_kernels, copies: copies.since(self.copies), is_evaluated });
        self.copies = copies;
    }
}

impl Observer for Watched {
    fn on(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Phase { name, .. } | Event::PhaseEnd { name } => {
                self.is_evaluated |= *name == "evaluation";
                println!("{:8.1} s  {name}", self.started.elapsed().as_secs_f64());
            }
            Event::Step { step, .. } => {
                self.end_step();
                let Step { new_kernels, copies, .. } = self.steps.last().expect("a step ended");
                let seconds = self.started.elapsed().as_secs_f64();
                println!("{seconds:8.1} s  step {step}: {new_kernels} new kernels, {copies:?}");
            }
            Event::Log(row) => self.rows.push(as_json(row)),
            _ => {}
        }
        Ok(())
    }
}

/// A row as `trainer_state.json` has it.
fn as_json(row: &LogRow) -> Value {
    let mut value = json!({"step": row.step, "epoch": row.epoch});
    for (name, number) in &row.values {
        value[name] = json!(number);
    }
    value
}

/// Runs a recipe to its end, with changes.
fn run(kind: &str, recipe: &Path, overrides: &[String]) -> Watched {
    let stage = Stage::of_command(kind).expect("a stage");
    let recipe = Recipe::load(recipe, stage, overrides).expect("a valid recipe");
    let (ranks, stop) = (Ranks::one(), AtomicBool::new(false));
    let context = Context { ranks: &ranks, stop: &stop };
    let mut watched = Watched::new();
    let ending = run_recipe(recipe, &context, &mut watched).expect("the run succeeds");
    assert!(matches!(ending, Ending::Finished));
    watched.kernels_at_end = watched.collect_kernels();
    watched
}

/// Runs a golden run, and compares its log and its weights with TRL's. Returns the run and what
/// differs; `None` if the assets are missing.
fn golden_run(name: &str) -> Option<(Watched, Vec<String>)> {
    let _one_run = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let golden = golden(name);
    let work = scratch(&format!("cube-cpu-{name}"));
    let (start, recipe) = write_recipe(&golden, &work)?;
    let overrides = [format!("--device={DEVICE}")];
    let watched = run(golden["kind"].as_str().expect("a stage"), &recipe, &overrides);
    println!("{name}: {} kernels, {} late", watched.kernels.len(), watched.late_kernels());
    let comparison = Comparison { name, golden: &golden, device: Some(DEVICE) };
    let mut wrong = comparison.of_logs(&watched.rows);
    wrong.extend(compare_weights(name, &golden, &start, &work.join("out")));
    Some((watched, wrong))
}

/// Runs a golden run. Checks how many kernels it compiles, when it does, and what it copies;
/// `reads` is the number of copies to the host in a step, `kinds` the number of kinds of layers.
fn agrees(name: &str, reads: u64, kinds: u64) {
    let Some((watched, wrong)) = golden_run(name) else { return };
    assert!(wrong.is_empty(), "{} numbers differ:\n{}", wrong.len(), wrong.join("\n"));
    let (kernels, late) = (watched.kernels.len(), watched.late_kernels());
    assert!(kernels <= MOST_KERNELS, "{name}: {kernels} kernels");
    assert!(late <= MOST_LATE_KERNELS, "{name}: {late} kernels after two steps");
    let uploads = MOST_UPLOADS + UPLOADS_OF_A_KIND * (kinds - 1);
    // The first step's numbers include the reference pass.
    let trained = watched.steps.iter().skip(1).filter(|step| !step.is_evaluated);
    for Step { copies, .. } in trained {
        assert_eq!(copies.reads, reads, "{name}: {copies:?}");
        assert!(copies.uploads <= uploads, "{name}: {copies:?}");
    }
}

/// One read for the scores of the scored tokens, one for the gradient norm.
#[test]
fn sft_window() {
    agrees("sft_window", 2, 1);
}

#[test]
fn sft_bfd() {
    agrees("sft_bfd", 2, 1);
}

/// One more read for the mean logits of all tokens, which TRL's ORPO logs.
#[test]
fn orpo() {
    agrees("orpo", 3, 1);
}

#[test]
fn kto() {
    agrees("kto", 2, 1);
}

#[test]
fn dpo_stories() {
    agrees("dpo_stories", 2, 1);
}

/// Soft caps of scores and logits, windows in every other layer.
#[test]
fn sft_gemma2() {
    agrees("sft_gemma2", 2, 2);
}

/// Heads of which a part is rotated.
#[test]
fn sft_phi3() {
    agrees("sft_phi3", 2, 1);
}

/// Other families, adapters, optimizers and losses, whose layers partly run composed of Burn's
/// operations. It takes several minutes: `cargo test … --test cube_cpu -- --ignored others`.
#[test]
#[ignore = "several minutes"]
fn others() {
    let runs = OTHERS.iter().filter_map(|name| golden_run(name));
    let wrong: Vec<String> = runs.flat_map(|(_, wrong)| wrong).collect();
    assert!(wrong.is_empty(), "{} numbers differ:\n{}", wrong.len(), wrong.join("\n"));
}

const OTHERS: &[&str] = &[
    "dpo_phi3_long",
    "sft_gemma",
    "dpo_gemma2",
    "sft_gemma3_text",
    "sft_lora",
    "dpo_lora",
    "sft_adafactor",
    "sft_lion",
    "sft_neftune",
    "sft_label_smoothing",
    "dpo_ld_alpha",
    "simpo",
    "tpo",
    "kto_bco",
    "sft_qwen3",
    "sft_olmo2",
    "sft_starcoder2",
    "sft_granite",
    "dpo_qlora",
    "sft_mixtral",
];

/// 30 steps of DPO in bfloat16 against TRL's in float32: in each step the loss differs by less than
/// 1 % and rewards by less than 2e-2. It takes minutes:
/// `cargo test … --test cube_cpu -- --ignored bfloat16`.
#[test]
#[ignore = "minutes"]
fn bfloat16_follows_float32() {
    let _one_run = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let golden = golden("dpo_mistral");
    let work = scratch("cube-cpu-bfloat16");
    let Some((_, recipe)) = write_recipe(&golden, &work) else { return };
    let overrides =
        [format!("--device={DEVICE}"), "--bf16=true".into(), "--eval_strategy=no".into()];
    let watched = run("dpo", &recipe, &overrides);
    let numbers = |rows: &[Value], name: &str| -> Vec<f64> {
        let steps = rows.iter().filter(|row| row.get("loss").is_some());
        steps.map(|row| row[name].as_f64().expect("a number")).collect()
    };
    let theirs = golden["log"].as_array().expect("a log");
    let mut within = true;
    for (name, is_relative, tolerance) in
        [("loss", true, 1e-2), ("rewards/chosen", false, 2e-2), ("rewards/rejected", false, 2e-2)]
    {
        let (ours, theirs) = (numbers(&watched.rows, name), numbers(theirs, name));
        assert_eq!((ours.len(), theirs.len()), (30, 30));
        let differences = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| (ours - theirs).abs() / if is_relative { *theirs } else { 1.0 });
        let most = differences.clone().fold(0.0, f64::max);
        let mean = differences.sum::<f64>() / 30.0;
        println!("{name}: {mean:.2e} on average, {most:.2e} at most");
        within &= most < tolerance;
    }
    assert!(within, "bfloat16 is too far from float32");
}

/// `--device=cuda` without a driver or a GPU ends with its message.
#[cfg(feature = "cuda")]
#[test]
fn without_a_gpu_the_device_cuda_says_so() {
    if favonius::model::device::find("cuda").is_ok() {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let world = world("no-gpu");
    let recipe = world.join("sft.yaml").display().to_string();
    let (code, _, stderr) = run_program(&["sft", &recipe, "--device=cuda"]);
    assert_eq!(code, Some(1), "{stderr}");
    let message = "device `cuda:0`: no NVIDIA driver or no GPU was found; `--device=cpu` runs \
                   without one";
    assert!(stderr.contains(message) && !stderr.contains("panicked"), "{stderr}");
}
