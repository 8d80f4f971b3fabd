//! The folders of checkpoints: which exist, which are removed, and which this program wrote.

use std::io;
use std::path::{Path, PathBuf};

use crate::files::replace::is_random_name;
use crate::train::manifest::MANIFEST;

/// The start of the name of a folder into which a checkpoint is being written.
pub(super) const HIDDEN: &str = ".checkpoint-";

/// Checkpoints under `output_dir`, by step, newest first.
pub fn list(output_dir: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(output_dir).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((step_of(&entry.path())?, entry.path()))).collect();
    found.sort_unstable_by_key(|(step, _)| std::cmp::Reverse(*step));
    found
}

/// The step in the name of a checkpoint's folder. `None` if it is not the name of a checkpoint.
pub fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
}

/// Removes an older checkpoint of the same step. Anything else with its name is kept under another
/// name.
pub(super) fn make_room(target: &Path) -> io::Result<()> {
    if is_ours(target) {
        return std::fs::remove_dir_all(target);
    }
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    let name = |number: usize| {
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".before-{number}"));
        PathBuf::from(name)
    };
    let free = (1..).map(name).find(|path| path.symlink_metadata().is_err());
    let free = free.expect("some number is free");
    tracing::warn!(
        "{} was not written by this program; it is kept as {}",
        target.display(),
        free.display()
    );
    std::fs::rename(target, free)
}

/// Removes hidden folders of processes that were killed while they wrote a checkpoint.
///
/// # Errors
/// A folder cannot be removed.
pub fn remove_leftovers(output_dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(output_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_random_name(&name, HIDDEN) && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Whether this program wrote the folder: checkpoints of other programs have no manifest. Only such
/// folders are ever removed.
pub fn is_ours(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Removes the oldest checkpoints of this program beyond `limit`, but never `best` and never that
/// of step `newest`, the current one. Checkpoints of later steps are removed first: an earlier
/// start wrote them, and the run did not continue from them.
pub fn prune(output_dir: &Path, newest: u64, limit: usize, best: Option<&Path>) -> io::Result<()> {
    let mut all = list(output_dir);
    all.retain(|(_, path)| is_ours(path));
    all.sort_by_key(|(step, _)| *step > newest);
    let is_best = |path: &Path| best.is_some_and(|best| best.file_name() == path.file_name());
    let others = all.iter().filter(|(_, path)| !is_best(path));
    // As in transformers, the best one counts towards the limit, but the newest one always stays.
    let has_best = all.iter().any(|(_, path)| is_best(path));
    let newest_is_another = all.first().is_some_and(|(_, path)| !is_best(path));
    let keep = limit.saturating_sub(usize::from(has_best)).max(usize::from(newest_is_another));
    for (_, path) in others.skip(keep) {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::checkpoint::tests::sealed;

    #[test]
    fn the_newest_and_the_best_are_what_a_limit_leaves() {
        let left_after = |newest: u64, limit: usize, best: Option<&str>| -> Vec<u64> {
            let folder = tempfile::tempdir().unwrap();
            for step in [2, 4, 6, 8] {
                sealed(folder.path(), step);
            }
            prune(folder.path(), newest, limit, best.map(Path::new)).unwrap();
            list(folder.path()).into_iter().map(|(step, _)| step).collect()
        };
        let left = |limit, best| left_after(8, limit, best);
        assert_eq!(left(1, None), [8]);
        assert_eq!(left(1, Some("checkpoint-8")), [8]);
        assert_eq!(left(1, Some("checkpoint-2")), [8, 2]);
        assert_eq!(left(2, Some("checkpoint-2")), [8, 2]);
        assert_eq!(left(3, Some("checkpoint-8")), [8, 6, 4]);
        assert_eq!(left(3, Some("checkpoint-2")), [8, 6, 2]);
        // 6 and 8 are damaged checkpoints of an earlier start; the run continued from one before
        // them.
        assert_eq!(left_after(4, 1, None), [4]);
        assert_eq!(left_after(4, 2, Some("checkpoint-2")), [4, 2]);
        assert_eq!(left_after(4, 3, None), [8, 4, 2]);
    }

    #[test]
    fn what_this_program_did_not_write_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["checkpoint-1", ".checkpoint-notes-of-mine", ".checkpoint-aB3xY9"] {
            std::fs::create_dir(path(folder)).unwrap();
            std::fs::write(path(folder).join("trainer_state.json"), "{}").unwrap();
        }
        std::fs::write(path(".checkpoint-abcdef"), "a file").unwrap();
        let ours = sealed(dir.path(), 2);
        sealed(dir.path(), 3);
        prune(dir.path(), 3, 1, None).unwrap();
        assert!(!ours.exists() && path("checkpoint-1").is_dir());
        remove_leftovers(dir.path()).unwrap();
        assert!(!path(".checkpoint-aB3xY9").exists(), "a killed process left it");
        assert!(path(".checkpoint-notes-of-mine").is_dir() && path(".checkpoint-abcdef").is_file());
        make_room(&path("checkpoint-3")).unwrap();
        make_room(&path("checkpoint-1")).unwrap();
        assert!(!path("checkpoint-3").exists() && !path("checkpoint-1").exists());
        assert!(path("checkpoint-1.before-1/trainer_state.json").is_file());
        make_room(&path("checkpoint-1")).unwrap();
    }
}
