//! One process at a time trains into a folder: two would remove each other's half-written checkpoints.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// An `output_dir` that no other process may train into; given back when dropped, or when the process ends.
pub struct FolderLock {
    /// Folders that were not there before, the inmost first.
    made: Vec<PathBuf>,
    _locked: File,
}

impl FolderLock {
    /// Makes the folder and locks it. The lock is on the folder itself, so that no file is left in it. Where folders
    /// cannot be locked (some network file systems) nothing is checked.
    ///
    /// # Errors
    /// Another process has it, or it cannot be made.
    pub fn of(output_dir: &Path) -> anyhow::Result<Self> {
        check_output(output_dir)?;
        let failed = || format!("cannot make output_dir {}", output_dir.display());
        let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made = output_dir.ancestors().take_while(is_new).map(Path::to_path_buf).collect();
        std::fs::create_dir_all(output_dir).with_context(failed)?;
        let folder = File::open(output_dir).with_context(failed)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another process is training into {}; wait until it has ended, or train into another output_dir",
                output_dir.display()
            ),
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked: {error}", output_dir.display());
            }
        }
        Ok(Self { made, _locked: folder })
    }
}

/// Fails where a run could not write its model. Nothing is left behind: a plan makes no folder.
pub fn check_output(output_dir: &Path) -> anyhow::Result<()> {
    let unusable = |what: String| {
        let folder = output_dir.display();
        format!("output_dir {folder} cannot be used: {what}; choose another output_dir")
    };
    let here = Path::new(".");
    let there = output_dir.ancestors().find(|path| path.exists()).unwrap_or(here);
    if !there.is_dir() {
        bail!(unusable(format!("{} is not a folder", there.display())));
    }
    tempfile::tempfile_in(there)
        .with_context(|| unusable(format!("{} cannot be written", there.display())))?;
    Ok(())
}

/// Whether another process trains into `output_dir` now.
pub fn is_taken(output_dir: &Path) -> bool {
    let folder = File::open(output_dir).ok();
    folder.is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
}

impl Drop for FolderLock {
    /// A run that failed before it wrote anything leaves no folder.
    fn drop(&mut self) {
        for folder in &self.made {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("out/run");
        assert!(!is_taken(&folder));
        let first = FolderLock::of(&folder).unwrap();
        assert!(is_taken(&folder));
        let error = FolderLock::of(&folder).err().expect("it is taken").to_string();
        assert!(error.contains("another process is training into"), "{error}");
        drop(first);
        assert!(!root.path().join("out").exists(), "nothing was written, so nothing is left");
        let second = FolderLock::of(&folder).unwrap();
        std::fs::write(folder.join("plan.json"), "{}").unwrap();
        drop(second);
        assert!(folder.join("plan.json").is_file());
    }
}
