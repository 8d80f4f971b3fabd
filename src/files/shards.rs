//! The index of a model whose weights are in several files, as transformers writes it:
//! `{"weight_map": {TENSOR: FILE}}`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::Value;

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`weight_map` is missing")]
    NoMap,
    #[error("`weight_map` holds {0}, which is not a file name")]
    NotAName(Value),
}

/// The files that the index at `path` names, sorted, each once.
///
/// # Errors
/// The file cannot be read, or is not such an index.
pub fn shards_of(path: &Path) -> Result<BTreeSet<String>, IndexError> {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or(IndexError::NoMap)?;
    let name = |file: &Value| match file {
        Value::String(name) => Ok(name.clone()),
        other => Err(IndexError::NotAName(other.clone())),
    };
    map.values().map(name).collect()
}
