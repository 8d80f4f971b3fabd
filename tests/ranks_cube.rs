//! Ranks over MPI with tensors of CubeCL's CPU runtime: the exchange of gradients and weights that
//! GPUs run, with the kernels of GPUs. MPI sends the tensors through the host's memory, in the
//! order of the ranks, so the numbers are those of one rank to the bit.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::*;
use serde_json::Value;

/// Trains the demo's model for two steps of four micro-batches on `ranks` ranks. Returns the
/// bytes of the weights, and the loss and the gradient norm of each step.
fn train(world: &Path, ranks: usize, dtype: &str) -> (Vec<u8>, Vec<(f64, f64)>) {
    let out: PathBuf = world.join(format!("{dtype}-on-{ranks}"));
    let accumulation = 4 / ranks;
    let mut job = job(ranks);
    job.arg("sft").arg(world.join("sft.yaml"));
    job.arg(format!("--model_name_or_path={}", world.join("base").display()));
    job.arg(format!("--output_dir={}", out.display()));
    job.arg(format!("--gradient_accumulation_steps={accumulation}"));
    job.args(["--device=cube-cpu", "--per_device_train_batch_size=1", "--max_steps=2", "--quiet"]);
    job.args(["--packing=false", "--max_train_samples=16", "--max_length=32", "--logging_steps=1"]);
    job.args(["--eval_strategy=no", "--save_strategy=no", "--learning_rate=1e-3"]);
    job.args(["--bf16=true", &format!("--gradient_reduce_dtype={dtype}")]);
    // One thread for each rank: the ranks share the machine.
    job.env("RAYON_NUM_THREADS", "1");
    let output = job.stdin(Stdio::null()).output().expect("the job starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{ranks} ranks: {}", text(&output.stderr));
    let weights = std::fs::read(out.join("model.safetensors")).unwrap();
    let history = record_without_times(&out)["log_history"].clone();
    let number = |row: &Value, key: &str| row[key].as_f64();
    let rows = history.as_array().unwrap().iter();
    let steps = rows.filter_map(|row| Some((number(row, "loss")?, number(row, "grad_norm")?)));
    (weights, steps.collect())
}

#[test]
fn two_and_four_ranks_give_the_numbers_of_one() {
    if !can_run_ranks() {
        return;
    }
    let world = world("ranks-cube");
    let alone = train(&world, 1, "bfloat16");
    assert_eq!(alone.1.len(), 2);
    assert!(alone.1.iter().all(|(loss, norm)| *loss > 0.1 && *norm > 0.0), "{:?}", alone.1);
    for ranks in [2, 4] {
        let several = train(&world, ranks, "bfloat16");
        assert_eq!(several.1, alone.1, "losses and norms on {ranks} ranks");
        assert!(several.0 == alone.0, "weights on {ranks} ranks");
    }
}
