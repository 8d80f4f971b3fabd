//! The answers of the evaluation engine, compared with lm-eval and its model for transformers.
//! `scripts/golden/evaluate_requests.py` wrote single requests with their answers, and
//! `scripts/golden/eval_models.py` the answers and scores of whole tasks.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use favonius::eval::scores::{self, Scores};
use favonius::eval::{
    Answer, Catalogue, DataFolder, Definition, Document, Engine, Entry, EvalError, Evaluation,
    EvaluationContext, Measured, Metric, Options, Request, Task,
};
use favonius::infer::chat_model::ChatModel;
use favonius::parallel::Ranks;
use serde_json::{Value, json};

fn golden_file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn golden() -> Value {
    golden_file("evaluate_requests.json")
}

fn model() -> Option<ChatModel> {
    let folder = common::asset("models/stories260k")?;
    Some(ChatModel::load(folder.to_str().unwrap(), "cpu", DType::F32).unwrap())
}

/// The golden requests with their answers. Consecutive requests with one context are a document.
fn documents(golden: &Value) -> Vec<(Document, Vec<Answer>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<(Document, Vec<Answer>)> = Vec::new();
    let mut add = |request: Request, answer: Answer| match all.last_mut() {
        Some((document, answers))
            if document.requests[0].context() == request.context()
                && matches!(request, Request::Loglikelihood { .. }) =>
        {
            document.requests.push(request);
            answers.push(answer);
        }
        _ => {
            let (id, requests) = (all.len(), vec![request]);
            let document = Document { id, requests, row: Value::Null, target: json!("") };
            all.push((document, vec![answer]));
        }
    };
    for row in golden["loglikelihoods"].as_array().unwrap() {
        let (context, continuation) = (text(&row["context"]).into(), text(&row["continuation"]));
        let (logp, is_greedy) = (row["logp"].as_f64().unwrap(), row["is_greedy"] == true);
        let request = Request::Loglikelihood { context, continuation };
        add(request, Answer::Loglikelihood { logp, is_greedy });
    }
    for row in golden["texts"].as_array().unwrap() {
        let until = row["until"].as_array().unwrap().iter().map(text).collect();
        let max_tokens = row["max_tokens"].as_u64().unwrap() as usize;
        let request =
            Request::Generate { context: text(&row["context"]).into(), until, max_tokens };
        add(request, Answer::Text(text(&row["text"])));
    }
    all
}

fn assert_close(ours: &Answer, theirs: &Answer, request: &Request) {
    match (ours, theirs) {
        (
            Answer::Loglikelihood { logp: a, is_greedy: x },
            Answer::Loglikelihood { logp: b, is_greedy: y },
        ) => {
            assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} for {b}: {request:?}");
            assert_eq!(x, y, "{request:?}");
        }
        (ours, theirs) => assert_eq!(ours, theirs, "{request:?}"),
    }
}

#[test]
fn every_answer_is_that_of_lm_eval() {
    let Some(model) = model() else { return };
    let documents = documents(&golden());
    let read_with = |batch_tokens: usize| {
        let engine = Engine::new(&model, batch_tokens).unwrap();
        let encoded: Vec<_> =
            documents.iter().map(|(document, _)| engine.encode(document).unwrap()).collect();
        let units = engine.units(&encoded);
        let answers: Vec<_> = units.iter().map(|unit| engine.answer(unit).unwrap()).collect();
        let tokens: usize = answers.iter().map(|unit| unit.tokens).sum();
        let ours = answers.into_iter().flat_map(|unit| unit.answers);
        for (ours, (document, theirs)) in ours.zip(&documents) {
            assert_eq!(ours.len(), theirs.len());
            for ((ours, theirs), request) in ours.iter().zip(theirs).zip(&document.requests) {
                assert_close(ours, theirs, request);
            }
        }
        (units.len(), tokens)
    };
    let (one_each, whole) = (read_with(1), read_with(16_384));
    assert!(one_each.0 > 10, "a document with more tokens is a unit of its own: {}", one_each.0);
    assert!(whole.0 < 4, "{} units", whole.0);
    assert!(whole.1 * 3 < one_each.1 * 2, "shared: {} tokens, alone: {}", whole.1, one_each.1);
    read_with(700);
}

/// The golden documents as a task.
struct Recorded(Vec<(Document, Vec<Answer>)>);

impl Task for Recorded {
    fn name(&self) -> &str {
        "recorded"
    }
    fn alias(&self) -> &str {
        "recorded"
    }
    fn definition(&self) -> Definition {
        Definition::LmEval
    }
    fn version(&self) -> &str {
        "1"
    }
    fn num_fewshot(&self) -> usize {
        0
    }
    fn metrics(&self) -> &[Metric] {
        &[]
    }
    fn documents(&self) -> usize {
        self.0.len()
    }
    fn rows(&self) -> usize {
        self.0.len()
    }
    fn document(&self, id: usize) -> Result<Document, EvalError> {
        Ok(self.0[id].0.clone())
    }
    fn measure(&self, _: usize, _: &[Answer]) -> Result<Vec<Measured>, EvalError> {
        Ok(Vec::new())
    }
}

