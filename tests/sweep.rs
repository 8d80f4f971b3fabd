//! `favonius sweep`: all runs of a grid, a run that fails, an interruption, the comparison, and
//! data that the runs compute once and share.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::*;

/// Writes a sweep over the demo's world: 2 losses × 2 seeds, and one run that diverges because its
/// learning rate is far too large.
fn write_sweep(world: &Path) -> String {
    let text = format!(
        "recipe: dpo.yaml\nkind: dpo\noutput_dir: {out}\n\
         overrides:\n  model_name_or_path: {model}\n  max_steps: 6\n  max_train_samples: 48\n\
         \x20 max_eval_samples: 16\n  per_device_train_batch_size: 4\n  gradient_accumulation_steps: 1\n\
         \x20 eval_strategy: \"no\"\n  do_eval: true\n  save_strategy: steps\n  save_steps: 2\n\
         \x20 logging_steps: 2\n  report_to: none\n  warmup_ratio: 0.0\n  max_grad_norm: 0\n\
         grid:\n  loss_type: [sigmoid, ipo]\n  seed: [1, 2]\n\
         list:\n  - {{loss_type: sppo_hard, learning_rate: 1.0e+38}}\n",
        out = world.join("scan").display(),
        model = world.join("base").display(),
    );
    let path = world.join("scan.yaml");
    std::fs::write(&path, text).expect("the world can be written");
    path.display().to_string()
}

fn lines_of_log(world: &Path, run: &str, part: &str) -> usize {
    let log = std::fs::read_to_string(world.join("scan").join(run).join("run.log"));
    log.unwrap_or_default().lines().filter(|line| line.contains(part)).count()
}

const RUNS: [&str; 5] = [
    "loss_type-sigmoid_seed-1",
    "loss_type-sigmoid_seed-2",
    "loss_type-ipo_seed-1",
    "loss_type-ipo_seed-2",
    "loss_type-sppo_hard_learning_rate-1.0e+38",
];

#[test]
fn a_grid_completes_despite_a_failed_run_and_an_interruption() {
    let world = world("sweep-grid");
    let sweep = write_sweep(&world);

    let (code, plan, err) = run_program(&["sweep", &sweep, "--plan"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(plan.contains("5 runs of"), "{plan}");
    assert!(plan.contains("6 a run, 30 in all"), "{plan}");
    assert!(plan.contains("log-probs computed once for 5 runs"), "{plan}");
    assert!(plan.contains("0 finished, 5 to run"), "{plan}");
    assert!(!world.join("scan").join(RUNS[0]).exists(), "the plan started a run");

    interrupt_after_the_first_checkpoint(&world, &sweep);
    let (code, text, err) = run_program(&["sweep", &sweep, "--jobs", "2"]);
    assert_eq!(code, Some(1), "{text}{err}");
    assert!(err.contains("1 of 5 runs failed"), "{err}");
    assert!(text.contains("FAILED"), "{text}");
    for run in &RUNS[..4] {
        assert!(world.join("scan").join(run).join("model.safetensors").is_file(), "{run}\n{text}");
    }
    assert!(text.contains("mean ± standard deviation over seeds"), "{text}");
    let has_error = |run: &&str| world.join("scan").join(run).join("error.json").is_file();
    let with_error: Vec<&str> = RUNS.into_iter().filter(has_error).collect();
    assert_eq!(with_error, [RUNS[4]], "only the failed run leaves its error");

    // One run computed the reference log-probs of both splits; the other runs reuse them.
    let made: usize = RUNS.iter().map(|run| lines_of_log(&world, run, " pairs in ")).sum();
    assert_eq!(made, 2, "expected one pass over training rows and one over held-out rows");
    let stored = std::fs::read_dir(world.join("scan/.favonius-cache")).expect("a shared cache");
    let names: Vec<String> =
        stored.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".logps")).count(), 2, "{names:?}");
    assert_eq!(names.iter().filter(|name| name.starts_with("tokens-")).count(), 1, "{names:?}");

    check_csv(&world);

    // Finished runs are not repeated; the failed one is tried again. Output that is not a terminal
    // has no colors.
    let is_tokens = |path: &PathBuf| path.to_string_lossy().contains("/tokens-");
    let mut stored = std::fs::read_dir(world.join("scan/.favonius-cache")).unwrap().flatten();
    let tokens = stored.find_map(|entry| Some(entry.path()).filter(is_tokens)).unwrap();
    std::fs::write(tokens, [7; 100]).unwrap();
    let (code, again, err) = run_program(&["sweep", &sweep]);
    assert_eq!(code, Some(1));
    assert!(again.contains("4 finished, 1 to run") && again.contains("run 1 of 1:"), "{again}");
    assert!(err.contains("the token cache is damaged") && !err.contains('\u{1b}'), "{err:?}");

    check_comparison_alone(&world, &sweep);
}

