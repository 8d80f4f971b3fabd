//! The mark of a finished run: `favonius.json` in its folder.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::files::replace::replace_file;

/// Written last: a folder with it holds a finished run.
const FINISHED: &str = "favonius.json";

/// Whether `output_dir` holds a finished run.
pub fn is_finished(output_dir: &Path) -> bool {
    output_dir.join(FINISHED).is_file()
}

/// What the mark of a finished run says; nothing where it cannot be read.
pub fn read_mark(output_dir: &Path) -> Value {
    let text = std::fs::read_to_string(output_dir.join(FINISHED)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The settings that a finished run was trained with; none of one of an earlier version.
pub fn read_settings(output_dir: &Path) -> BTreeMap<String, String> {
    serde_json::from_value(read_mark(output_dir)["settings"].take()).unwrap_or_default()
}

/// Writes the mark of a finished run.
pub fn write_mark(output_dir: &Path, mark: &Value) -> io::Result<()> {
    replace_file(&output_dir.join(FINISHED), format!("{mark:#}\n").as_bytes())
}

/// Makes a finished run unfinished, so that it can be trained anew.
pub fn forget_finished(output_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(output_dir.join(FINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