#[test]
fn an_evaluation_that_is_cut_short_continues_with_the_same_bits() {
    let Some(model) = model() else { return };
    let task = Recorded(documents(&golden()));
    let folder = tempfile::tempdir().unwrap();
    let (ranks, stop) = (Ranks::one(), AtomicBool::new(false));
    let answers = |folder: Option<&Path>| {
        let context = EvaluationContext {
            chat: &model,
            batch_tokens: 900,
            folder,
            ranks: &ranks,
            stop: &stop,
        };
        let mut evaluation = Evaluation::new(&context).unwrap();
        evaluation.answers(&task, &mut ()).unwrap().unwrap()
    };
    let straight = answers(None);
    assert_eq!(straight.effort.cut, 3, "requests longer than 512 tokens");
    assert_eq!(answers(Some(folder.path())).answers, straight.answers);
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    // The file ends after a unit, and in the middle of a line: the kill came between two writes.
    for len in [0, whole.len() / 3, whole.len() / 2, whole.len()] {
        std::fs::write(&file, &whole[..len]).unwrap();
        let resumed = answers(Some(folder.path()));
        let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(resumed.effort.kept, lines);
        for (resumed, straight) in resumed.answers.iter().zip(&straight.answers) {
            for (ours, theirs) in resumed.iter().zip(straight) {
                let request = &task.0[0].0.requests[0];
                assert_close(ours, theirs, request);
            }
        }
        assert_eq!(resumed.effort.whole_tokens, straight.effort.whole_tokens);
    }
}

/// Answers the documents of a task as lm-eval did, and compares every answer and score.
fn compare_task(model: &ChatModel, name: &str, golden: &Value, data: &DataFolder) {
    let options = Options {
        num_fewshot: Some(golden["num_fewshot"].as_u64().unwrap() as usize),
        limit: golden["documents"].as_f64(),
        ..Options::default()
    };
    let found = Catalogue::new(Definition::LmEval).find(&[name.to_owned()]).unwrap();
    let [Entry::Task(spec)] = &found[..] else { panic!("{name} is one task") };
    let task = spec.clone().load(data, &options).unwrap();
    let (ranks, stop) = (Ranks::one(), AtomicBool::new(false));
    let context = EvaluationContext {
        chat: model,
        batch_tokens: 4096,
        folder: None,
        ranks: &ranks,
        stop: &stop,
    };
    let mut evaluation = Evaluation::new(&context).unwrap();
    let answers = evaluation.answers(&*task, &mut ()).unwrap().unwrap().answers;
    let theirs = golden["answers"].as_array().unwrap();
    assert_eq!(answers.len(), theirs.len(), "{name}");
    let mut measured = Vec::new();
    for (id, (ours, theirs)) in answers.iter().zip(theirs).enumerate() {
        let requests = task.document(id).unwrap().requests;
        for ((ours, theirs), request) in ours.iter().zip(theirs.as_array().unwrap()).zip(&requests)
        {
            let theirs = match theirs.as_str() {
                Some(text) => Answer::Text(text.to_owned()),
                None => Answer::Loglikelihood {
                    logp: theirs[0].as_f64().unwrap(),
                    is_greedy: theirs[1] == true,
                },
            };
            assert_close(ours, &theirs, request);
        }
        measured.push(task.measure(id, ours).unwrap());
    }
    compare_scores(name, &scores::of_task(&*task, &measured), &golden["results"]);
}

/// Compares every score and standard error of lm-eval's results.
fn compare_scores(name: &str, ours: &Scores, theirs: &Value) {
    for (key, theirs) in theirs.as_object().unwrap() {
        let (Some((metric, filter)), Some(theirs)) = (key.split_once(','), theirs.as_f64()) else {
            continue;
        };
        let ours = match metric.strip_suffix("_stderr") {
            Some(metric) => ours.get(metric, filter).and_then(|score| score.stderr),
            None => ours.get(metric, filter).map(|score| score.value),
        };
        let ours = ours.unwrap_or_else(|| panic!("{name}: no {key}"));
        assert!((ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{name}, {key}: {ours}");
    }
}

fn compare_tasks(model: &ChatModel, golden: &Value) {
    let Some(folder) = common::asset("eval") else { return };
    let data = DataFolder { folder: Some(folder) };
    for (name, golden) in golden.as_object().unwrap() {
        compare_task(model, name, golden, &data);
    }
}

#[test]
fn tasks_have_the_answers_and_scores_of_lm_eval() {
    let Some(model) = model() else { return };
    compare_tasks(&model, &golden_file("eval_models.json")["models"]["stories260k"]);
}

#[test]
fn tasks_with_the_examples_of_the_leaderboard_have_the_answers_of_lm_eval() {
    let Some(folder) = std::env::var_os("FAVONIUS_SMOLLM2_BASE") else {
        eprintln!("skipped: set FAVONIUS_SMOLLM2_BASE to a folder with SmolLM2-135M in float32");
        return;
    };
    let model = ChatModel::load(folder.to_str().unwrap(), "cpu", DType::F32).unwrap();
    compare_tasks(&model, &golden_file("eval_models.json")["models"]["smollm2"]);
}
