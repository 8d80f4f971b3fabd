//! Locks on cached results, so that of several runs that need the same result one computes it and
//! the others wait.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".lock";

/// A lock on one cached result. It is released, and its file removed, when it is dropped.
pub struct CacheLock {
    locked: Option<(PathBuf, File)>,
}

impl CacheLock {
    /// Takes the lock on `key` in the cache `folder`; `None` if another process holds it. If the
    /// file system cannot lock files, every process gets a lock, and the result may be computed
    /// twice.
    pub fn take(folder: &Path, key: &str) -> Option<Self> {
        let path = folder.join(format!("{key}{SUFFIX}"));
        loop {
            let opened = std::fs::create_dir_all(folder).and_then(|()| open(&path));
            let Ok(file) = opened else { return Some(Self { locked: None }) };
            match file.try_lock() {
                // The process that held the lock may have removed the file meanwhile. A new file
                // has the name then, which others lock.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) => return Some(Self { locked: Some((path, file)) }),
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Error(error)) => {
                    tracing::warn!("{}: the file cannot be locked: {error}", path.display());
                    return Some(Self { locked: None });
                }
            }
        }
    }
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // Removed before it is unlocked, so that only its owner removes it.
        if let Some((path, _file)) = &self.locked
            && cfg!(unix)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes lock files in the cache `folder` that killed processes left, of keys that `is_wanted`.
pub fn remove_unused_locks(folder: &Path, is_wanted: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let key = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        // Taking the lock and dropping it removes the file.
        if let Some(key) = key.filter(|key| is_wanted(key)) {
            drop(CacheLock::take(folder, key));
        }
    }
}

/// Opens the lock's file, and creates it if it is missing. What is in the file does not matter; a
/// link is an error, since its target is not a file of the cache.
fn open(path: &Path) -> io::Result<File> {
    if path.symlink_metadata().is_ok_and(|facts| facts.is_symlink()) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    OpenOptions::new().write(true).create(true).truncate(false).open(path)
}

/// Whether `path` still names the open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |facts: std::fs::Metadata| (facts.dev(), facts.ino());
    let (opened, named) = (file.metadata().map(place), std::fs::metadata(path).map(place));
    matches!((opened, named), (Ok(opened), Ok(named)) if opened == named)
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_holds_a_lock() {
        let folder = tempfile::tempdir().unwrap();
        let take = |key| CacheLock::take(folder.path(), key);
        let first = take("rows").unwrap();
        assert!(take("rows").is_none());
        assert!(take("other rows").is_some());
        drop(first);
        assert!(take("rows").is_some());
    }

    #[test]
    #[cfg(unix)]
    fn locks_leave_no_files_and_those_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        drop(CacheLock::take(folder.path(), "a"));
        assert_eq!(names(), 0);
        for key in ["left", "notes"] {
            std::fs::write(folder.path().join(format!("{key}.lock")), "").unwrap();
        }
        let held = CacheLock::take(folder.path(), "held").unwrap();
        remove_unused_locks(folder.path(), |key| key != "notes");
        assert!(!folder.path().join("left.lock").exists());
        assert!(folder.path().join("notes.lock").is_file());
        assert!(CacheLock::take(folder.path(), "held").is_none(), "it is still held");
        drop(held);
    }

    /// Threads stand for processes: each opens the file anew.
    #[test]
    fn removed_files_do_not_let_two_in() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let Some(lock) = CacheLock::take(folder.path(), "rows") else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("mine");
        std::fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, folder.path().join("rows.lock")).unwrap();
        drop(CacheLock::take(folder.path(), "rows"));
        assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
        assert!(folder.path().join("rows.lock").is_symlink());
    }
}
