//! Atomic replacement of files.
//!
//! The new content goes into a temporary file beside the old one, `.NAME.XXXXXX.tmp`. Its name is
//! random and it is created anew, so that it neither follows a link nor is shared with another
//! process. It is locked while it is written: a temporary file that nobody has locked was left by a
//! process that was killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;

const SUFFIX: &str = ".tmp";
/// Random letters and digits in the name of a temporary file.
const RANDOM: usize = 6;
/// A temporary file is locked right after it is created. A younger file may not be locked yet.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// Replaces the file at `path`: writes `bytes` into a file beside it, syncs that file to disk, and
/// renames it. After a crash, `path` holds either the old content or the new. If several processes
/// replace the file, the last one wins. Removes temporary files that killed processes left.
///
/// # Errors
/// The error of the file system, with the path in its message.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file_with(path, |file| file.write_all(bytes))
}

/// [`replace_file`] with the content that `write` writes.
///
/// # Errors
/// The error of `write` or of the file system, with the path in its message.
pub fn replace_file_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
    };
    let name = path.file_name().ok_or_else(|| named(io::ErrorKind::InvalidInput.into()))?;
    let folder = folder_of(path);
    let is_of_file = |of: &str| OsStr::new(of) == name;
    remove_leftovers(folder, is_of_file);
    let written = written_beside(folder, name, write);
    let replaced = written.and_then(|file| file.persist(path).map_err(|error| error.error));
    replaced.map_err(named)?;
    sync_folder(folder).map_err(named)
}

/// [`replace_file`] for files of a cache: creates the folder if needed.
///
/// # Errors
/// The error of the file system, with the path in its message.
pub fn replace_cache_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder_of(path))?;
    replace_file(path, bytes)
}

/// Removes temporary files in `folder` that killed processes left, of files whose name `is_wanted`.
/// Files that cannot be removed stay; the next call tries again.
pub fn remove_leftovers(folder: &Path, is_wanted: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(target_name);
        if of.is_some_and(&is_wanted) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove_if_left(&entry.path());
        }
    }
}

/// Whether `name` is the temporary name that a random suffix makes of `prefix`, such as
/// `.model-aB3xY9`.
pub fn is_random_name(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(is_random)
}

fn is_random(part: &str) -> bool {
    part.len() == RANDOM && part.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The name of the file that a temporary file replaces; `None` if it is no temporary file.
fn target_name(temporary: &str) -> Option<&str> {
    let (name, random) = temporary.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    is_random(random).then_some(name)
}

fn remove_if_left(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let age = file.metadata().and_then(|facts| facts.modified()).map(|time| time.elapsed());
    let is_old = matches!(age, Ok(Ok(age)) if age > LEFT_BEHIND);
    if is_old && file.try_lock().is_ok() && fs::remove_file(path).is_ok() {
        tracing::debug!("removed {}, which a killed process left", path.display());
    }
}

/// A temporary file in `folder` with what `write` writes, synced to disk. It has the mode that any
/// new file has, so that a cache can be shared.
fn written_beside(
    folder: &Path,
    name: &OsStr,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    // Some network file systems cannot lock. Then no file is ever taken for one that was left.
    let _ = file.as_file().try_lock();
    write(&mut file)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// A temporary folder in `folder`, with a name that begins with `prefix`. It has the mode that any
/// new folder has.
///
/// # Errors
/// The folder cannot be created.
pub fn temporary_folder(folder: &Path, prefix: &str) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(folder)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a rename in `folder` survive a power cut. Does nothing on systems that cannot sync
/// folders.
///
/// # Errors
/// The error of the file system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        replace_file(&path, b"one").unwrap();
        replace_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/such/a.json");
        let error = replace_file(&path, b"one").unwrap_err();
        assert!(error.to_string().contains("a.json"), "{error}");
    }

    #[test]
    fn several_writers_of_one_file_all_succeed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.html");
        std::thread::scope(|scope| {
            for writer in 0u8..8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace_file(path, &[writer; 5000]).unwrap();
                    }
                });
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 5000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_temporary_files_that_nobody_writes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = [
            ".a.json.aB3xY9.tmp",
            ".b.json.aB3xY9.tmp",
            ".a.json.zzzzzz.tmp",
            ".a.json.tmp",
            ".a.json.notes1x.tmp",
            "a.json.aB3xY9.tmp",
        ];
        let hour = Duration::from_secs(3600);
        let files = names.map(|name| {
            let file = File::create(path(name)).unwrap();
            file.set_modified(SystemTime::now() - hour).unwrap();
            file
        });
        File::create(path(".a.json.young1.tmp")).unwrap();
        // Another process still writes this one.
        files[2].try_lock().unwrap();
        replace_file(&path("a.json"), b"{}").unwrap();
        assert!(!path(names[0]).exists());
        assert!(names[1..].iter().all(|name| path(name).exists()));
        assert!(path(".a.json.young1.tmp").exists());
        remove_leftovers(folder.path(), |name| name.ends_with(".json"));
        assert!(!path(names[1]).exists());
        assert!(names[2..].iter().all(|name| path(name).exists()));
    }

    #[test]
    #[cfg(unix)]
    fn new_files_and_folders_have_the_mode_that_the_umask_leaves() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(folder.path().join("plain"), "").unwrap();
        fs::create_dir(folder.path().join("plain folder")).unwrap();
        replace_cache_file(&folder.path().join("cache/a.bin"), b"a").unwrap();
        assert_eq!(mode(&folder.path().join("cache/a.bin")), mode(&folder.path().join("plain")));
        let temporary = temporary_folder(folder.path(), ".model-").unwrap();
        assert_eq!(mode(temporary.path()), mode(&folder.path().join("plain folder")));
        let name = temporary.path().file_name().unwrap().to_str().unwrap();
        assert!(is_random_name(name, ".model-"), "{name}");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_with_the_name_of_a_temporary_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let mine = folder.path().join("mine");
        fs::write(&mine, "mine").unwrap();
        std::os::unix::fs::symlink(&mine, folder.path().join(".a.json.tmp")).unwrap();
        std::os::unix::fs::symlink(&mine, folder.path().join(".a.json.aB3xY9.tmp")).unwrap();
        replace_file(&folder.path().join("a.json"), b"{}").unwrap();
        assert_eq!(fs::read(&mine).unwrap(), b"mine");
    }
}
