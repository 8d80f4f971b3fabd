//! Helpers of the integration tests: assets, small models, small batches, running the program.
#![allow(dead_code)] // each test file uses some of the helpers

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use favonius::data::PreferencePair;
use favonius::model::config::ModelConfig;
use favonius::model::decoder::Decoder;
use favonius::model::weights::parameter;
use serde_json::{Value, json};

/// A folder or file of the real assets. If it is missing: prints that the test is skipped and
/// returns `None`, or panics if `FAVONIUS_REQUIRE_ASSETS=1`.
pub fn asset(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("FAVONIUS_ASSETS").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/assets");
    let found = root.unwrap_or_else(beside).join(path);
    if found.exists() {
        return Some(found);
    }
    assert!(
        std::env::var_os("FAVONIUS_REQUIRE_ASSETS").is_none_or(|value| value != "1"),
        "FAVONIUS_REQUIRE_ASSETS=1, but there is no {} (set FAVONIUS_ASSETS)",
        found.display()
    );
    eprintln!("skipped: {path} is not among the assets (set FAVONIUS_ASSETS)");
    None
}

/// The finalizer of splitmix64, from which all pseudo-random numbers of the tests are made.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A pseudo-random number in [-0.5, 0.5) from a seed and an index.
pub fn uniform(seed: u64, index: u64) -> f32 {
    (splitmix64((seed << 32) + index) >> 40) as f32 / 16_777_216.0 - 0.5
}

/// `len` pseudo-random numbers in [-0.5, 0.5).
pub fn uniforms(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|index| uniform(seed, index)).collect()
}

/// A matrix of pseudo-random numbers in [-0.5, 0.5) on the CPU.
pub fn matrix(seed: u64, rows: usize, columns: usize) -> Tensor<2> {
    let data = burn::tensor::TensorData::new(uniforms(seed, rows * columns), [rows, columns]);
    Tensor::from_data(data, &Device::flex())
}

/// The config.json of a small Mistral, with the keys of `changes` replaced.
pub fn small_config(changes: Value) -> Arc<ModelConfig> {
    let mut raw = json!({"model_type": "mistral", "vocab_size": 61, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0});
    for (key, value) in changes.as_object().expect("changes are an object") {
        raw[key] = value.clone();
    }
    Arc::new(ModelConfig::from_json(raw, Path::new("config.json")).expect("a valid config"))
}

/// A model whose weights come from [`uniform`]. The seed of a tensor is its index among the sorted
/// tensor names.
pub fn random_model(config: Arc<ModelConfig>, scale: f32) -> Decoder {
    let mut names: Vec<String> =
        favonius::model::weights::parameter_shapes(&config).into_iter().map(|(n, _)| n).collect();
    names.sort();
    let built: Result<_, std::convert::Infallible> = Decoder::build(config, |name, shape| {
        let seed = names.iter().position(|n| *n == name).expect("the name is in the list") as u64;
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values = uniforms(seed, shape.iter().product());
        let values = values.into_iter().map(|x| centre + x * scale).collect();
        Ok(parameter(name, shape, values, &Device::flex(), DType::F32))
    });
    let Ok(model) = built;
    model
}

/// A preference pair of the given lengths, with pseudo-random ids below `vocab`.
pub fn pair(seed: u64, [prompt, chosen, rejected]: [usize; 3], vocab: u32) -> PreferencePair {
    let ids = |part: u64, len: usize| {
        (0..len as u64)
            .map(move |i| (splitmix64(seed * 1000 + part * 100_000 + i) % u64::from(vocab)) as u32)
    };
    PreferencePair {
        prompt: ids(1, prompt).collect(),
        chosen: ids(2, chosen).collect(),
        rejected: ids(3, rejected).collect(),
    }
}

/// The largest |a − b|, divided by the largest |b|.
pub fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The elements of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to float32")
}

/// An empty folder for one test, in cargo's folder for temporary files.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("cargo's folder for tests is writable");
    folder
}

/// A folder with the demo's data, tokenizer, tiny model and recipes, for one test.
pub fn world(name: &str) -> PathBuf {
    let folder = scratch(name);
    favonius::toy::world::write(&folder, 42).expect("the world can be written");
    folder
}

/// The program, without those environment variables of the caller that would change its behavior.
pub fn favonius() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_favonius"));
    for key in ["RUST_LOG", "HF_TOKEN", "HF_HOME", "FAVONIUS_CACHE"] {
        command.env_remove(key);
    }
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// Whether ranks can be started: the build has MPI and `mpirun` is installed.
pub fn can_run_ranks() -> bool {
    if !cfg!(feature = "mpi") {
        eprintln!("skipped: this build has no MPI (cargo test --features mpi)");
        return false;
    }
    let found = std::process::Command::new("mpirun").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no mpirun here (apt-get install openmpi-bin libopenmpi-dev)");
    }
    found
}

/// The program on `ranks` ranks under mpirun; one rank runs without mpirun.
pub fn job(ranks: usize) -> std::process::Command {
    let program = favonius();
    if ranks == 1 {
        return program;
    }
    let mut job = std::process::Command::new("mpirun");
    job.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]);
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => job.env(key, value),
            None => job.env_remove(key),
        };
    }
    job.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    job.arg(program.get_program());
    job
}

/// Runs the program to its end and returns exit code, stdout, stderr.
pub fn run_program(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = favonius().args(arguments).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// trainer_state.json without the values that depend on the clock.
pub fn record_without_times(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("trainer_state.json")).expect("a record");
    let mut record: Value = serde_json::from_str(&text).expect("valid JSON");
    for row in record["log_history"].as_array_mut().expect("a history") {
        let row = row.as_object_mut().expect("a row");
        row.retain(|key, _| !key.ends_with("_runtime") && !key.ends_with("_per_second"));
    }
    record
}
