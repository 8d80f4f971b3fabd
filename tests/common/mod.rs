//! Helpers of the integration tests: assets, small models, small batches, running the program.
#![allow(dead_code, unused_imports)] // each test file uses some of the helpers

pub mod models;
pub mod numbers;

use std::path::{Path, PathBuf};

pub use models::*;
pub use numbers::*;
use serde_json::Value;

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

/// An empty folder for one test, in cargo's folder for test files.
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
