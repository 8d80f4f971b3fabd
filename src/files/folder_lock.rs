//! One process at a time trains into a folder: two would remove each other's half-written
//! checkpoints.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Why no run can write into an `output_dir`.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file has the name of the folder, or of one of its parents.
    #[error(
        "output_dir {folder} cannot be used: {path} is not a folder; choose another output_dir"
    )]
    NotAFolder { folder: PathBuf, path: PathBuf },
    /// The nearest existing folder cannot be written.
    #[error(
        "output_dir {folder} cannot be used: {path} cannot be written; choose another output_dir"
    )]
    ReadOnly { folder: PathBuf, path: PathBuf, source: io::Error },
    /// The folder cannot be created or opened.
    #[error("cannot make output_dir {folder}")]
    Create { folder: PathBuf, source: io::Error },
    /// Another process holds the lock.
    #[error(
        "another process is training into {folder}; wait until it has ended, or train into \
         another output_dir"
    )]
    Taken { folder: PathBuf },
}

/// The lock on an `output_dir`. It is released when it is dropped, or when the process ends.
pub struct FolderLock {
    /// Folders that did not exist before, the innermost first.
    created: Vec<PathBuf>,
    _locked: File,
}

impl FolderLock {
    /// Creates the folder and locks it. The lock is on the folder itself, so that no file is left
    /// in it. On a file system that cannot lock folders (some network file systems) nothing is
    /// checked.
    ///
    /// # Errors
    /// Another process holds the lock, or the folder cannot be created.
    pub fn acquire(output_dir: &Path) -> Result<Self, FolderError> {
        check_output(output_dir)?;
        let failed = |source| FolderError::Create { folder: output_dir.into(), source };
        let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let created = output_dir.ancestors().take_while(is_new).map(Path::to_path_buf).collect();
        std::fs::create_dir_all(output_dir).map_err(failed)?;
        let folder = File::open(output_dir).map_err(failed)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FolderError::Taken { folder: output_dir.into() });
            }
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked: {error}", output_dir.display());
            }
        }
        Ok(Self { created, _locked: folder })
    }
}

/// Checks that a run can write its model into `output_dir`. Nothing is left behind: a plan makes no
/// folder.
///
/// # Errors
/// A parent of the folder is a file, or cannot be written.
pub fn check_output(output_dir: &Path) -> Result<(), FolderError> {
    let existing = output_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    if !existing.is_dir() {
        return Err(FolderError::NotAFolder { folder: output_dir.into(), path: existing.into() });
    }
    let writable = tempfile::tempfile_in(existing).map(drop);
    writable.map_err(|source| FolderError::ReadOnly {
        folder: output_dir.into(),
        path: existing.into(),
        source,
    })
}

/// Whether another process trains into `output_dir` now.
pub fn is_taken(output_dir: &Path) -> bool {
    let folder = File::open(output_dir).ok();
    folder.is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
}

impl Drop for FolderLock {
    /// A run that failed before it wrote anything leaves no folder.
    fn drop(&mut self) {
        for folder in &self.created {
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
        let first = FolderLock::acquire(&folder).unwrap();
        assert!(is_taken(&folder));
        let error = FolderLock::acquire(&folder).err().expect("it is taken").to_string();
        assert!(error.contains("another process is training into"), "{error}");
        drop(first);
        assert!(!root.path().join("out").exists(), "nothing was written, so nothing is left");
        let second = FolderLock::acquire(&folder).unwrap();
        std::fs::write(folder.join("plan.json"), "{}").unwrap();
        drop(second);
        assert!(folder.join("plan.json").is_file());
    }
}
