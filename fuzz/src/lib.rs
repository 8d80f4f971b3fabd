//! The targets: functions that read arbitrary bytes as a foreign file. They end, and do not panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use favonius::data::row_counts::readable_rows;
use favonius::data::{Message, Tokenizer};
use favonius::files::caught::is_catching;
use favonius::files::names::is_file_name;
use favonius::files::shards::shards_of;
use favonius::infer;
use favonius::model::config::ModelConfig;
use favonius::model::weights::WeightFiles;
use favonius::recipe::{Recipe, Stage, Sweep};
use favonius::report::event_files::read_folder;
use favonius::run::mark as run_mark;
use favonius::train::checkpoint;
use favonius::train::state::TrainerState;

/// A target with its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 11] = [
    ("recipe", recipe),
    ("jsonl", jsonl),
    ("parquet", parquet),
    ("template", template),
    ("tokenizer", tokenizer),
    ("config", config),
    ("safetensors", safetensors),
    ("shard_index", shard_index),
    ("mark", mark),
    ("events", events),
    ("prompts", prompts),
];

/// Makes only those panics end the process that the library does not turn into errors. Call it
/// first in every target.
pub fn begin() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_catching() {
            abort(panic);
        }
    }));
}

/// A folder of this process for the files of a target.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("favonius-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the folder of temporary files can be written");
        folder
    })
}

/// Writes the bytes into the file `name` of [`folder`], and returns its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("a temporary file can be written");
    path
}

/// A small tokenizer whose token ids are those of bytes, as the text of its tokenizer.json.
pub fn tokenizer_json() -> String {
    let vocab: serde_json::Map<String, serde_json::Value> = ["a", "b", "user", "assistant", "</s>"]
        .into_iter()
        .zip(0..)
        .map(|(token, id): (&str, u32)| (token.to_owned(), id.into()))
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"},
    })
    .to_string()
}

/// Recipes of all stages, and sweeps. The first byte chooses.
pub fn recipe(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let file = Path::new("recipe.yaml");
    match Stage::ALL.get(usize::from(*first) % (Stage::ALL.len() + 1)) {
        Some(stage) => {
            if let Err(errors) = Recipe::parse(text, file, *stage, &[]) {
                let _ = errors.to_string();
            }
        }
        None => {
            if let Err(errors) = Sweep::parse(text, file) {
                let _ = errors.to_string();
            }
        }
    }
}

/// Rows of .jsonl files.
pub fn jsonl(data: &[u8]) {
    rows("rows.jsonl", data);
}

/// Rows of .parquet files.
pub fn parquet(data: &[u8]) {
    rows("rows.parquet", data);
}

fn rows(name: &str, data: &[u8]) {
    let path = file(name, data);
    let columns = ["messages", "prompt", "text", "label", "tools"].map(str::to_owned);
    if let Err(error) = readable_rows(&path, &columns) {
        let _ = error.to_string();
    }
}

/// Chat templates: compiling, and rendering a chat.
pub fn template(data: &[u8]) {
    let Ok(template) = std::str::from_utf8(data) else { return };
    file("tokenizer.json", tokenizer_json().as_bytes());
    let folder = folder();
    let Ok(tokenizer) = Tokenizer::load(folder, Some(template), Some("</s>")) else { return };
    let chat = [Message::new("user", "a b"), Message::new("assistant", "b")];
    for generate in [false, true] {
        let _ = tokenizer.render(&chat, generate);
    }
}

/// tokenizer.json: loading, encoding, decoding.
pub fn tokenizer(data: &[u8]) {
    file("tokenizer.json", data);
    let Ok(tokenizer) = Tokenizer::load(folder(), None, None) else { return };
    for text in ["", "a b", " Two  words,\n\u{e4}\u{6f22}\u{1f600}"] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&ids, false);
        }
    }
}

/// config.json of models.
pub fn config(data: &[u8]) {
    let Ok(raw) = serde_json::from_slice(data) else { return };
    if let Ok(config) = ModelConfig::from_json(raw, Path::new("config.json")) {
        let _ = (config.parameters(), config.attention_shape());
    }
}

/// The header of safetensors files, and the tensors that it names.
pub fn safetensors(data: &[u8]) {
    file("model.safetensors", data);
    let Ok(weights) = WeightFiles::open(folder()) else { return };
    for name in weights.names() {
        let shape = weights.shape(name).expect("a named tensor has a shape");
        let _ = weights.read(name, &shape);
    }
}

/// model.safetensors.index.json.
pub fn shard_index(data: &[u8]) {
    let path = file("model.safetensors.index.json", data);
    if let Ok(files) = shards_of(&path) {
        assert!(files.iter().all(|file| is_file_name(file)), "{files:?}");
    }
}

/// The mark of a finished run, and the files of a checkpoint that say what it holds.
pub fn mark(data: &[u8]) {
    let folder = folder();
    for name in ["favonius.json", "checkpoint.json", "position.json", "optimizer.safetensors"] {
        file(name, data);
    }
    let state = file("trainer_state.json", data);
    let _ = (
        run_mark::is_finished(folder),
        run_mark::unusable(folder),
        run_mark::read_settings(folder),
    );
    let _ = (checkpoint::verify(folder).is_ok(), checkpoint::read_position(folder).is_ok());
    let _ = (TrainerState::read(&state).is_ok(), TrainerState::read_foreign(&state).is_ok());
}

/// TensorBoard event files.
pub fn events(data: &[u8]) {
    file("events.out.tfevents.1", data);
    let _ = read_folder(folder(), None);
}

/// Prompt files of `generate`: .jsonl, and .json.
pub fn prompts(data: &[u8]) {
    for name in ["prompts.jsonl", "prompts.json"] {
        if let Err(error) = infer::prompts::read(&file(name, data)) {
            let _ = error.to_string();
        }
    }
}
