//! Evaluation tasks against lm-eval 0.4.13 and against the rules of the first Open LLM Leaderboard:
//! prompts byte for byte, and all metrics. Answers come from a formula, so no model is needed; see
//! `scripts/golden/eval.py` and `scripts/golden/leaderboard.py`.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{asset, scratch, splitmix64};
use favonius::data::Tokenizer;
use favonius::eval::scores::{self, Scores};
use favonius::eval::{
    Answer, Catalogue, Chat, DataFolder, Definition, Document, Entry, Group, Measured, Options,
    Request, Task, TaskSpec,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

const LM_EVAL: &str = include_str!("golden/eval.json");
const MODELS: &str = include_str!("golden/eval_models.json");
const LEADERBOARD: &str = include_str!("golden/leaderboard.json");
/// The largest difference between numbers of NumPy and of Rust.
const ROUNDING: f64 = 1e-12;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).expect("the golden file is JSON")
}

fn excerpts() -> Option<DataFolder> {
    asset("eval").map(|folder| DataFolder { folder: Some(folder) })
}

fn own_tasks() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/evaluate/tasks")
}

fn one_task(
    definition: Definition,
    name: &str,
    data: &DataFolder,
    options: &Options,
) -> Box<dyn Task> {
    let mut catalogue = Catalogue::new(definition);
    let entries = catalogue.find(&[name.to_owned()]).unwrap_or_else(|error| panic!("{error}"));
    let [Entry::Task(spec)] = &entries[..] else { panic!("{name} is not one task") };
    spec.clone().load(data, options).unwrap_or_else(|error| panic!("{error}"))
}

/// The hash of a document's requests, as in `eval.py`.
fn digest(document: &Document) -> String {
    let mut text = String::new();
    for [context, second] in pairs(document) {
        text.push_str(&format!("{context}\u{1f}{second}\u{1e}"));
    }
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn pairs(document: &Document) -> Vec<[String; 2]> {
    let pair = |request: &Request| match request {
        Request::Loglikelihood { context, continuation } => {
            [context.to_string(), continuation.clone()]
        }
        Request::Generate { context, until, max_tokens } => {
            let mut parts = until.clone();
            parts.push(max_tokens.to_string());
            [context.to_string(), parts.join("\u{1d}")]
        }
    };
    document.requests.iter().map(pair).collect()
}

/// The answers of the formula; a generated text is given.
fn answers(document: &Document, text: Option<&Value>) -> Vec<Answer> {
    let answer = |(place, request): (usize, &Request)| match request {
        Request::Loglikelihood { .. } => {
            let bits = splitmix64((document.id * 64 + place) as u64);
            let u = (bits >> 11) as f64 / (1u64 << 53) as f64;
            Answer::Loglikelihood { logp: -20.0 * u, is_greedy: u < 0.25 }
        }
        Request::Generate { .. } => {
            Answer::Text(text.and_then(Value::as_str).expect("a stored text").to_owned())
        }
    };
    document.requests.iter().enumerate().map(answer).collect()
}

fn assert_near(own: f64, expected: &Value, what: &str) {
    assert_within(own, expected, what, ROUNDING);
}

fn assert_within(own: f64, expected: &Value, what: &str, tolerance: f64) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what}: no number {expected}"));
    let difference = (own - expected).abs();
    assert!(difference <= tolerance * expected.abs().max(1.0), "{what}: {own}, not {expected}");
}

fn assert_prompts(task: &dyn Task, golden: &Value, what: &str) {
    let hashes = golden["prompts"].as_array().expect("hashes");
    assert_eq!(task.documents(), hashes.len(), "{what}: documents");
    if let Some(first) = golden["first"].as_array() {
        let mut own = pairs(&task.document(0).unwrap());
        own.truncate(first.len());
        let expected: Vec<[String; 2]> =
            first.iter().map(|pair| serde_json::from_value(pair.clone()).unwrap()).collect();
        assert_eq!(own, expected, "{what}: the first request");
    }
    for (id, hash) in hashes.iter().enumerate() {
        let document = task.document(id).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(digest(&document), hash.as_str().unwrap(), "{what}: document {id}");
    }
}

