//! `favonius evaluate`, and `eval_tasks` in a recipe, on a task of the test's own.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::*;
use serde_json::{Value, json};

const TASK: &str = "\
task: own
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: \"Question: {{question}}\\nAnswer:\"
doc_to_choice: \"{{[right, wrong]}}\"
doc_to_target: 0
metric_list:
  - metric: acc
  - metric: acc_norm
";

const WRITTEN: &str = "\
task: written
dataset_path: json
dataset_kwargs:
  data_files:
    test: rows.jsonl
test_split: test
output_type: generate_until
doc_to_text: \"Question: {{question}}\\nAnswer:\"
doc_to_target: \"{{right}}\"
generation_kwargs:
  until: [\"\\n\"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
";

/// A world with two task files over `rows` questions. Returns the world and the folder of the
/// files.
fn world_with_tasks(name: &str, rows: usize) -> (PathBuf, PathBuf) {
    let world = world(name);
    let tasks = world.join("tasks");
    std::fs::create_dir_all(&tasks).unwrap();
    let row = |index: usize| {
        let (color, other) =
            if index.is_multiple_of(3) { ("red", "blue") } else { ("blue", "red") };
        let question = format!("What color is thing number {index}?");
        json!({"question": question, "right": format!("It is {color}."), "wrong": other})
    };
    let lines: String = (0..rows).map(|index| format!("{}\n", row(index))).collect();
    std::fs::write(tasks.join("rows.jsonl"), lines).unwrap();
    std::fs::write(tasks.join("own.yaml"), TASK).unwrap();
    std::fs::write(tasks.join("written.yaml"), WRITTEN).unwrap();
    (world, tasks)
}

fn arguments(world: &Path, tasks: &Path, out: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let names = "own,written".to_owned();
    let mut all = vec!["evaluate".to_owned(), text(&world.join("base")), "--tasks".into(), names];
    all.extend(["--include_path".into(), text(tasks), "--out".into(), text(out)]);
    all.extend(["--batch-tokens".into(), "64".into(), "--quiet".into()]);
    all
}

fn run(arguments: &[String]) -> (Option<i32>, String, String) {
    run_program(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn results(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap()
}

fn samples(out: &Path, task: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join(format!("samples_{task}.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_evaluation_writes_results_and_samples_and_continues_after_a_kill() {
    let (world, tasks) = world_with_tasks("evaluate-kill", 48);
    let straight = world.join("straight");
    let (code, out, err) = run(&arguments(&world, &tasks, &straight));
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("|own") && out.contains("acc_norm") && out.contains("the model read"),
        "{out}"
    );
    let whole = results(&straight);
    assert_eq!(whole["n-samples"]["own"], json!({"original": 48, "effective": 48}));
    let acc = whole["results"]["own"]["acc,none"].as_f64().unwrap();
    let rows = samples(&straight, "own");
    let right = rows.iter().filter(|row| row["acc"] == 1.0).count();
    assert_eq!(acc, right as f64 / 48.0);
    let logp = |row: &Value, choice: usize| -> f64 {
        row["resps"][choice][0][0].as_str().unwrap().parse().unwrap()
    };
    for row in &rows {
        assert_eq!(row["acc"] == 1.0, logp(row, 0) > logp(row, 1), "{row}");
    }
    assert_eq!(samples(&straight, "written").len(), 48);
    let tokens = &whole["favonius"]["tasks"]["own"];
    assert!(tokens["tokens"].as_u64() < tokens["tokens_without_sharing"].as_u64(), "{tokens}");

    let killed = world.join("killed");
    let mut job = favonius()
        .args(arguments(&world, &tasks, &killed))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let kept = || {
        let files = std::fs::read_dir(&killed).into_iter().flatten().flatten();
        let texts = files.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
        texts.map(|text| text.lines().count()).sum::<usize>()
    };
    while kept() < 2 && job.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    job.kill().unwrap();
    job.wait().unwrap();
    let (code, out, err) = run(&arguments(&world, &tasks, &killed));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("were answered before"), "{out}");
    for task in ["own", "written"] {
        assert_eq!(results(&killed)["results"][task], whole["results"][task]);
        assert_eq!(samples(&killed, task), samples(&straight, task), "the same bits");
    }
}

#[test]
fn mistakes_are_named_before_the_model_answers() {
    let (world, tasks) = world_with_tasks("evaluate-mistakes", 2);
    let base = world.join("base").display().to_string();
    let out = world.join("out").display().to_string();
    let (code, _, err) = run_program(&["evaluate", &base, "--tasks", "helaswag", "--out", &out]);
    assert!(
        code == Some(2) && err.contains("no task `helaswag`; did you mean `hellaswag`"),
        "{err}"
    );
    let (code, _, err) = run_program(&["evaluate", &base, "--data", "nowhere", "--out", &out]);
    assert!(code == Some(2) && err.contains("--data nowhere: no such folder"), "{err}");
    std::fs::write(tasks.join("rows.jsonl"), "{\"question\": \"a\", \"right\": \"b\"}\n").unwrap();
    let (code, _, err) = run(&arguments(&world, &tasks, Path::new(&out)));
    assert!(code == Some(1) && err.contains("rows.jsonl"), "{err}");
}

#[test]
fn a_recipe_evaluates_its_model_and_the_scores_are_on_the_card() {
    let (world, tasks) = world_with_tasks("evaluate-recipe", 12);
    let recipe = world.join("sft.yaml").display().to_string();
    let folder = world.join("run");
    let line = vec![
        "sft".to_owned(),
        recipe,
        format!("--model_name_or_path={}", world.join("base").display()),
        format!("--output_dir={}", folder.display()),
        "--max_steps=2".into(),
        "--eval_strategy=no".into(),
        format!("--eval_tasks_include_path={}", tasks.display()),
    ];
    let with = |tasks: &str| {
        let mut all = line.clone();
        all.push(format!("--eval_tasks={tasks}"));
        run(&all)
    };
    let (code, _, err) = with("onw");
    assert!(code == Some(2) && err.contains("`eval_tasks`: no task `onw`"), "{err}");
    assert!(!folder.join("model.safetensors").exists(), "nothing was trained");
    let (code, out, err) = with("own");
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("|own"), "{out}");
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("  # own (0-Shot)\n  - task:\n"), "{card}");
    assert!(card.contains("## Evaluation results\n") && card.contains("| own (0-shot)"), "{card}");
    let all = std::fs::read_to_string(folder.join("all_results.json")).unwrap();
    assert!(all.contains("\"own_acc\": ") && all.contains("\"train_loss\": "), "{all}");
    let trained = std::fs::metadata(folder.join("model.safetensors")).unwrap().modified().unwrap();
    let (code, out, err) = with("own");
    assert!(code == Some(0) && out.contains("nothing to do"), "{out}{err}");
    let (code, out, err) = with("own,written");
    assert!(code == Some(0) && out.contains("|written"), "{out}{err}");
    let again = std::fs::metadata(folder.join("model.safetensors")).unwrap().modified().unwrap();
    assert_eq!(trained, again, "the model was not trained again");

    let page = world.join("page.html").display().to_string();
    let run_folder = folder.display().to_string();
    let (code, _, err) = run_program(&["report", &run_folder, "--no-answers", "--out", &page]);
    assert_eq!(code, Some(0), "{err}");
    let html = std::fs::read_to_string(page).unwrap();
    assert!(html.contains("<h2>Scores</h2>") && html.contains("own (0-shot)"), "no bars");
}
