//! The programs in `examples/` run to their end. `cargo test` builds them beside the tests.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs an example in a folder of its own and returns what it printed.
fn run(example: &str) -> (PathBuf, String) {
    let test = std::env::current_exe().expect("the test has a path");
    let built = test.ancestors().nth(2).expect("tests are in target/<profile>/deps");
    let folder = common::scratch(example);
    let output = Command::new(built.join("examples").join(example))
        .current_dir(&folder)
        .output()
        .unwrap_or_else(|error| panic!("{example} was not built: {error}"));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    (folder, shown)
}

/// The losses in lines such as `step  10  loss 3.1416`.
fn losses(shown: &str) -> Vec<f64> {
    let last = |line: &str| line.rsplit(' ').next()?.parse().ok();
    shown.lines().filter(|line| line.contains("loss")).filter_map(last).collect()
}

fn is_finished(folder: &Path) -> bool {
    ["model.safetensors", "trainer_state.json", "favonius.json"]
        .iter()
        .all(|name| folder.join(name).is_file())
}

#[test]
fn sft_then_dpo_lowers_both_losses() {
    let (folder, shown) = run("sft_then_dpo");
    let world = folder.join("favonius-example");
    assert!(is_finished(&world.join("sft")) && is_finished(&world.join("dpo")), "{shown}");
    let losses = losses(&shown);
    let dpo = losses.iter().rposition(|loss| (loss - 2f64.ln()).abs() < 0.05);
    let dpo = dpo.unwrap_or_else(|| panic!("no loss is near that of an untrained policy: {shown}"));
    assert!(losses[0] > 2.0 && losses[dpo - 1] < losses[0] / 2.0, "SFT: {losses:?}");
    assert!(losses[losses.len() - 1] < losses[dpo], "DPO: {losses:?}");
}

#[test]
fn an_objective_of_ones_own_is_minimized() {
    let (folder, shown) = run("own_objective");
    assert!(is_finished(&folder.join("favonius-own-objective/policy")), "{shown}");
}

#[test]
fn an_observer_of_ones_own_gets_every_row() {
    let (folder, _) = run("own_observer");
    let csv = std::fs::read_to_string(folder.join("favonius-own-observer/losses.csv")).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("step,epoch,loss,grad_norm,learning_rate"), "{csv}");
    assert_eq!(lines.len(), 21, "a header and a row for each of 20 steps: {csv}");
}