/// The values of all documents, which must be those of the golden section.
fn measured(task: &dyn Task, golden: &Value, what: &str) -> Vec<Vec<Measured>> {
    let measure = |id: usize| {
        let document = task.document(id).unwrap();
        let measured = task.measure(id, &answers(&document, golden["texts"].get(id))).unwrap();
        for filter in &measured {
            let what = format!("{what}, {}, document {id}", filter.filter);
            if let Some(expected) = golden["filtered"].get(&filter.filter) {
                let text = Answer::Text(expected[id].as_str().unwrap().to_owned());
                assert_eq!(filter.answers, [text], "{what}");
            }
            for (metric, value) in &filter.values {
                let key = format!("{metric},{}", filter.filter);
                if let Some(expected) = golden["values"].get(&key) {
                    assert_near(*value, &expected[id], &format!("{what}, {metric}"));
                }
            }
        }
        measured
    };
    (0..task.documents()).map(measure).collect()
}

/// All numbers of lm-eval's results, no more and no less.
fn assert_results(own: &Scores, golden: &Value, what: &str) {
    assert_results_within(own, golden, what, ROUNDING);
}

fn assert_results_within(own: &Scores, golden: &Value, what: &str, tolerance: f64) {
    let mut numbers = BTreeMap::new();
    for score in &own.scores {
        numbers.insert(format!("{},{}", score.metric, score.filter), score.value);
        let error =
            score.stderr.map(|error| (format!("{}_stderr,{}", score.metric, score.filter), error));
        numbers.extend(error);
    }
    numbers.insert("sample_len".to_owned(), own.documents as f64);
    let golden = golden.as_object().expect("results");
    let expected: Vec<&String> = golden.keys().collect();
    assert!(
        expected.iter().all(|key| numbers.contains_key(*key)) && numbers.len() == expected.len(),
        "{what}: {:?}, not {expected:?}",
        numbers.keys()
    );
    for (key, value) in golden {
        assert_within(numbers[key], value, &format!("{what}, {key}"), tolerance);
    }
}

#[test]
fn prompts_and_metrics_are_those_of_lm_eval() {
    let Some(data) = excerpts() else { return };
    let golden = golden(LM_EVAL);
    let mut tasks = 0;
    for (name, section) in golden["tasks"].as_object().unwrap() {
        let options = Options {
            num_fewshot: section["num_fewshot"].as_u64().map(|shots| shots as usize),
            limit: golden["documents"].as_f64(),
            ..Options::default()
        };
        let task = one_task(Definition::LmEval, name, &data, &options);
        assert_prompts(task.as_ref(), section, name);
        let values = measured(task.as_ref(), section, name);
        assert_results(&scores::of_task(task.as_ref(), &values), &section["results"], name);
        tasks += 1;
    }
    assert_eq!(tasks, 12);
}

/// The answers of a model to one document, as `eval_models.py` stores them.
fn stored(answers: &Value) -> Vec<Answer> {
    let answer = |answer: &Value| match answer {
        Value::String(text) => Answer::Text(text.clone()),
        pair => Answer::Loglikelihood {
            logp: pair[0].as_f64().expect("a log-likelihood"),
            is_greedy: pair[1].as_bool().expect("whether it is greedy"),
        },
    };
    answers.as_array().expect("answers").iter().map(answer).collect()
}

#[test]
fn scores_of_real_models_are_those_of_lm_eval() {
    let Some(data) = excerpts() else { return };
    let golden = golden(MODELS);
    for (model, sections) in golden["models"].as_object().unwrap() {
        for (name, section) in sections.as_object().unwrap() {
            let options = Options {
                num_fewshot: section["num_fewshot"].as_u64().map(|shots| shots as usize),
                limit: section["documents"].as_f64(),
                ..Options::default()
            };
            let task = one_task(Definition::LmEval, name, &data, &options);
            let answers = section["answers"].as_array().unwrap();
            assert_eq!(task.documents(), answers.len(), "{model}, {name}");
            let measure = |(id, answers): (usize, &Value)| {
                let answers = stored(answers);
                assert_eq!(task.document(id).unwrap().requests.len(), answers.len(), "{name}");
                task.measure(id, &answers).unwrap()
            };
            let values: Vec<_> = answers.iter().enumerate().map(measure).collect();
            let what = format!("{model}, {name}");
            // Stored log-likelihoods have nine digits.
            assert_results_within(
                &scores::of_task(task.as_ref(), &values),
                &section["results"],
                &what,
                1e-6,
            );
        }
    }
}

