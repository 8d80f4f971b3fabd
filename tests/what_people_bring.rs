//! What people bring to a trainer, read as TRL, transformers and datasets read it, and what happens
//! to a run when its surroundings are not what they were.
//!
//! The tables of this file hold what a user sees. Further cases are tested beside the code: special
//! tokens of `tokenizer_config.json` and BPE dropout (`src/data/tokenizer.rs`), rope settings and
//! names of weights (`src/model/`), the files of a split (`src/hub/split_files.rs`), damaged marks
//! (`src/run/mark.rs`), secrets (`src/recipe/secret.rs`), names that lead out of a folder
//! (`src/files/names.rs`, `tests/hub_upload/`).

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use common::*;
use favonius::data::{Tokenizer, load_preferences, load_sft};
use favonius::recipe::{Recipe, Stage};
use serde_json::{Value, json};

/// Data and a chat template, and the texts on which a run would train.
struct Reading {
    name: &'static str,
    /// File names and contents, in the folder of the data set.
    files: Vec<(&'static str, String)>,
    /// Further lines of the recipe. `{folder}` is the folder of the case.
    recipe: &'static str,
    template: &'static str,
    /// The number of training rows.
    rows: usize,
    /// The texts of the last rows. Those of a pair are joined by `|`.
    texts: Vec<&'static str>,
}

const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// The files of a data set with one file of these rows.
fn train(rows: &[Value]) -> Vec<(&'static str, String)> {
    vec![("train.jsonl", rows.iter().map(|row| format!("{row}\n")).collect())]
}

fn chat() -> Value {
    json!({"messages": [user("2+3?"), assistant("It is 5.")]})
}

fn readings_of_chats() -> Vec<Reading> {
    const THINKS: &str = "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}think: \
                          {{ m.reasoning_content }} | {% endif %}{{ m.content }}\n{% endfor %}";
    const BLOCKS: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}\
                          {% else %}{% for b in m.content %}[{{ b.text }}]{% endfor %}{% endif %}\
                          {% endfor %}";
    let reasoning = json!({"role": "assistant", "content": "It is 5.", "reasoning_content": "add"});
    let tools = json!([{"name": "f"}]);
    let with_tools = |tools: Value| json!({"messages": chat()["messages"], "tools": tools});
    let kwargs = json!({"messages": chat()["messages"], "chat_template_kwargs": {"short": true}});
    let blocks = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let mut late = vec![chat(); 120];
    late.push(with_tools(tools.clone()));
    let reading = |name, rows: &[Value], template, texts: Vec<&'static str>| Reading {
        name,
        files: train(rows),
        recipe: "",
        template,
        rows: rows.len(),
        texts,
    };
    vec![
        reading(
            "1.1 fields of messages",
            &[json!({"messages": [user("2+3?"), reasoning]})],
            THINKS,
            vec!["user: 2+3?\nassistant: think: add | It is 5.\n"],
        ),
        reading(
            "1.1 tools, also as JSON text",
            &[with_tools(tools.clone()), with_tools(json!(tools.to_string()))],
            "{{ tools | tojson }}{{ messages[1].content }}",
            vec![r#"[{"name": "f"}]It is 5."#, r#"[{"name": "f"}]It is 5."#],
        ),
        reading(
            "1.1 chat_template_kwargs",
            &[kwargs],
            "{{ 'short: ' if short }}{{ messages[1].content }}",
            vec!["short: It is 5."],
        ),
        reading(
            "1.2 the JSON text of a chat",
            &[json!({"messages": chat()["messages"].to_string()})],
            PLAIN,
            vec!["user: 2+3?\nassistant: It is 5.\n"],
        ),
        reading(
            "1.4 line ends of a template file",
            &[chat()],
            "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\n",
            vec!["2+3?\nIt is 5.\n"],
        ),
        reading(
            "1.5 a key after row 100",
            &late,
            "{{ messages[1].content }}{{ tools | tojson if tools }}",
            vec!["It is 5.", r#"It is 5.[{"name": "f"}]"#],
        ),
        reading(
            "1.10 methods of Python and %",
            &[json!({"messages": [user("a\nb"), assistant("x-y.z")]})],
            "{{ '%s: %d lines' % (messages[0].role, messages[0].content.splitlines() | length) }} \
             {{ messages[1].content.rsplit('.', 1)[0].partition('-')[2].removeprefix('y') }}|",
            vec!["user: 2 lines |"],
        ),
        reading(
            "1.10 blocks of content",
            &[json!({"messages": [{"role": "user", "content": blocks}, assistant("c")]})],
            BLOCKS,
            vec!["[a][b]c"],
        ),
    ]
}

fn readings_of_files() -> Vec<Reading> {
    let rows = |count: usize| format!("{}\n", chat()).repeat(count);
    let card = "---\nconfigs:\n- config_name: own\n  data_dir: a\n---\n".to_owned();
    let odd = format!("{}\n", chat()).replacen('{', "{\"score\": NaN, ", 1);
    let tokenizer = json!({"chat_template": "{{ messages[0].content }}!", "eos_token": "</s>"});
    let reading = |name, files, recipe, rows, texts| Reading {
        name,
        files,
        recipe,
        template: PLAIN,
        rows,
        texts,
    };
    let text = "user: 2+3?\nassistant: It is 5.\n";
    vec![
        reading(
            "1.6 all files of a split",
            vec![("train.jsonl", rows(2)), ("train_extra.jsonl", rows(3))],
            "",
            5,
            vec![text],
        ),
        reading(
            "1.6 data_dir in the metadata of a README",
            vec![("README.md", card), ("a/train.jsonl", rows(1)), ("train.jsonl", rows(4))],
            "",
            1,
            vec![text],
        ),
        reading("1.10 NaN in an unread column", vec![("train.jsonl", odd)], "", 1, vec![text]),
        reading(
            "1.10 the folder of a tokenizer as chat_template_path",
            vec![("train.jsonl", rows(1)), ("own/tokenizer_config.json", tokenizer.to_string())],
            "chat_template_path: {folder}/own\n",
            1,
            vec!["2+3?!"],
        ),
    ]
}

fn readings_of_pairs() -> Vec<Reading> {
    let whole = |last: Value| json!([user("q"), last]);
    let pair = |chosen, rejected| json!({"chosen": chosen, "rejected": rejected});
    let mixed = json!({"prompt": [user("q")], "chosen": "good", "rejected": "bad"});
    let no_turn = pair(whole(user("good")), whole(user("bad")));
    let fine = pair(whole(assistant("good")), whole(assistant("bad")));
    let reading = |name, rows: &[Value]| Reading {
        name,
        files: train(rows),
        recipe: "max_bad_rows: 0.5\n",
        template: PLAIN,
        rows: 1,
        texts: vec!["user: q\n|assistant: good\n|assistant: bad\n"],
    };
    vec![
        reading("1.7 a text beside a chat is a turn", &[mixed]),
        reading("1.8 a response without an assistant turn is left out", &[no_turn, fine]),
    ]
}

/// The number of training rows, and their texts.
fn read(reading: &Reading, folder: &Path, base: &Path, stage: Stage) -> Vec<String> {
    for (name, content) in &reading.files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::write(folder.join("template.jinja"), reading.template).unwrap();
    let shown = folder.display().to_string();
    let mut recipe =
        format!("model_name_or_path: m\noutput_dir: o\ndataset_name: {shown}\n{}", reading.recipe)
            .replace("{folder}", &shown);
    if !recipe.contains("chat_template_path") {
        recipe += &format!("chat_template_path: {shown}/template.jinja\n");
    }
    let recipe = Recipe::parse(&recipe, Path::new("r.yaml"), stage, &[]).unwrap();
    let tokenizer = Tokenizer::load(base, recipe.model.chat_template.as_deref(), None).unwrap();
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    if stage == Stage::Sft {
        let splits = load_sft(&recipe, &tokenizer, None, &()).unwrap();
        return splits.train.iter().map(|row| text(&row.documents[0].ids)).collect();
    }
    let splits = load_preferences(&recipe, &tokenizer, None, &()).unwrap();
    let texts = splits.train.iter().map(|row| [&row.prompt, &row.chosen, &row.rejected]);
    texts.map(|parts| parts.map(|ids| text(ids)).join("|")).collect()
}

#[test]
fn data_and_templates_are_read_as_in_trl() {
    let world = world("bring-readings");
    let of_stage = |stage, readings: Vec<Reading>| readings.into_iter().map(move |r| (stage, r));
    let all = of_stage(Stage::Sft, readings_of_chats())
        .chain(of_stage(Stage::Sft, readings_of_files()))
        .chain(of_stage(Stage::Dpo, readings_of_pairs()));
    for (number, (stage, reading)) in all.enumerate() {
        let folder = world.join(format!("case-{number}"));
        let found = read(&reading, &folder, &world.join("base"), stage);
        assert_eq!(found.len(), reading.rows, "{}", reading.name);
        let last = &found[found.len() - reading.texts.len()..];
        assert_eq!(last, reading.texts, "{}", reading.name);
    }
}

/// A folder with the demo's model in `base`, and the data set `data` of chats and pairs with the
/// splits `train` and `test`.
fn place(name: &str) -> PathBuf {
    let folder = world(name);
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    let row = |n: usize| {
        let side =
            |word: &str| json!([user(&format!("Say {n}.")), assistant(&format!("{word} {n}"))]);
        json!({"messages": side("Well"), "chosen": side("Good"), "rejected": side("Bad")})
    };
    let rows = |numbers: std::ops::Range<usize>| {
        numbers.map(|n| format!("{}\n", row(n))).collect::<String>()
    };
    fs::write(data.join("train.jsonl"), rows(0..16)).unwrap();
    fs::write(data.join("test.jsonl"), rows(16..20)).unwrap();
    folder
}

/// The command line of a short run in `folder`: four rows a step, a checkpoint every second step.
fn arguments(folder: &Path, stage: &str, out: &str, more: &[&str]) -> Vec<String> {
    let recipe = folder.join("own.yaml");
    let shown = |path: PathBuf| path.display().to_string();
    let text = format!(
        "model_name_or_path: {}\ndataset_name: {}\noutput_dir: {}\nmax_steps: 8\n\
         per_device_train_batch_size: 4\nlearning_rate: 1.0e-3\nlr_scheduler_type: constant\n\
         save_strategy: steps\nsave_steps: 2\nlogging_steps: 1\n",
        shown(folder.join("base")),
        shown(folder.join("data")),
        shown(folder.join(out)),
    );
    fs::write(&recipe, text).unwrap();
    let fixed = [stage.to_owned(), shown(recipe)];
    fixed.into_iter().chain(more.iter().map(|argument| (*argument).to_owned())).collect()
}

fn run(folder: &Path, stage: &str, out: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let arguments = arguments(folder, stage, out, more);
    run_program(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// [`run`], which must succeed. Returns its output.
#[track_caller]
fn run_well(folder: &Path, stage: &str, out: &str, more: &[&str]) -> String {
    let (code, shown, err) = run(folder, stage, out, more);
    assert_eq!(code, Some(0), "{shown}{err}");
    shown
}

/// [`run`], which must fail with this message.
#[track_caller]
fn run_fails(folder: &Path, stage: &str, out: &str, more: &[&str], message: &str) {
    let (code, shown, err) = run(folder, stage, out, more);
    assert_eq!(code, Some(1), "{shown}{err}");
    // Messages are wrapped to the terminal's width.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&err).contains(message), "{err}");
}

#[track_caller]
fn assert_same_run(folder: &Path, [a, b]: [&str; 2]) {
    for file in ["model.safetensors", "checkpoint-8/optimizer.safetensors"] {
        let bytes = |out: &str| fs::read(folder.join(out).join(file)).unwrap();
        assert!(bytes(a) == bytes(b), "{file} differs");
    }
    assert_eq!(record_without_times(&folder.join(a)), record_without_times(&folder.join(b)));
}

fn learning_rates(out: &Path) -> Vec<f64> {
    let record = record_without_times(out);
    let rows = record["log_history"].as_array().unwrap().iter();
    rows.filter_map(|row| row["learning_rate"].as_f64()).collect()
}

/// Item 2.13: with a constant learning rate, the extended run is the long one.
#[test]
fn an_extended_run_has_the_bits_of_one_that_was_planned_long() {
    let folder = place("bring-extended");
    for (stage, short) in [("sft", "--max_steps=4"), ("dpo", "--max_steps=5")] {
        let names = ["long", "extended"].map(|name| format!("{stage}-{name}"));
        let [long, extended] = names.each_ref().map(String::as_str);
        run_well(&folder, stage, long, &[]);
        run_well(&folder, stage, extended, &[short]);
        let shown = run_well(&folder, stage, extended, &[]);
        assert!(shown.contains("the run is extended from"), "{shown}");
        assert_same_run(&folder, [long, extended]);
        assert!(run_well(&folder, stage, extended, &[]).contains("nothing to do"));
    }
    // By epochs: one of four steps becomes two.
    let epochs = |count: &'static str| ["--max_steps=-1", count];
    run_well(&folder, "sft", "epochs", &epochs("--num_train_epochs=1"));
    // The same number of steps is the same run.
    let shown = run_well(&folder, "sft", "epochs", &["--max_steps=4"]);
    assert!(shown.contains("nothing to do"), "{shown}");
    let shown = run_well(&folder, "sft", "epochs", &epochs("--num_train_epochs=2"));
    assert!(shown.contains("the run is extended from 4 to 8 steps"), "{shown}");
    let bytes = |out: &str| fs::read(folder.join(out).join("model.safetensors")).unwrap();
    assert!(bytes("sft-long") == bytes("epochs"));
}

/// Item 2.13: the schedule of the longer run holds from the first new step on.
#[test]
fn an_extended_run_follows_the_new_schedule() {
    let folder = place("bring-schedule");
    let linear = "--lr_scheduler_type=linear";
    run_well(&folder, "sft", "out", &[linear, "--max_steps=4"]);
    let shown = run_well(&folder, "sft", "out", &[linear]);
    let says = "from step 5 on the learning rate is that of the new schedule (linear over 8 steps, \
                0 of them warm-up), 5e-4 at first";
    assert!(shown.contains(says), "{shown}");
    let expected = [1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.5e-3, 0.375e-3, 0.25e-3, 0.125e-3];
    for (found, expected) in learning_rates(&folder.join("out")).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
    let record = record_without_times(&folder.join("out"));
    assert_eq!((&record["max_steps"], &record["num_train_epochs"]), (&json!(8), &json!(2)));
    // A shorter run is no continuation.
    let message = "checkpoint-8 is at step 8, and the run has 6 steps now; raise max_steps";
    run_fails(&folder, "sft", "out", &[linear, "--max_steps=6"], message);
    // An earlier checkpoint can be continued to a shorter end.
    let earlier = format!("--resume_from_checkpoint={}", folder.join("out/checkpoint-2").display());
    let shown = run_well(&folder, "sft", "out", &[linear, "--max_steps=6", &earlier]);
    assert!(shown.contains("the run is extended from 4 to 6 steps"), "{shown}");
}

/// Item 2.13: what cannot change a step that was taken may change; what can is named.
#[test]
fn only_what_changes_no_step_may_change_on_resuming() {
    let folder = place("bring-resumed");
    run_well(&folder, "sft", "whole", &[]);
    let unfinished = |out: &str| {
        run_well(&folder, "sft", out, &["--max_steps=4"]);
        fs::remove_file(folder.join(out).join("favonius.json")).unwrap();
    };
    unfinished("evaluated");
    let evaluated = ["--eval_strategy=steps", "--eval_steps=3"];
    run_well(&folder, "sft", "evaluated", &evaluated);
    let bytes = |out: &str| fs::read(folder.join(out).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("evaluated"));
    let record = record_without_times(&folder.join("evaluated"));
    let rows = record["log_history"].as_array().unwrap().iter();
    let steps: Vec<_> = rows.filter(|row| row["eval_loss"].is_f64()).map(|r| &r["step"]).collect();
    assert_eq!(steps, [6, 8]);
    assert_eq!(record["eval_steps"], 3);

    unfinished("other");
    for (change, message) in [
        ("--max_train_samples=8", "its training rows are not those of this run"),
        ("--learning_rate=0.5", "`learning_rate` was 0.001 there and is 0.5 now"),
        ("--lr_scheduler_type=cosine", "`lr_scheduler_type` was constant there and is cosine now"),
    ] {
        run_fails(&folder, "sft", "other", &[change], message);
    }
    run_well(&folder, "sft", "nothing", &["--max_steps=2", "--save_strategy=no"]);
    let message = "holds a finished run of 2 steps and no checkpoint to extend it from";
    run_fails(&folder, "sft", "nothing", &[], message);
    run_fails(&folder, "sft", "nothing", &["--learning_rate=0.5"], "with other settings");
}

/// Item 2.13: a later stage that began from the shorter model is not taken for a finished one.
#[test]
fn a_pipeline_is_not_extended_under_a_later_stage() {
    let folder = place("bring-pipeline");
    let run = |steps: &str| {
        arguments(&folder, "sft", "unused", &[]);
        let own = fs::read_to_string(folder.join("own.yaml")).unwrap();
        for name in ["one", "two"] {
            let quiet = if name == "two" { "disable_tqdm: true\n" } else { "" };
            let recipe = own.replace("/unused", &format!("/{name}")) + quiet;
            fs::write(folder.join(format!("{name}.yaml")), recipe).unwrap();
        }
        let stages = "stages:\n- {kind: sft, recipe: one.yaml}\n- {kind: dpo, recipe: two.yaml}\n";
        let pipeline = folder.join("own-pipeline.yaml");
        fs::write(&pipeline, stages).unwrap();
        run_program(&["run", pipeline.to_str().unwrap(), steps])
    };
    let (code, shown, err) = run("--max_steps=2");
    assert_eq!(code, Some(0), "{err}");
    // The second stage shows no progress.
    assert_eq!(shown.matches("training: 2 steps").count(), 1, "{shown}");
    let (code, _, err) = run("--max_steps=4");
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("stage 1 is extended, but") && err.contains("/two holds a run"), "{err}");
    fs::rename(folder.join("two"), folder.join("two-short")).unwrap();
    let (code, shown, err) = run("--max_steps=4");
    assert_eq!(code, Some(0), "{err}");
    assert!(shown.contains("the run is extended from 2 to 4 steps"), "{shown}");
}

/// Item 1.9: pairs without `prompt`, beside a column that may hold it.
#[test]
fn a_column_that_may_hold_the_prompt_is_named() {
    let folder = place("bring-prompt");
    for (column, is_named) in [("question", true), ("instruction", true), ("source", false)] {
        let row = json!({"chosen": "a good one", "rejected": "a bad one", column: "Say a."});
        fs::write(folder.join("data/train.jsonl"), format!("{row}\n").repeat(8)).unwrap();
        let (code, shown, err) = run(&folder, "plan", "out", &["--stage", "dpo"]);
        assert_eq!(code, Some(0), "{shown}{err}");
        let text = format!("the column `{column}` is not read; if it holds the prompt, rename it");
        assert_eq!(err.contains(&text), is_named, "{column}: {err}");
    }
}

/// Item 2.11: what a killed process left is removed by the next run; files of others stay.
#[test]
fn leftovers_of_killed_processes_are_removed() {
    let folder = place("bring-leftovers");
    let out = folder.join("out");
    let cache = folder.join(".favonius-cache");
    run_well(&folder, "dpo", "out", &["--max_steps=2"]);
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(names(&cache).iter().all(|name| !name.ends_with(".lock")), "{:?}", names(&cache));
    for name in [".model-aB3xY9", ".checkpoint-aB3xY9", ".model-of-mine"] {
        fs::create_dir(out.join(name)).unwrap();
        fs::write(out.join(name).join("model.safetensors"), "half").unwrap();
    }
    let hour = Duration::from_secs(3600);
    let left = [
        out.join(".plan.json.aB3xY9.tmp"),
        cache.join(".tokens-0123.bin.aB3xY9.tmp"),
        cache.join("reference-0123.lock"),
    ];
    let others = [out.join(".notes.tmp"), cache.join("notes.lock"), cache.join(".tmpaB3xY9")];
    for path in left.iter().chain(&others) {
        let file = fs::File::create(path).unwrap();
        file.set_modified(SystemTime::now() - hour).unwrap();
    }
    run_well(&folder, "dpo", "out", &["--max_steps=3"]);
    let found = names(&out);
    assert!(found.contains(&".model-of-mine".to_owned()), "{found:?}");
    assert!(!found.iter().any(|name| name.ends_with("aB3xY9")), "{found:?}");
    assert!(left.iter().all(|path| !path.exists()) && others.iter().all(|path| path.exists()));
}

/// Item 2.11: a cache that cannot be written costs time, not the run.
#[test]
fn a_run_does_without_its_cache() {
    let folder = place("bring-cache");
    run_well(&folder, "dpo", "with", &[]);
    fs::write(folder.join("file"), "").unwrap();
    let program = |out: &str, cache: &Path| {
        let mut program = favonius();
        program.args(arguments(&folder, "dpo", out, &[])).env("FAVONIUS_CACHE", cache);
        let output = program.output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (shown, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{shown}{err}");
        shown
    };
    let shown = program("without", &folder.join("file/cache"));
    assert!(shown.contains("the reference log-probs are kept in memory only"), "{shown}");
    assert_same_run(&folder, ["with", "without"]);
    // An empty value is as none.
    fs::remove_dir_all(folder.join(".favonius-cache")).unwrap();
    program("unset", Path::new(""));
    assert!(folder.join(".favonius-cache").is_dir());
}

/// Item 2.11: a run whose folder is removed fails, and the same command continues.
#[test]
fn a_removed_folder_ends_the_run_with_an_error() {
    let folder = place("bring-removed");
    let out = folder.join("out");
    let steps = "--max_steps=4000";
    let mut program = favonius();
    program.args(arguments(&folder, "sft", "out", &[steps]));
    let child = program.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !out.join("checkpoint-2").is_dir() {
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::rename(&out, folder.join("moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    // The folder may be removed in the middle of writing a checkpoint.
    let is_said = ["was removed during the run", "cannot write"].map(|text| err.contains(text));
    assert!(is_said.contains(&true), "{err}");
}
