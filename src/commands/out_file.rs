//! Whether a command's file can be written where `--out` says: asked first, since answers may take hours.

use std::path::Path;

use anyhow::bail;

/// Fails where there could be no file at `out`. Nothing is left behind.
pub fn check_file(out: &Path) -> anyhow::Result<()> {
    let name = out.display();
    if out.file_name().is_none() || out.is_dir() {
        bail!("--out {name}: this is a folder\nhelp: name a file in it");
    }
    let folder = match out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let folder = folder.display();
        bail!("--out {name}: there is no folder {folder}\nhelp: make it, or write elsewhere");
    }
    check_folder("--out", folder)
}

/// Whether both lead to one file that is there, whatever they call it.
pub fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Fails where no file could be made in `folder`, which `option` named. Nothing is left behind.
pub fn check_folder(option: &str, folder: &Path) -> anyhow::Result<()> {
    if let Err(error) = tempfile::tempfile_in(folder) {
        let folder = folder.display();
        bail!(
            "{option}: cannot write into the folder {folder}: {error}\nhelp: mend that, or write elsewhere"
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
        assert!(!is_same(&inside("a"), &inside("a")), "there is none");
        std::fs::write(inside("a"), "").unwrap();
        std::fs::write(inside("b"), "").unwrap();
        assert!(is_same(&inside("a"), &inside("./a")) && !is_same(&inside("a"), &inside("b")));
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |inside: &str| check_file(&folder.path().join(inside)).unwrap_err().to_string();
        let missing = error("missing/page.html");
        assert!(
            missing.contains("there is no folder") && missing.contains("missing\n"),
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
