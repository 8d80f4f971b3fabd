//! Runs side by side that need the same thing: one makes it, the others wait.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Held while something is made that other processes would make too; given back when dropped.
pub struct CacheLock {
    _locked: Option<File>,
}

impl CacheLock {
    /// The turn at `key` in the cache `folder`, unless another process has it. Where files cannot be locked everybody has it:
    /// then the same thing is made twice.
    pub fn take(folder: &Path, key: &str) -> Option<Self> {
        let path = folder.join(format!("{key}.lock"));
        let opened = std::fs::create_dir_all(folder).and_then(|()| File::create(&path));
        let Ok(file) = opened else { return Some(Self { _locked: None }) };
        match file.try_lock() {
            Ok(()) => Some(Self { _locked: Some(file) }),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{}: cannot be locked: {error}", path.display());
                Some(Self { _locked: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_turn() {
        let folder = tempfile::tempdir().unwrap();
        let take = |key| CacheLock::take(folder.path(), key);
        let first = take("rows").unwrap();
        assert!(take("rows").is_none());
        assert!(take("other rows").is_some());
        drop(first);
        assert!(take("rows").is_some());
    }
}