#[test]
fn task_files_of_users_give_what_lm_eval_gives() {
    let golden = golden(LM_EVAL);
    for (name, section) in golden["own"].as_object().unwrap() {
        let file = own_tasks().join(format!("{name}.yaml")).display().to_string();
        let task = one_task(Definition::LmEval, &file, &DataFolder::default(), &Options::default());
        assert_eq!(task.num_fewshot() as u64, section["num_fewshot"], "{name}");
        assert_prompts(task.as_ref(), section, name);
        let values = measured(task.as_ref(), section, name);
        assert_results(&scores::of_task(task.as_ref(), &values), &section["results"], name);
    }
}

/// The scores of all tasks in an entry.
fn task_scores(entry: &Entry, data: &DataFolder, options: &Options, golden: &Value) -> Vec<Scores> {
    let score = |spec: &TaskSpec| {
        let task = spec.clone().load(data, options).unwrap_or_else(|error| panic!("{error}"));
        let section = &golden["own"][spec.name()];
        // Other examples may have other values, so only the texts are used.
        let texts = serde_json::json!({"texts": section["texts"]});
        let values = measured(task.as_ref(), &texts, spec.name());
        scores::of_task(task.as_ref(), &values)
    };
    entry.tasks().into_iter().map(score).collect()
}

/// The scores of a group and of the groups inside it. `all` has the scores of its tasks.
fn group_scores(entry: &Entry, all: &[Scores]) -> Vec<Scores> {
    let Entry::Group(group) = entry else { return Vec::new() };
    let names: Vec<&str> = entry.tasks().into_iter().map(TaskSpec::name).collect();
    let tasks: Vec<&Scores> =
        all.iter().filter(|scores| names.contains(&scores.name.as_str())).collect();
    let own = scores::of_group(&group.name, &group.alias, &group.metrics, &tasks);
    let inner = group.entries.iter().flat_map(|entry| group_scores(entry, all));
    [own].into_iter().chain(inner).collect()
}

fn group_of(entries: &[Entry]) -> &Group {
    let [Entry::Group(group)] = entries else { panic!("not one group") };
    group
}

#[test]
fn groups_are_averaged_as_in_lm_eval() {
    let golden = golden(LM_EVAL);
    let mut catalogue = Catalogue::new(Definition::LmEval);
    let file = own_tasks().join("animals_group.yaml").display().to_string();
    let entries = catalogue.find(&[file]).unwrap_or_else(|error| panic!("{error}"));
    let group = group_of(&entries);
    assert_eq!((group.alias.as_str(), group.version.as_str()), ("All animals", "2"));
    let all = task_scores(&entries[0], &DataFolder::default(), &Options::default(), &golden);
    let own = group_scores(&entries[0], &all);
    let names: Vec<&str> = own.iter().map(|scores| scores.name.as_str()).collect();
    assert_eq!(names, ["animals_group", "animals_group::inner"]);
    for scores in &own {
        assert_results(scores, &golden["groups"][&scores.name], &scores.name);
    }
}

#[test]
fn subjects_of_mmlu_are_weighted_by_size_in_lm_eval_and_not_on_the_leaderboard() {
    let Some(data) = excerpts() else { return };
    let subjects =
        ["anatomy", "astronomy", "college_mathematics", "global_facts", "us_foreign_policy"];
    let names: Vec<String> = subjects.iter().map(|subject| format!("mmlu_{subject}")).collect();
    let file = scratch("evaluate_mmlu").join("mmlu_excerpt.yaml");
    let text = format!(
        "group: mmlu_excerpt\ntask: [{}]\naggregate_metric_list: [{{metric: acc}}]\n",
        names.join(", ")
    );
    std::fs::write(&file, text).unwrap();
    let golden_lm_eval = golden(LM_EVAL);
    let options = Options {
        num_fewshot: Some(5),
        limit: golden_lm_eval["documents"].as_f64(),
        ..Options::default()
    };
    let mut catalogue = Catalogue::new(Definition::LmEval);
    let entries = catalogue.find(&[file.display().to_string()]).unwrap();
    let all = task_scores(&entries[0], &data, &options, &Value::Null);
    let own = group_scores(&entries[0], &all);
    assert_results(&own[0], &golden_lm_eval["groups"]["mmlu"], "mmlu");

    let golden = golden(LEADERBOARD);
    let options = Options { limit: golden["documents"].as_f64(), ..Options::default() };
    let mut catalogue = Catalogue::new(Definition::Leaderboard);
    let entries = catalogue.find(&["mmlu".to_owned()]).unwrap();
    assert_eq!(entries[0].tasks().len(), 57);
    let metric = &group_of(&entries).metrics[0];
    assert!(metric.metric == "acc" && !metric.weight_by_size);
    let tasks = catalogue.find(&names).unwrap();
    let all: Vec<Scores> =
        tasks.iter().flat_map(|entry| task_scores(entry, &data, &options, &golden)).collect();
    let tasks: Vec<&Scores> = all.iter().collect();
    let mean = scores::of_group("mmlu", "mmlu", std::slice::from_ref(metric), &tasks);
    assert_near(mean.get("acc", "none").unwrap().value, &golden["mmlu_acc"], "mmlu");
}

