//! The mark of a finished run: `favonius.json` in its folder.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::files::replace::replace_file;
use crate::train::identity::FORMAT_VERSION;

/// The name of the mark. It is written last, so a folder that has it holds a finished run.
const FINISHED: &str = "favonius.json";

/// Whether `output_dir` holds a finished run.
pub fn is_finished(output_dir: &Path) -> bool {
    output_dir.join(FINISHED).is_file()
}

/// The content of the mark; null if it cannot be read.
pub fn read_mark(output_dir: &Path) -> Value {
    let text = std::fs::read_to_string(output_dir.join(FINISHED)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The settings with which a finished run was trained. Empty if the mark has another format
/// version, whose settings cannot be compared.
pub fn read_settings(output_dir: &Path) -> BTreeMap<String, String> {
    let mut mark = read_mark(output_dir);
    match mark["settings_version"] == FORMAT_VERSION {
        true => serde_json::from_value(mark["settings"].take()).unwrap_or_default(),
        false => BTreeMap::new(),
    }
}

/// Writes the mark, which makes the folder that of a finished run.
///
/// # Errors
/// The file cannot be written.
pub fn write_mark(output_dir: &Path, mark: &Value) -> io::Result<()> {
    replace_file(&output_dir.join(FINISHED), format!("{mark:#}\n").as_bytes())
}

/// Removes the mark, so that the run can be trained again. A missing mark is no error.
///
/// # Errors
/// The file cannot be removed.
pub fn remove_mark(output_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(output_dir.join(FINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_of_another_version_are_not_compared() {
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({"optim": "adam_w"});
        let read = |mark: Value| {
            write_mark(dir.path(), &mark).unwrap();
            assert!(is_finished(dir.path()));
            read_settings(dir.path()).len()
        };
        assert_eq!(read(json!({"settings_version": FORMAT_VERSION, "settings": settings})), 1);
        assert_eq!(read(json!({"settings": {"optim": "AdamW"}})), 0);
        assert_eq!(read(json!({"settings_version": FORMAT_VERSION + 1, "settings": settings})), 0);
        assert_eq!(read(json!("damaged")), 0);
    }
}
