//! Broken inputs. Each case breaks one file of the demo's world, runs the program, and checks the
//! exit code and the error message. Nothing may panic.

mod checkpoints;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod hostile;
mod models;
mod recipes;
mod tokenizers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

/// The exit code of bad usage and of recipes with errors.
const USAGE: i32 = 2;
/// The exit code of every other failure.
const FAILED: i32 = 1;

/// One broken input.
struct Case {
    name: &'static str,
    /// `sft`, `dpo`, `run` or `plan`, then overrides. The program runs in the case's folder.
    command: &'static str,
    harm: fn(&Path),
    /// Lines that the error message must contain, in this order.
    seen: &'static str,
}

fn case(name: &'static str, command: &'static str, harm: fn(&Path), seen: &'static str) -> Case {
    Case { name, command, harm, seen }
}

/// Runs all cases and fails with a list of those that did not end as expected.
#[track_caller]
fn check(group: &str, code: i32, cases: &[Case]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let folder = place(&format!("{group}-{}", case.name));
            (case.harm)(&folder);
            let (found, out, err) = run(&folder, case.command);
            let problem = problem(case, code, found, &err)?;
            Some(format!("{}: {problem}\n{out}{err}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn problem(case: &Case, code: i32, found: Option<i32>, err: &str) -> Option<String> {
    if found != Some(code) {
        return Some(format!("exit code {found:?} instead of {code}"));
    }
    if err.contains("panicked") {
        return Some("it panicked".to_owned());
    }
    let mut rest = err;
    for line in case.seen.lines().map(str::trim) {
        match rest.find(line) {
            Some(at) => rest = &rest[at + line.len()..],
            None => return Some(format!("`{line}` is not in the message, or not in this order")),
        }
    }
    None
}

/// Runs the program in `folder`, so that its messages have the same relative paths as the recipe.
fn run(folder: &Path, command: &str) -> (Option<i32>, String, String) {
    let mut words = command.split_whitespace();
    let subcommand = words.next().expect("a subcommand");
    let file = match subcommand {
        "dpo" => "dpo.yaml",
        "run" => "pipeline.yaml",
        _ => "sft.yaml",
    };
    let mut program = common::favonius();
    program.current_dir(folder).arg(subcommand).arg(file).args(words);
    let output = program.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The demo's world, written once. The cases break copies of its model, tokenizer and parquet
/// files.
fn world() -> &'static Path {
    static WORLD: OnceLock<PathBuf> = OnceLock::new();
    WORLD.get_or_init(|| common::world("bad-input"))
}

/// The folder of one case: `base` (model and tokenizer), `chats.jsonl`, `pairs.jsonl`, the pipeline
/// and two recipes of five lines each.
fn place(name: &str) -> PathBuf {
    let folder = common::scratch(&format!("bad-input-{name}"));
    let base = folder.join("base");
    fs::create_dir(&base).expect("a folder");
    for entry in fs::read_dir(world().join("base")).expect("a model folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), base.join(entry.file_name())).expect("a copy");
    }
    let rows =
        |row: fn(usize) -> Value| (0..8).map(|n| format!("{}\n", row(n))).collect::<String>();
    write(&folder, "chats.jsonl", rows(data::chat));
    write(&folder, "pairs.jsonl", rows(data::pair));
    for (file, rows) in [("sft.yaml", "chats.jsonl"), ("dpo.yaml", "pairs.jsonl")] {
        let recipe = format!(
            "model_name_or_path: base\ndataset_name: {rows}\noutput_dir: out\nmax_steps: 2\n\
             per_device_train_batch_size: 4\n"
        );
        write(&folder, file, recipe);
    }
    write(
        &folder,
        "pipeline.yaml",
        "stages:\n- kind: sft\n  recipe: sft.yaml\n- kind: dpo\n  recipe: dpo.yaml\n",
    );
    folder
}

fn nothing(_: &Path) {}

fn write(folder: &Path, file: &str, contents: impl AsRef<[u8]>) {
    fs::write(folder.join(file), contents).expect("the case's folder is writable");
}

fn read(folder: &Path, file: &str) -> Vec<u8> {
    fs::read(folder.join(file)).expect("the file exists")
}

fn append(folder: &Path, file: &str, text: &str) {
    write(folder, file, [read(folder, file), text.into()].concat());
}

fn remove(folder: &Path, file: &str) {
    fs::remove_file(folder.join(file)).expect("the file exists");
}

/// Truncates a file by this number of bytes.
fn cut(folder: &Path, file: &str, bytes: usize) {
    let whole = read(folder, file);
    write(folder, file, &whole[..whole.len() - bytes]);
}

/// Changes a JSON file.
fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&read(folder, file)).expect("valid JSON");
    change(&mut json);
    write(folder, file, json.to_string());
}

/// Removes a key from a JSON object.
fn without(json: &mut Value, key: &str) {
    json.as_object_mut().expect("an object").remove(key);
}