#[test]
fn examples_and_prompts_are_those_of_the_leaderboard() {
    let Some(data) = excerpts() else { return };
    let golden = golden(LEADERBOARD);
    let options = Options { limit: golden["documents"].as_f64(), ..Options::default() };
    let mut tasks = 0;
    for (name, section) in golden["tasks"].as_object().unwrap() {
        let task = one_task(Definition::Leaderboard, name, &data, &options);
        assert_eq!(task.num_fewshot() as u64, section["num_fewshot"], "{name}");
        assert_prompts(task.as_ref(), section, name);
        for (metric, expected) in section["values"].as_object().unwrap() {
            for id in 0..task.documents() {
                let document = task.document(id).unwrap();
                let measured = task.measure(id, &answers(&document, None)).unwrap();
                let value = measured[0].values.iter().find(|(name, _)| name == metric).unwrap().1;
                assert_near(value, &expected[id], &format!("{name}, document {id}, {metric}"));
            }
        }
        tasks += 1;
    }
    assert_eq!(tasks, 12);
}

#[test]
fn chats_are_those_of_lm_eval() {
    let Some(data) = excerpts() else { return };
    let Some(folder) = asset("tokenizers/mistral-7b-v0.1") else { return };
    let tokenizer = Arc::new(Tokenizer::load(&folder, None, None).expect("a tokenizer"));
    let golden = golden(LM_EVAL);
    for (key, section) in golden["chats"].as_object().unwrap() {
        let (name, kind) = key.split_once(',').unwrap();
        let is_own = name.starts_with("animals");
        let options = Options {
            num_fewshot: section["num_fewshot"].as_u64().map(|shots| shots as usize),
            limit: Some(3.0),
            chat: Some(Chat::new(Arc::clone(&tokenizer), kind == "multiturn").unwrap()),
            system_instruction: (!is_own).then(|| "Be short.".to_owned()),
            ..Options::default()
        };
        let file = own_tasks().join(format!("{name}.yaml")).display().to_string();
        let name = if is_own { &file } else { name };
        let task = one_task(Definition::LmEval, name, &data, &options);
        assert_prompts(task.as_ref(), section, key);
    }
}

#[test]
fn the_seven_tasks_of_the_leaderboard_have_its_examples() {
    for definition in [Definition::LmEval, Definition::Leaderboard] {
        let mut catalogue = Catalogue::new(definition);
        let entries = catalogue.find(&["openllm".to_owned()]).unwrap();
        let group = group_of(&entries);
        assert_eq!(entries[0].tasks().len(), 6 + 57);
        let names: Vec<&str> = group.entries.iter().map(Entry::name).collect();
        let expected =
            ["arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k", "drop"];
        assert_eq!(names, expected);
        let Some(data) = excerpts() else { return };
        let options = Options { limit: Some(2.0), ..Options::default() };
        let mut own = Vec::new();
        for spec in entries[0].tasks() {
            let is_here = !spec.name().starts_with("mmlu") || spec.name() == "mmlu_anatomy";
            if !is_here {
                continue;
            }
            let task = spec.clone().load(&data, &options).unwrap();
            let shots = [25, 10, 5, 0, 5, 5, 3];
            let place = expected.iter().position(|name| *name == task.name()).unwrap_or(2);
            assert_eq!(task.num_fewshot(), shots[place], "{}", task.name());
            let measure = |id| {
                let document = task.document(id).unwrap();
                task.measure(id, &answers(&document, Some(&Value::from("#### 1")))).unwrap()
            };
            let values: Vec<_> = (0..task.documents()).map(measure).collect();
            own.push(scores::of_task(task.as_ref(), &values));
        }
        // Each score that counts in the average exists.
        let headlines: Vec<&str> = group.average.iter().map(|score| score.name.as_str()).collect();
        assert_eq!(headlines, expected);
        for headline in group.average.iter().filter(|headline| headline.name != "mmlu") {
            let task = own.iter().find(|scores| scores.name == headline.name).unwrap();
            assert!(task.get(&headline.metric, &headline.filter).is_some(), "{headline:?}");
        }
    }
}

