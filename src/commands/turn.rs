//! Runs side by side that need the same thing: one makes it, the others wait.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::train::event::{Event, Observer};

/// Held while something is made that other processes would make too; given back when dropped.
pub struct Turn {
    _locked: Option<File>,
}

impl Turn {
    /// Waits until no other process has its turn at `key` in the cache `folder`. Where files cannot be locked
    /// nobody waits: then the same thing is made twice.
    ///
    /// # Errors
    /// The user cannot be told.
    pub fn wait(folder: &Path, key: &str, observer: &mut dyn Observer) -> std::io::Result<Self> {
        let path = folder.join(format!("{key}.lock"));
        let opened = std::fs::create_dir_all(folder).and_then(|()| File::create(&path));
        let Ok(file) = opened else { return Ok(Self { _locked: None }) };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            observer.on(&Event::Message(&format!("waiting for another run that makes {key}")))?;
            if let Err(error) = file.lock() {
                tracing::warn!("{}: cannot be locked: {error}", path.display());
            }
        }
        Ok(Self { _locked: Some(file) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Turn::wait(folder.path(), "rows", &mut ()).unwrap();
        let path = folder.path().to_path_buf();
        let (told, heard) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            let turn = Turn::wait(&path, "rows", &mut ()).unwrap();
            told.send(()).unwrap();
            drop(turn);
        });
        let early = heard.recv_timeout(std::time::Duration::from_millis(100));
        assert!(early.is_err(), "it did not wait");
        drop(first);
        heard.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        second.join().unwrap();
    }
}
