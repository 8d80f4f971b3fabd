//! Text generation: the same text as transformers, independent of the key-value cache and of the
//! other sequences in a batch.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::*;
use favonius::data::ragged::RaggedBatch;
use favonius::infer::decoding::{Decoding, Prompt};
use favonius::infer::generation::Request;
use favonius::infer::kv_cache::KeyValueCache;
use favonius::infer::sampling::{Sampler, Sampling};
use favonius::model::decoder::Decoder;
use serde_json::{Value, json};

/// The logits after `ids`, computed without a cache.
fn logits_uncached(model: &Decoder, ids: &[u32]) -> Vec<f32> {
    let hidden = model.hidden(&RaggedBatch::whole(ids));
    values(model.logits(hidden, &[ids.len() - 1]))
}

fn greedy_uncached(model: &Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..count {
        let mut greedy = Sampler::new(Sampling::GREEDY, 0);
        ids.push(greedy.next(&logits_uncached(model, &ids)));
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

/// Models with and without a sliding window, with and without grouped-query attention, and of
/// every family.
fn models() -> Vec<Decoder> {
    let changes = [
        json!({"sliding_window": null}),
        json!({"sliding_window": 5}),
        json!({"sliding_window": 1}),
        json!({"num_key_value_heads": 6, "tie_word_embeddings": true}),
        json!({"model_type": "qwen2", "sliding_window": null}),
        json!({"model_type": "qwen3", "sliding_window": null}),
        json!({"model_type": "smollm3", "no_rope_layers": [1, 0]}),
        json!({"model_type": "olmo2"}),
        json!({"model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": 9}),
        json!({"model_type": "phi3", "sliding_window": 9}),
        json!({"model_type": "phi3", "partial_rotary_factor": 0.5, "sliding_window": null,
            "original_max_position_embeddings": 10,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0],
                "long_factor": [2.0, 5.0]}}),
        json!({"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2}),
        json!({"model_type": "granite", "attention_multiplier": 0.1, "residual_multiplier": 0.3}),
        json!({"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"}),
        json!({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
        json!({"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 5, "sliding_window_pattern": 2, "rope_theta": 1000.0,
            "rope_local_base_freq": 10.0}),
    ];
    changes.map(|changes| random_model(small_config(changes), 0.5)).into()
}

#[test]
fn logits_with_the_cache_equal_those_of_the_whole_text() {
    for model in models() {
        let ids = prompt(3, 23);
        // A prompt, then single tokens, then several tokens at once.
        let mut cache = KeyValueCache::new(&model.config, 2);
        let mut read = 0;
        for len in [7, 1, 1, 4, 1, 9] {
            let logits = values(model.forward_cached(&mut cache, &[(1, &ids[read..read + len])]));
            read += len;
            assert_eq!(cache.len(1), read);
            let difference = relative_difference(&logits, &logits_uncached(&model, &ids[..read]));
            assert!(
                difference < 2e-6,
                "{difference} after {read}, {:?}",
                model.config.sliding_window
            );
        }
        assert_eq!(cache.len(0), 0);
    }
}

/// Sampling needs the logits themselves, not only the largest one.
#[test]
fn logits_of_sequences_side_by_side_equal_those_of_the_whole_text() {
    for model in models() {
        let texts = [prompt(3, 23), prompt(4, 12)];
        let mut decoding = Decoding::new(&model, 2);
        let prompts = [(0, 19), (1, 8)].map(|(sequence, read)| Prompt {
            sequence,
            ids: &texts[sequence][..read],
            max_new_tokens: 4,
        });
        let mut logits = values(decoding.read_prompts(&prompts).0);
        for step in 0..=4 {
            let whole = [&texts[0][..19 + step], &texts[1][..8 + step]];
            let whole = whole.map(|ids| logits_uncached(&model, ids)).concat();
            let difference = relative_difference(&logits, &whole);
            assert!(difference < 2e-6, "{difference}, {:?}", model.config.family.architecture);
            if step < 4 {
                let next = [(0, texts[0][19 + step]), (1, texts[1][8 + step])];
                logits = values(decoding.read_tokens(&next));
            }
        }
    }
}

#[test]
fn greedy_ids_are_the_same_with_and_without_a_cache_and_in_a_batch() {
    for model in models() {
        let prompts: Vec<Vec<u32>> = (1..6).map(|n| prompt(n, 1 + 4 * n as usize)).collect();
        let expected: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| greedy_uncached(&model, prompt, 12)).collect();
        let alone: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| model.generate_greedy(prompt, 12, &[])).collect();
        let together = model.generate(requests(&prompts, &[12; 5]), &[]);
        assert_eq!(alone, expected);
        assert_eq!(together, expected);
    }
}

#[test]
fn an_eos_id_ends_its_own_sequence_only() {
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
fn each_sequence_has_its_own_limit_of_new_tokens() {
    let model = &models()[0];
    let prompts = [prompt(1, 5), prompt(2, 9), prompt(3, 2)];
    let free = prompts.each_ref().map(|prompt| model.generate_greedy(prompt, 12, &[]));
    let short = model.generate(requests(&prompts, &[12, 3, 0]), &[]);
    assert_eq!(short, [free[0].clone(), free[1][..3].to_vec(), Vec::new()]);
}

#[test]
fn a_truncated_cache_continues_with_another_text() {
    for model in models() {
        let (ids, other) = (prompt(4, 20), prompt(5, 6));
        let mut cache = KeyValueCache::new(&model.config, 1);
        model.forward_cached(&mut cache, &[(0, &ids)]);
        let kept = cache.truncate(0, 12);
        let mut text = ids[..kept].to_vec();
        text.extend(&other);
        let logits = values(model.forward_cached(&mut cache, &[(0, &other)]));
        assert!(relative_difference(&logits, &logits_uncached(&model, &text)) < 2e-6);
        cache.clear(0);
        assert!(cache.is_empty());
    }
}

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/generation.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Runs `favonius generate` on `rows`: prompts in `prompts.jsonl`, answers in `answers.jsonl` of
/// `folder`. Returns exit code, stdout and stderr.
fn generate(
    folder: &Path,
    model: &str,
    rows: &[Value],
    options: &[&str],
) -> (Option<i32>, String, String) {
    let prompts = folder.join("prompts.jsonl");
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&prompts, text).unwrap();
    let prompts = prompts.display().to_string();
    let out = folder.join("answers.jsonl").display().to_string();
    let arguments = ["generate", model, &prompts, "--out", &out, "--quiet"];
    let arguments: Vec<&str> = arguments.iter().chain(options).copied().collect();
    run_program(&arguments)
}

fn read_answers(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("answers.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The program's answers to `rows`, one JSON value per line of its file.
fn answers(name: &str, model: &str, rows: &[Value], options: &[&str]) -> Vec<Value> {
    let folder = scratch(name);
    let (code, shown, err) = generate(&folder, model, rows, options);
    assert_eq!(code, Some(0), "{shown}{err}");
    read_answers(&folder)
}

#[test]
fn greedy_text_equals_that_of_transformers() {
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
fn answers_have_the_formats_of_benchmarks_and_samples_do_not_depend_on_the_batch() {
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
fn a_bad_row_is_reported_before_the_model_is_loaded() {
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
fn an_output_that_cannot_be_written_is_reported_before_the_model_is_loaded() {
    let folder = scratch("generation-nowhere");
    let prompts = folder.join("prompts.jsonl").display().to_string();
    std::fs::write(&prompts, "{\"prompt\": \"a\"}\n").unwrap();
    let inside = |name: &str| folder.join(name).display().to_string();
    for (out, expected) in [
        (inside("no/such/answers.jsonl"), "does not exist"),
        (inside("prompts.jsonl/answers.jsonl"), "does not exist"),
        (inside(""), "this is a folder"),
    ] {
        let (code, _, err) = run_program(&["generate", "no-such-model", &prompts, "--out", &out]);
        assert_eq!(code, Some(1), "{out}");
        assert!(err.contains(expected) && err.contains(&out), "{err}");
        assert!(err.contains("help:") && !err.contains("no-such-model"), "{err}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn the_file_of_prompts_is_not_overwritten() {
    let folder = scratch("generation-over");
    let prompts = folder.join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"a\"}\n").unwrap();
    let again = folder.join("../generation-over/prompts.jsonl").display().to_string();
    let (code, _, err) = run_program(&[
        "generate",
        "no-such-model",
        &prompts.display().to_string(),
        "--out",
        &again,
    ]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("this file holds the prompts") && err.contains("help:"), "{err}");
    assert_eq!(std::fs::read_to_string(&prompts).unwrap(), "{\"prompt\": \"a\"}\n");
}

#[test]
fn options_and_rows_that_need_the_chat_template_are_refused_with_raw() {
    let folder = scratch("generation-raw");
    let system =
        [json!({"role": "system", "content": "s"}), json!({"role": "user", "content": "a"})];
    let one_text = "prompts.jsonl, line 1: --raw continues one";
    for (row, options, expected, ending) in [
        (json!({"turns": ["a", "b"]}), &["--raw"][..], one_text, 1),
        (json!({"messages": system}), &["--raw"][..], one_text, 1),
        (json!({"prompt": "a"}), &["--raw", "--system=s"][..], "needs the chat template", 2),
    ] {
        let (code, _, err) = generate(&folder, "no-such-model", &[row], options);
        assert_eq!(code, Some(ending));
        assert!(err.contains(expected) && !err.contains("no-such-model"), "{err}");
    }
}

/// Rows in all formats, answered in batches of two.
fn few_rows() -> Vec<Value> {
    vec![
        json!({"prompt": "What is a cow?"}),
        json!({"question_id": 1, "turns": ["What colour is coal?", "Why?"]}),
        json!({"prompt": "Where does a dog live?"}),
        json!({"question_id": 2, "category": "math", "turns": ["One and one?", "Why?"]}),
        json!({"prompt": "What is the opposite of hot?"}),
    ]
}

/// The text of the answers without their time stamps.
fn timeless(folder: &Path) -> String {
    let mut answers = read_answers(folder);
    answers.iter_mut().for_each(|answer| answer["tstamp"] = json!(0));
    answers.iter().map(|answer| format!("{answer}\n")).collect()
}

#[test]
fn an_interrupted_run_continues_to_the_same_answers() {
    let world = world("generation-cut");
    let base = world.join("base").display().to_string();
    let options = ["--max-new-tokens=6", "--temperature=1.5", "--batch-size=2", "--seed=3"];
    let run = |folder: &Path, seed: &'static str| {
        let options: Vec<&str> = options[..3].iter().copied().chain([seed]).collect();
        generate(folder, &base, &few_rows(), &options)
    };
    let (whole, folder) = (scratch("generation-cut-whole"), scratch("generation-cut-parts"));
    assert_eq!(run(&whole, options[3]).0, Some(0));
    assert!(!whole.join("answers.jsonl.partial").exists());
    let expected = timeless(&whole);

    // All prompts are answered, but the file of answers cannot be written: the name of its
    // temporary file is too long.
    let prompts = whole.join("prompts.jsonl").display().to_string();
    let long = folder.join("a".repeat(245));
    let out = format!("--out={}", long.display());
    let arguments = [&["generate", &base, &prompts, &out, "--quiet"][..], &options].concat();
    let (code, _, err) = run_program(&arguments);
    assert_eq!(code, Some(1));
    assert!(err.contains("cannot write") && err.contains(".partial; once the problem"), "{err}");
    let (partial, out) = (folder.join("answers.jsonl.partial"), folder.join("answers.jsonl"));
    assert!(!long.exists());
    std::fs::rename(long.with_extension("partial"), &partial).unwrap();
    // A line for the run, one for each answer, and one with the hash of each batch.
    let saved = std::fs::read_to_string(&partial).unwrap();
    let lines: Vec<&str> = saved.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 9);

    for (kept, found) in [
        (saved.clone(), Some(5)),
        // Cut off after the last answer, and within a line of the second batch.
        (lines[..8].concat(), Some(4)),
        (lines[..5].concat() + &lines[5][..9], Some(2)),
        // An answer that is not what was written.
        (saved.replacen("\"row\":3", "\"row\":3 ", 1), Some(2)),
        (lines[0].to_owned(), None),
    ] {
        std::fs::write(&partial, kept).unwrap();
        let (code, shown, err) = run(&folder, options[3]);
        assert_eq!(code, Some(0), "{shown}{err}");
        let line = found.map(|found| format!("continuing after {found} of 5 answers"));
        assert_eq!(line.is_some(), shown.contains("continuing after"), "{shown}");
        assert!(line.is_none_or(|line| shown.contains(&line)), "{shown}");
        assert_eq!(timeless(&folder), expected, "{found:?}");
        assert!(!partial.exists());
        std::fs::remove_file(&out).unwrap();
    }

    std::fs::write(&partial, &saved).unwrap();
    let (code, shown, err) = run(&folder, "--seed=4");
    assert_eq!(code, Some(1), "{shown}{err}");
    assert!(
        err.contains("holds 5 answers of another model, other prompts or other settings"),
        "{err}"
    );
    assert!(err.contains("help:") && !out.exists(), "{err}");
    assert_eq!(std::fs::read_to_string(&partial).unwrap(), saved);
    std::fs::remove_file(&partial).unwrap();
    let (code, shown, err) = run(&folder, "--seed=4");
    assert_eq!(code, Some(0), "{shown}{err}");
    assert_ne!(timeless(&folder), expected);
}

#[test]
fn prompts_that_are_too_long_are_reported_before_the_first_answer() {
    let world = world("generation-long");
    let base = world.join("base").display().to_string();
    let folder = scratch("generation-long-out");
    let long = "cow ".repeat(400);
    let rows = [json!({"prompt": "a"}), json!({"prompt": long}), json!({"turns": [long, "b"]})];
    let (code, _, err) = generate(&folder, &base, &rows, &[]);
    assert_eq!(code, Some(1));
    for part in ["prompts.jsonl, line 2: the prompt has", "prompts.jsonl, line 3", "made for 256"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert!(!folder.join("answers.jsonl.partial").exists());

    // If a later turn is too long, only the answers from that turn on are missing.
    let rows = [json!({"turns": ["What is a cow?", long, "Why?"]}), json!({"prompt": "Why?"})];
    let (code, shown, err) = generate(&folder, &base, &rows, &["--max-new-tokens=6"]);
    assert_eq!(code, Some(0), "{shown}{err}");
    assert!(err.contains("prompts.jsonl, line 1: no answer from turn 2 on"), "{err}");
    assert!(shown.contains("in 1 of them"), "{shown}");
    let answers = read_answers(&folder);
    let turns = &answers[0]["choices"][0]["turns"];
    assert_eq!((&turns[1], &turns[2]), (&json!(""), &json!("")));
    assert_eq!(turns.as_array().unwrap().len(), 3);
    assert!(answers[1]["output"].is_string());
}

#[test]
fn sampling_settings_out_of_range_are_refused() {
    let options = ["--top-p=0", "--top-p=1.5", "--temperature=-1", "--temperature=nan"];
    for option in options.into_iter().chain(["--max-new-tokens=0"]) {
        let (code, _, err) = run_program(&["chat", "no-such-model", option]);
        assert_eq!(code, Some(2), "{option}");
        assert!(err.contains("is expected"), "{err}");
    }
    let generate = ["generate", "no-such-model", "prompts.jsonl", "--out=a.jsonl"];
    for option in ["--batch-size=0", "--max-new-tokens=0"] {
        let (code, _, err) = run_program(&[&generate[..], &[option]].concat());
        assert_eq!(code, Some(2), "{option}");
        assert!(err.contains("is expected"), "{err}");
    }
}

/// The stdout of `favonius chat` for the stdin `input`.
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
fn a_conversation_continues_whatever_a_line_starts_with() {
    let Some(model) = asset("models/stories260k") else { return };
    let model = model.to_str().unwrap();
    let options = ["--temperature=0", "--max-new-tokens=16"];
    let questions = ["Tell me a story about a dog.", "/tell what the girl found.", "/clear"];
    let input = format!("\n{}\n", questions.join("\n"));
    let shown = chat(model, &input, &options);
    // The first line is blank, so its answer is blank too.
    assert!(shown.starts_with('\n'), "{shown}");

    let expected = answers("generation-chat", model, &[json!({"turns": questions})], &options);
    let turns = expected[0]["choices"][0]["turns"].as_array().unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected: Vec<String> = turns.iter().map(|turn| words(turn.as_str().unwrap())).collect();
    assert_eq!(words(&shown), expected.join(" "));

    let drawn =
        |seed: &str| chat(model, &input, &["--temperature=1.5", "--max-new-tokens=16", seed]);
    assert_eq!(drawn("--seed=1"), drawn("--seed=1"));
    assert_ne!(drawn("--seed=1"), drawn("--seed=2"));
}
