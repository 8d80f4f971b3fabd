//! Text out of a model: the same as transformers', and the same whatever is remembered and whatever is beside it.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::model::cache::KeyValueCache;
use favonius::model::decoder::Decoder;
use favonius::model::generation::Request;
use favonius::model::sampling::{Sampler, Sampling};
use serde_json::{Value, json};

/// The logits after `ids`, with nothing remembered.
fn logits_anew(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let hidden = model.hidden(&RaggedBatch::whole(ids));
    values(model.logits(hidden, &[ids.len() - 1]))
}

fn greedy_anew(model: &Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let mut greedy = Sampler::new(Sampling::GREEDY, 0);
        ids.push(greedy.next(&logits_anew(model, &ids)));
    }
    ids.split_off(prompt.len())
}

fn requests<'a>(prompts: &'a [Vec<u32>], most: &[usize]) -> Vec<Request<'a>> {
    let sampler = Sampler::new(Sampling::GREEDY, 0);
    let request = |(prompt, most): (&'a Vec<u32>, &usize)| Request {
        prompt,
        sampler: sampler.clone(),
        max_new_tokens: *most,
    };
    prompts.iter().zip(most).map(request).collect()
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    pair(seed, [len, 0, 0], 61).prompt
}

/// With and without a sliding window, grouped heads and not.
fn models() -> Vec<Decoder> {
    let changes = [
        json!({"sliding_window": null}),
        json!({"sliding_window": 5}),
        json!({"sliding_window": 1}),
        json!({"num_key_value_heads": 6, "tie_word_embeddings": true}),
        json!({"model_type": "qwen2", "sliding_window": null}),
    ];
    changes.map(|changes| random_model(small_config(changes), 0.5)).into()
}

#[test]
fn remembered_logits_are_those_of_the_whole_text() {
    for model in models() {
        let ids = prompt(3, 23);
        // A prompt, single tokens, then several at a time.
        let mut cache = KeyValueCache::new(&model.config, 2);
        let mut read = 0;
        for len in [7, 1, 1, 4, 1, 9] {
            let logits = values(model.read_on(&mut cache, &[(1, &ids[read..read + len])]));
            read += len;
            assert_eq!(cache.len(1), read);
            let difference = relative_difference(&logits, &logits_anew(&model, &ids[..read]));
            assert!(
                difference < 2e-6,
                "{difference} after {read}, {:?}",
                model.config.sliding_window
            );
        }
        assert_eq!(cache.len(0), 0);
    }
}

#[test]
fn greedy_ids_are_those_without_a_cache_alone_or_in_a_batch() {
    for model in models() {
        let prompts: Vec<Vec<u32>> = (1..6).map(|n| prompt(n, 1 + 4 * n as usize)).collect();
        let expected: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| greedy_anew(&model, prompt, 12)).collect();
        let alone: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| model.generate_greedy(prompt, 12, &[])).collect();
        let together = model.generate(requests(&prompts, &[12; 5]), &[]);
        assert_eq!(alone, expected);
        assert_eq!(together, expected);
    }
}

#[test]
fn an_ending_id_ends_its_own_sequence_only() {
    let model = &models()[0];
    let prompts = [prompt(1, 5), prompt(2, 9)];
    let free = prompts.each_ref().map(|prompt| model.generate_greedy(prompt, 12, &[]));
    let eos = [free[0][3]];
    let ended = model.generate(requests(&prompts, &[12, 12]), &eos);
    for (ended, free) in ended.iter().zip(&free) {
        let end = free.iter().position(|id| eos.contains(id)).unwrap_or(free.len());
        assert_eq!(*ended, free[..end]);
    }
}

#[test]
fn each_sequence_has_its_own_length() {
    let model = &models()[0];
    let prompts = [prompt(1, 5), prompt(2, 9), prompt(3, 2)];
    let free = prompts.each_ref().map(|prompt| model.generate_greedy(prompt, 12, &[]));
    let short = model.generate(requests(&prompts, &[12, 3, 0]), &[]);
    assert_eq!(short, [free[0].clone(), free[1][..3].to_vec(), Vec::new()]);
}

