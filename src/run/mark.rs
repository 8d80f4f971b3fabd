//! The mark of a finished run: `favonius.json` in its folder.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::files::replace::replace_file;
use crate::model::adapter::peft;
use crate::model::weights::WeightFiles;
use crate::train::identity::FORMAT_VERSION;

/// The name of the mark. It is written last, so a folder that has it holds a finished run.
const FINISHED: &str = "favonius.json";

/// Whether `output_dir` holds a finished run: a mark and the model that it stands for.
pub fn is_finished(output_dir: &Path) -> bool {
    output_dir.join(FINISHED).exists() && unusable(output_dir).is_none()
}

/// Why a mark that exists does not stand for a finished run; `None` if it does, or if no mark
/// exists.
pub fn unusable(output_dir: &Path) -> Option<String> {
    if !output_dir.join(FINISHED).exists() {
        return None;
    }
    if !read_mark(output_dir)["stage"].is_string() {
        return Some(format!("{FINISHED} is damaged"));
    }
    // Opening reads the headers only.
    let model = match peft::is_adapter(output_dir) {
        true => WeightFiles::open_one(output_dir, peft::WEIGHTS, str::to_owned),
        false => WeightFiles::open(output_dir),
    };
    model.err().map(|error| format!("{FINISHED} is there without its model: {error}"))
}

/// The content of the mark; an empty object if it cannot be read or is no object.
pub fn read_mark(output_dir: &Path) -> Value {
    let text = std::fs::read_to_string(output_dir.join(FINISHED)).unwrap_or_default();
    Value::Object(serde_json::from_str::<Map<_, _>>(&text).unwrap_or_default())
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
            read_settings(dir.path()).len()
        };
        assert_eq!(read(json!({"settings_version": FORMAT_VERSION, "settings": settings})), 1);
        assert_eq!(read(json!({"settings": {"optim": "AdamW"}})), 0);
        assert_eq!(read(json!({"settings_version": FORMAT_VERSION + 1, "settings": settings})), 0);
        assert_eq!(read(json!("damaged")), 0);
    }

    #[test]
    fn only_a_whole_mark_beside_its_model_is_a_finished_run() {
        let dir = tempfile::tempdir().unwrap();
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        assert!(!is_finished(dir.path()) && unusable(dir.path()).is_none());
        // A safetensors file without tensors: the length of its header, and the header.
        let model = [&2u64.to_le_bytes()[..], b"{}"].concat();
        write("model.safetensors", &model);
        for mark in ["", "null", "{}", "[]", "[1]", "3", "{\"stage\": 1}", "{\"stage\": \"SF"] {
            write(FINISHED, mark.as_bytes());
            assert!(!is_finished(dir.path()), "{mark}");
            assert_eq!(unusable(dir.path()).as_deref(), Some("favonius.json is damaged"));
            assert_eq!(read_mark(dir.path())["hub"], Value::Null);
            // Writing a field of it must not panic.
            let mut mark = read_mark(dir.path());
            mark["hub"] = json!({});
        }
        write(FINISHED, b"{\"stage\": \"SFT\"}");
        assert!(is_finished(dir.path()));
        write("model.safetensors", &model[..9]);
        assert!(unusable(dir.path()).unwrap().contains("model.safetensors is damaged"));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        assert!(unusable(dir.path()).unwrap().contains("is there without its model: "));
        assert!(!is_finished(dir.path()));
    }
}