#[test]
fn unusable_tasks_are_refused_with_advice() {
    let folder = scratch("evaluate_bad");
    let message = |text: &str| {
        let file = folder.join("t.yaml");
        std::fs::write(&file, text).unwrap();
        let found = Catalogue::new(Definition::LmEval).find(&[file.display().to_string()]);
        found.expect_err("the file has a mistake").to_string()
    };
    let task = "task: t\ndataset_path: d\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n";
    for (line, expected) in [
        ("process_docs: !function utils.f\n", "t.yaml:6:"),
        ("doc_to_txt: q\n", "did you mean `doc_to_text`?"),
        ("output_type: loglikelihood_rolling\n", "output_type `loglikelihood_rolling` is not"),
        ("metric_list: [{metric: bleu}]\n", "metric `bleu` is not supported"),
        ("generation_kwargs: {do_sample: true}\n", "sampled answers are not supported"),
        ("filter_list: [{name: a, filter: [{function: custom}]}]\n", "filter `custom`"),
        ("description: \"{{ x\"\n", "the template is broken at its line 1"),
        ("include: gone.yaml\n", "t.yaml:6:10: no file"),
        ("repeats: 4\n", "repeated answers are not supported"),
        ("num_fewshot: many\n", "`num_fewshot` must be a whole number, not `many`"),
        ("fewshot_config: {sampler: balanced}\n", "sampler `balanced` is not supported"),
    ] {
        let error = message(&format!("{task}{line}"));
        assert!(error.contains(expected), "{error}");
    }
    let error = message("task: t\ndataset_path: d\n");
    assert!(error.contains("no split to evaluate"), "{error}");
    let error = message("task: t\ndataset_path: json\ntest_split: test\n");
    assert!(error.contains("t.yaml:2:15: dataset_path `json` is a format"), "{error}");
    let error = message("group: g\ntask: [gone]\n");
    assert!(error.contains("t.yaml:2:8: no task or group `gone`"), "{error}");
    let find = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Catalogue::new(Definition::LmEval).find(&names).unwrap_err().to_string()
    };
    assert!(find(&["hellaswga"]).contains("did you mean `hellaswag`?"));
    assert!(find(&["mmlu", "mmlu_anatomy"]).contains("named twice"));

    let rows = folder.join("test.jsonl");
    std::fs::write(&rows, "{\"q\": \"x\", \"a\": \"y\"}\n{\"q\": \"x\", \"a\": null}\n").unwrap();
    let text = format!(
        "task: rows\ndataset_path: json\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n\
         output_type: loglikelihood\ndataset_kwargs: {{data_files: {{test: {}}}}}\n",
        rows.display()
    );
    let file = folder.join("rows.yaml");
    std::fs::write(&file, text).unwrap();
    std::fs::remove_file(folder.join("t.yaml")).unwrap();
    let name = file.display().to_string();
    let task = one_task(Definition::LmEval, &name, &DataFolder::default(), &Options::default());
    let error = task.document(1).unwrap_err().to_string();
    assert!(error.contains("test.jsonl, row 1: `doc_to_target` gives null"), "{error}");
}

/// A document may be evaluated alone and in any order: its request does not change.
#[test]
fn documents_do_not_depend_on_the_limit() {
    let Some(data) = excerpts() else { return };
    for definition in [Definition::LmEval, Definition::Leaderboard] {
        for name in ["winogrande", "gsm8k", "mmlu_astronomy"] {
            let all = Options { num_fewshot: Some(3), ..Options::default() };
            let few = Options { limit: Some(4.0), ..all.clone() };
            let (all, few) =
                (one_task(definition, name, &data, &all), one_task(definition, name, &data, &few));
            assert!(all.documents() > few.documents() && few.rows() == all.rows());
            assert_eq!(all.document(3).unwrap(), few.document(3).unwrap());
        }
    }
}
