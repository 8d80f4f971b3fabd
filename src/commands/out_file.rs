//! Checks that a command can write the file of `--out`, before it computes answers for hours.

use std::path::Path;

use anyhow::bail;

/// Fails if no file can be created at `out`. Leaves nothing behind.
pub fn check_file(out: &Path) -> anyhow::Result<()> {
    let name = out.display();
    if out.file_name().is_none() || out.is_dir() {
        bail!("--out {name}: this is a folder\nhelp: name a file inside it");
    }
    let folder = match out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let folder = folder.display();
        bail!(
            "--out {name}: the folder {folder} does not exist\n\
             help: create it, or choose another place"
        );
    }
    check_folder("--out", folder)
}

/// Whether both paths lead to the same existing file.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Fails if no file can be created in `folder`, the value of `option`. Leaves nothing behind.
pub fn check_folder(option: &str, folder: &Path) -> anyhow::Result<()> {
    if let Err(error) = tempfile::tempfile_in(folder) {
        let folder = folder.display();
        bail!(
            "{option}: cannot write into the folder {folder}: {error}\n\
             help: fix this, or choose another place"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        assert!(!is_same(&inside("a"), &inside("a")), "neither exists");
        std::fs::write(inside("a"), "").unwrap();
        std::fs::write(inside("b"), "").unwrap();
        assert!(is_same(&inside("a"), &inside("./a")) && !is_same(&inside("a"), &inside("b")));
    }

    #[test]
    fn places_without_write_access_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |inside: &str| check_file(&folder.path().join(inside)).unwrap_err().to_string();
        let missing = error("missing/page.html");
        assert!(
            missing.contains("the folder ") && missing.contains("missing does not exist\n"),
            "{missing}"
        );
        assert!(error("").contains("this is a folder"));
        assert!(error("..").contains("this is a folder"));
        check_file(&folder.path().join("page.html")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        let none = folder.path().join("none");
        let error = check_folder("--figures", &none).unwrap_err().to_string();
        assert!(error.starts_with("--figures: cannot write into the folder"), "{error}");
    }
}
