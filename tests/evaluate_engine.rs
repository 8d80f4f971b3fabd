//! The answers of the evaluation engine to single requests, compared with lm-eval's model for
//! transformers. `scripts/golden/evaluate_requests.py` wrote the requests and the answers.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use favonius::eval::{
    Answer, Definition, Document, Engine, EvalError, Evaluation, EvaluationContext, Measured,
    Metric, Request, Task,
};
use favonius::infer::chat_model::ChatModel;
use favonius::parallel::Ranks;
use serde_json::{Value, json};

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/evaluate_requests.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
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
    assert!(whole.1 * 2 < one_each.1, "shared: {} tokens, alone: {}", whole.1, one_each.1);
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