/// `--compare-only` starts no run, and still shows the error of the failed run.
fn check_comparison_alone(world: &Path, sweep: &str) {
    let log = || std::fs::read(world.join("scan").join(RUNS[4]).join("run.log")).unwrap();
    let before = log();
    for name in ["runs.csv", "means.csv", "sweep.html"] {
        std::fs::remove_file(world.join("scan").join(name)).unwrap();
    }
    let (code, text, err) = run_program(&["sweep", sweep, "--compare-only"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("4 of 5 runs are finished") && text.contains("FAILED: step "), "{text}");
    assert!(!text.contains("run 1 of") && before == log(), "a run was started: {text}");
    check_csv(world);

    // The comparison also works in a copy of the folder.
    let moved = world.join("moved");
    std::fs::rename(world.join("scan"), &moved).unwrap();
    let there = format!("--output-dir={}", moved.display());
    let (code, text, err) = run_program(&["sweep", sweep, "--compare-only", &there]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(
        text.contains("4 of 5 runs are finished") && moved.join("sweep.html").is_file(),
        "{text}"
    );

    // A damaged record of one run does not prevent the tables and the page of the others.
    std::fs::write(moved.join(RUNS[0]).join("trainer_state.json"), "{").unwrap();
    std::fs::remove_file(moved.join("sweep.html")).unwrap();
    let (code, text, err) = run_program(&["sweep", sweep, "--compare-only", &there]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert_eq!(text.matches("NO RECORD: ").count(), 1, "{text}");
    let page = std::fs::read_to_string(moved.join("sweep.html")).unwrap();
    assert!(page.contains("is not valid JSON"), "the page does not name the error");
    assert!(
        page.contains("sigmoid · seed 2, held out"),
        "the curves of the other runs are missing"
    );
}

/// The sweep forwards the signal to the current run, which saves and ends.
fn interrupt_after_the_first_checkpoint(world: &Path, sweep: &str) {
    let mut child = favonius()
        .args(["sweep", sweep, "--max_steps=6"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let checkpoint = world.join("scan").join(RUNS[0]).join("checkpoint-2");
    wait_until("the first run never reached its first checkpoint", || checkpoint.is_dir());
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(
        !world.join("scan").join(RUNS[4]).join("run.log").exists(),
        "the sweep started another run"
    );
}

fn check_csv(world: &Path) {
    let read = |name: &str| std::fs::read_to_string(world.join("scan").join(name)).unwrap();
    let runs = read("runs.csv");
    let lines: Vec<&str> = runs.lines().collect();
    assert_eq!(
        lines[0],
        "loss_type,seed,learning_rate,eval_loss,eval_accuracy,eval_margin,chosen_log_ratio,train_runtime,status"
    );
    assert_eq!(lines.len(), 6);
    for line in &lines[1..5] {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(
            (cells[2], cells[8]),
            ("1.0e-4", "finished"),
            "not the learning rate of the recipe: {line}"
        );
        for cell in &cells[3..8] {
            assert!(cell.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        }
    }
    assert!(lines[5].starts_with("sppo_hard,42,1.0e+38,,,,,,FAILED: step "), "{}", lines[5]);
    let error = lines[5].split_once("FAILED: ").unwrap().1;
    check_page(&read("sweep.html"), error);
    let means = read("means.csv");
    assert!(means.lines().nth(1).unwrap().starts_with("sigmoid,1.0e-4,2,"), "{means}");
}

/// The page starts with tables of all runs; the curves of the finished runs follow, with short
/// names.
fn check_page(page: &str, error: &str) {
    let place = |part: &str| page.find(part).unwrap_or_else(|| panic!("no `{part}` on the page"));
    let order = ["<h2>Runs</h2>", "<h2>Mean ± standard", "<h2>All runs</h2>", "<figure"];
    assert!(order.map(place).is_sorted(), "the tables are not at the start of the page");
    for run in RUNS {
        place(&format!("{run}\""));
    }
    place("sigmoid · seed 1, held out");
    let start: String = error.trim_matches('"').chars().take(30).collect();
    assert!(page.matches(&start).count() >= 2, "`{start}` is not on the page in short and in full");
    for title in ["<b>Loss, sigmoid</b>", "<b>Loss, ipo</b>", "<b>Reward accuracy</b>"] {
        assert_eq!(page.matches(title).count(), 1, "{title}");
    }
    assert!(
        !page.contains("Step by step") && !page.contains(">difference<"),
        "no run is the first"
    );
}

/// This holds even for SIGKILL. Otherwise an orphaned run and the same run of the next start would
/// train into the same folder.
#[test]
#[cfg(target_os = "linux")]
fn a_killed_sweep_stops_its_run() {
    let world = world("sweep-killed");
    let sweep = write_sweep(&world);
    let mut child = favonius()
        .args(["sweep", &sweep, "--max_steps=100000", "--save_total_limit=2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let folder = world.join("scan").join(RUNS[0]);
    wait_until("the run never reached its first checkpoint", || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        entries.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("checkpoint-"))
    });
    let recipe = world.join("dpo.yaml").display().to_string();
    let (code, _, err) =
        run_program(&["dpo", &recipe, &format!("--output_dir={}", folder.display())]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("another process is training into"), "{err}");

    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the run did not stop", || std::fs::File::open(&folder).unwrap().try_lock().is_ok());
    assert_eq!(lines_of_log(&world, RUNS[0], "stopped by a signal after step"), 1);
}

fn wait_until(otherwise: &str, is_so: impl Fn() -> bool) {
    for _ in 0..2400 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{otherwise}");
}

#[test]
fn mistakes_are_reported_before_the_first_run_starts() {
    let world = world("sweep-mistakes");
    let sweep = write_sweep(&world);
    let (code, _, err) = run_program(&["sweep", &sweep, "--betta=0.3"]);
    assert_eq!(code, Some(2));
    assert_eq!(err.matches("`betta` is not a known key").count(), 1, "{err}");
    assert!(!world.join("scan").exists());
    for (wrong, message) in
        [("--seed=3", "`seed` varies in the sweep"), ("--output-dir=", "`output_dir` is empty")]
    {
        let (code, _, err) = run_program(&["sweep", &sweep, wrong]);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.starts_with("command line: ") && err.contains(message), "{err}");
    }
    let (code, _, err) = run_program(&["sweep", &sweep, "--jobs=many"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("'--jobs <N>': a whole number of at least 1"), "{err}");
}

#[test]
fn a_job_array_has_one_task_per_run_and_changed_settings_are_refused() {
    let world = world("sweep-slurm");
    let sweep = write_sweep(&world);
    let (code, text, err) = run_program(&["sweep", &sweep, "--slurm", "--jobs=2", "--beta=0.3"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(
        text.contains(&format!("`favonius sweep {sweep} --compare-only --beta=0.3`")),
        "{text}"
    );
    let script = std::fs::read_to_string(world.join("scan/sweep.slurm")).unwrap();
    assert!(script.contains("#SBATCH --array=0-4%2\n#SBATCH --ntasks=1\n"), "{script}");
    assert!(script.contains("#SBATCH --job-name=scan\n"), "{script}");
    let logs = world.join("scan/slurm-%A_%a.out");
    assert!(logs.is_absolute() && script.contains(&format!("--output={}\n", logs.display())));
    assert_eq!(script.matches("exec srun").count(), 5, "{script}");
    let checked = std::process::Command::new("bash")
        .args(["-n", &world.join("scan/sweep.slurm").display().to_string()])
        .status()
        .unwrap();
    assert!(checked.success(), "not a shell script:\n{script}");

    let (code, text, err) = run_program(&["sweep", &sweep, "--compare-only", "--beta=0.3"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("0 of 5 runs are finished") && text.contains("not done"), "{text}");
    assert!(!world.join("scan").join(RUNS[0]).join("run.log").exists(), "a run was started");

    // No run was started, so the settings may still change.
    let corrected = ["sweep", &sweep, "--plan", "--beta=0.3", "--max_steps=7"];
    let (code, _, err) = run_program(&corrected);
    assert_eq!(code, Some(0), "{err}");

    run_task(&world, 4);
    let (code, text, err) = run_program(&["sweep", &sweep, "--compare-only", "--beta=0.3"]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("FAILED: step "), "the error of the task is not shown: {text}");

    for run in &RUNS[1..3] {
        std::fs::create_dir(world.join("scan").join(run).join("checkpoint-2")).unwrap();
    }
    let (code, _, err) = run_program(&corrected);
    assert_eq!(code, Some(1));
    for run in &RUNS[1..3] {
        assert!(err.contains(&format!("{run}: `max_steps` was 6 there and is 7 now")), "{err}");
    }

    let elsewhere = format!("--output_dir={}", world.join("elsewhere").display());
    let token = "--hub_token=hf_secret";
    let (code, text, err) = run_program(&["sweep", &sweep, "--slurm", token, &elsewhere]);
    assert_eq!(code, Some(0), "{text}{err}");
    assert!(text.contains("set HF_TOKEN for the tasks"), "{text}");
    assert!(text.contains(&format!("--compare-only {elsewhere}`")), "{text}");
    let script = std::fs::read_to_string(world.join("elsewhere/sweep.slurm")).unwrap();
    assert!(script.contains(&world.join("elsewhere").join(RUNS[0]).display().to_string()));
    assert!(!script.contains("hf_secret") && !text.contains("hf_secret"), "{text}{script}");
}

/// Runs one task of the job array, with a stand-in for `srun` that redirects the output as
/// requested.
fn run_task(world: &Path, index: usize) {
    let bin = world.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let srun = "#!/usr/bin/env bash\nlog=${1#--output=}\nshift 2\nexec \"$@\" >> \"$log\" 2>&1\n";
    std::fs::write(bin.join("srun"), srun).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let script = "chmod +x \"$1/bin/srun\"; bash \"$1/scan/sweep.slurm\"";
    let status = std::process::Command::new("bash")
        .args(["-c", script, "bash", &world.display().to_string()])
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("SLURM_ARRAY_TASK_ID", index.to_string())
        .env("HF_HUB_OFFLINE", "1")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1), "the task should have failed");
}
