//! Files that hold one JSON object.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Why an object cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a JSON object")]
    NotJson { path: PathBuf, source: serde_json::Error },
    #[error("{path} is not a JSON object")]
    NotAnObject { path: PathBuf },
}

/// Reads the object in the file at `path` with `parse`; `None` if the file does not exist.
///
/// # Errors
/// The file cannot be read, or does not hold a JSON object.
pub fn read_object(
    path: &Path,
    parse: impl Fn(&str) -> serde_json::Result<Value>,
) -> Result<Option<Map<String, Value>>, ObjectError> {
    let path_buf = || path.to_path_buf();
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| ObjectError::Read { path: path_buf(), source })?,
    };
    match parse(&text).map_err(|source| ObjectError::NotJson { path: path_buf(), source })? {
        Value::Object(fields) => Ok(Some(fields)),
        _ => Err(ObjectError::NotAnObject { path: path_buf() }),
    }
}
