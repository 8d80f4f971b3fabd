//! The index of a model whose weights are in several files, as transformers writes it:
//! `{"weight_map": {TENSOR: FILE}}`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::names::is_file_name;

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`weight_map` is missing")]
    NoMap,
    #[error("`weight_map` holds {0}, which is not the name of a file in the model's folder")]
    NotAName(Value),
}

/// Whether this is a name under which weights are saved: in one file, in shards with an index, or
/// as an adapter.
pub fn is_weights(name: &str) -> bool {
    let is_number = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let shard = shard.and_then(|numbers| numbers.split_once("-of-"));
    let whole = ["model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"];
    whole.contains(&name)
        || shard.is_some_and(|(number, total)| is_number(number) && is_number(total))
}

/// The files that the index at `path` names, sorted, each once. All are plain names: the index of
/// an untrusted model cannot lead out of its folder.
///
/// # Errors
/// The file cannot be read, or is not such an index.
pub fn shards_of(path: &Path) -> Result<BTreeSet<String>, IndexError> {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or(IndexError::NoMap)?;
    let name = |file: &Value| match file {
        Value::String(name) if is_file_name(name) => Ok(name.clone()),
        other => Err(IndexError::NotAName(other.clone())),
    };
    map.values().map(name).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_names_inside_the_folder_are_shards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors.index.json");
        let shards = |file: Value| {
            std::fs::write(&path, json!({"weight_map": {"x": file}}).to_string()).unwrap();
            shards_of(&path)
        };
        for file in ["/abs/.profile", "../../x.safetensors", "a/b.safetensors", "..", ""] {
            let error = shards(json!(file)).unwrap_err().to_string();
            assert!(error.contains("not the name of a file in the model's folder"), "{error}");
        }
        assert!(shards(json!(3)).is_err());
        assert!(shards(json!("model-00001-of-00001.safetensors")).is_ok());
    }
}
