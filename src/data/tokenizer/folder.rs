//! The files of a tokenizer's folder besides tokenizer.json.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::Value as Json;

use super::error::TokenizerError;

pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const ADDED: &str = "added_tokens.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// The files of a tokenizer, as transformers names them.
pub(super) const FILES: [&str; 9] = [
    "tokenizer.json",
    CONFIG,
    SPECIAL,
    "tokenizer.model",
    ADDED,
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    TEMPLATE,
];

/// Reads a JSON file; `null` if it is missing.
pub(super) fn read_json(path: &Path) -> Result<Json, TokenizerError> {
    let object = serde_json::from_slice::<serde_json::Map<String, Json>>;
    match std::fs::read(path) {
        Ok(bytes) => object(&bytes).map(Json::from).map_err(|error| TokenizerError::Broken {
            path: path.to_owned(),
            message: error.to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Json::Null),
        Err(source) => Err(TokenizerError::Io { path: path.to_owned(), source }),
    }
}

/// Special tokens such as `eos_token`, each a text or an object with a `content`. As in
/// transformers, special_tokens_map.json wins over tokenizer_config.json, but is ignored if the
/// latter has `added_tokens_decoder`.
pub(super) fn special_tokens(config: &Json, map: &Json) -> BTreeMap<String, String> {
    let mut tokens = BTreeMap::new();
    let map = map.as_object().filter(|_| config["added_tokens_decoder"].is_null());
    for object in [config.as_object(), map].into_iter().flatten() {
        for (key, value) in object.iter().filter(|(key, _)| key.ends_with("_token")) {
            if let Some(token) = value.as_str().or_else(|| value["content"].as_str()) {
                tokens.insert(key.clone(), token.to_owned());
            }
        }
    }
    tokens
}

/// chat_template.jinja, else `chat_template` of tokenizer_config.json; of several named templates
/// the `default`.
pub(super) fn own_template(dir: &Path, config: &Json) -> Result<Option<String>, TokenizerError> {
    let path = dir.join(TEMPLATE);
    if path.is_file() {
        return std::fs::read_to_string(&path)
            .map(Some)
            .map_err(|source| TokenizerError::Io { path, source });
    }
    let template = &config["chat_template"];
    let named = template.as_array().and_then(|templates| {
        templates
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str())
    });
    Ok(template.as_str().or(named).map(str::to_owned))
}

/// Whether transformers 5 gives other ids than tokenizer.json: for Llama tokenizers it only reads
/// the vocabulary, and uses the pre-tokenizer and normalizer of the class.
pub(super) fn class_means_other_ids(dir: &Path, config: &Json) -> Result<bool, TokenizerError> {
    const OWN_RULES: [&str; 4] =
        ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"];
    let class = config["tokenizer_class"].as_str();
    Ok(class.is_some_and(|class| OWN_RULES.contains(&class))
        && read_json(&dir.join("config.json"))?["model_type"] == "llama")
}
