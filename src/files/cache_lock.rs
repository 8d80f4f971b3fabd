//! Locks on cached results, so that of several runs that need the same result one computes it and
//! the others wait.

use std::fs::{File, TryLockError};
use std::path::Path;

/// A lock on one cached result. It is released when it is dropped.
pub struct CacheLock {
    _locked: Option<File>,
}

impl CacheLock {
    /// Takes the lock on `key` in the cache `folder`; `None` if another process holds it. If the
    /// file system cannot lock files, every process gets a lock, and the result may be computed
    /// twice.
    pub fn take(folder: &Path, key: &str) -> Option<Self> {
        let path = folder.join(format!("{key}.lock"));
        let opened = std::fs::create_dir_all(folder).and_then(|()| File::create(&path));
        let Ok(file) = opened else { return Some(Self { _locked: None }) };
        match file.try_lock() {
            Ok(()) => Some(Self { _locked: Some(file) }),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{}: the file cannot be locked: {error}", path.display());
                Some(Self { _locked: None })
            }
        }
    }
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
}