#[test]
fn a_text_may_go_another_way_from_where_it_was() {
    for model in models() {
        let (ids, other) = (prompt(4, 20), prompt(5, 6));
        let mut cache = KeyValueCache::new(&model.config, 1);
        model.read_on(&mut cache, &[(0, &ids)]);
        let known = cache.truncate(0, 12);
        let mut text = ids[..known].to_vec();
        text.extend(&other);
        let logits = values(model.read_on(&mut cache, &[(0, &other)]));
        assert!(relative_difference(&logits, &logits_anew(&model, &text)) < 2e-6);
        cache.clear(0);
        assert!(cache.is_empty());
    }
}

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/generation.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The program's answers to `rows`, as the lines of its file.
fn answers(name: &str, model: &str, rows: &[Value], options: &[&str]) -> Vec<Value> {
    let folder = scratch(name);
    let (prompts, out) = (folder.join("prompts.jsonl"), folder.join("answers.jsonl"));
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&prompts, text).unwrap();
    let (prompts, out_name) = (prompts.display().to_string(), out.display().to_string());
    let arguments = ["generate", model, &prompts, "--out", &out_name, "--quiet"];
    let arguments: Vec<&str> = arguments.iter().chain(options).copied().collect();
    let (code, shown, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{shown}{err}");
    let text = std::fs::read_to_string(out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let Some(model) = asset("models/stories260k") else { return };
    let golden = golden();
    let tokens = format!("--max-new-tokens={}", golden["max_new_tokens"]);
    let all = golden["rows"].as_array().unwrap();
    assert_eq!(all.len(), 20);
    for raw in [true, false] {
        let rows: Vec<Value> = all.iter().filter(|row| row["raw"] == raw).cloned().collect();
        let asked: Vec<Value> =
            rows.iter().map(|row| json!({"prompt": row["prompt"], "id": 7})).collect();
        let mut options = vec![tokens.as_str(), "--batch-size=4", "--name=ours"];
        options.extend(raw.then_some("--raw"));
        let name = format!("generation-golden-{raw}");
        let answers = answers(&name, model.to_str().unwrap(), &asked, &options);
        for (answer, row) in answers.iter().zip(&rows) {
            let text = row["output"].as_str().unwrap();
            let expected = if raw { text } else { text.trim() };
            assert_eq!(answer["output"], expected, "{}", row["prompt"]);
            assert_eq!((&answer["generator"], &answer["id"]), (&json!("ours"), &json!(7)));
        }
    }
}

#[test]
fn benchmarks_get_their_own_forms_and_draws_do_not_depend_on_the_batch() {
    let world = world("generation-forms");
    let base = world.join("base").display().to_string();
    let rows = [
        json!({"question_id": 81, "category": "writing", "turns": ["What is a cow?", "Why?"]}),
        json!({"instruction": "What colour is coal?", "dataset": "koala"}),
        json!({"question_id": 82, "category": "math", "turns": ["One and one?"]}),
        json!({"messages": [{"role": "user", "content": "Where does a dog live?"}]}),
    ];
    let options = ["--max-new-tokens=6", "--temperature=1.5", "--seed=3"];
    let with = |name: &str, size: &'static str| {
        let options: Vec<&str> = options.iter().copied().chain([size]).collect();
        answers(name, &base, &rows, &options)
    };
    let together = with("generation-forms-4", "--batch-size=4");
    assert_eq!(together[0]["choices"][0]["turns"].as_array().unwrap().len(), 2);
    assert_eq!(together[2]["question_id"], 82);
    assert_eq!(together[2]["model_id"], "base");
    assert_eq!(together[1]["dataset"], "koala");
    let texts = |answers: &[Value]| -> Vec<String> {
        let part = |answer: &Value| format!("{}{}", answer["choices"], answer["output"]);
        answers.iter().map(part).collect()
    };
    let alone = with("generation-forms-1", "--batch-size=1");
    assert_eq!(texts(&together), texts(&alone));
}

#[test]
fn a_bad_row_stops_before_the_model_is_loaded() {
    let folder = scratch("generation-bad");
    let prompts = folder.join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a\"}\n{\"question\": \"b\"}\n").unwrap();
    let out = folder.join("answers.jsonl").display().to_string();
    let prompts = prompts.display().to_string();
    let (code, _, err) = run_program(&["generate", "no-such-model", &prompts, "--out", &out]);
    assert_eq!(code, Some(1));
    assert!(err.contains("line 2") && err.contains("none of `prompt`"), "{err}");
}

#[test]
fn settings_that_draw_nothing_are_refused() {
    for option in ["--top-p=0", "--top-p=1.5", "--temperature=-1", "--temperature=nan"] {
        let (code, _, err) = run_program(&["chat", "no-such-model", option]);
        assert_eq!(code, Some(2), "{option}");
        assert!(err.contains("is expected"), "{err}");
    }
}

/// What `favonius chat` prints to `input`.
fn chat(model: &str, input: &str, options: &[&str]) -> String {
    let mut command = favonius();
    command.args(["chat", model]).args(options);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_conversation_goes_on_and_begins_anew() {
    let Some(model) = asset("models/stories260k") else { return };
    let model = model.to_str().unwrap();
    let options = ["--temperature=0", "--max-new-tokens=16"];
    let questions = ["Tell me a story about a dog.", "What did the girl find?"];
    let input = format!("{}\n{}\n/clear\n{}\n/quit\n", questions[0], questions[1], questions[0]);
    let shown = chat(model, &input, &options);

    let rows = [json!({"turns": questions}), json!({"prompt": questions[0]})];
    let expected =
        answers("generation-chat", model, &rows, &["--temperature=0", "--max-new-tokens=16"]);
    let turns = &expected[0]["choices"][0]["turns"];
    let texts = [&turns[0], &turns[1], &expected[1]["output"]];
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = texts.map(|text| words(text.as_str().unwrap())).join(" ");
    assert_eq!(words(&shown), expected);

    let drawn =
        |seed: &str| chat(model, &input, &["--temperature=1.5", "--max-new-tokens=16", seed]);
    assert_eq!(drawn("--seed=1"), drawn("--seed=1"));
    assert_ne!(drawn("--seed=1"), drawn("--seed=2"));
}
