//! Checks of file names that come out of a file or from a server. Only names that pass are joined
//! to a folder: any other could lead out of it.

use std::path::{Component, Path};

/// Whether `name` names a file directly inside a folder: no separator, no `..`, no control
/// character.
pub fn is_file_name(name: &str) -> bool {
    is_path_inside(name) && !name.contains('/')
}

/// Whether `path` stays inside the folder that it is joined to: it is relative, without `..`,
/// backslashes and control characters.
pub fn is_path_inside(path: &str) -> bool {
    let is_plain = |part: Component| matches!(part, Component::Normal(_));
    !path.is_empty()
        && !path.contains(|c: char| c == '\\' || c.is_control())
        && Path::new(path).components().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_a_folder_are_refused() {
        let outside =
            ["", ".", "..", "/", "/abs/.profile", "../x", "a/../../x", "..\\x", "C:\\x", "a\nb"];
        for name in outside {
            assert!(!is_path_inside(name) && !is_file_name(name), "{name:?}");
        }
        for name in ["model-00001-of-00002.safetensors", "a b", "..a", ".hidden"] {
            assert!(is_file_name(name), "{name:?}");
        }
        assert!(is_path_inside("data/train.jsonl") && !is_file_name("data/train.jsonl"));
    }
}
