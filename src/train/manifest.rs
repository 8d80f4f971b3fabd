//! The manifest of a checkpoint, `checkpoint.json`: size and BLAKE3 hash of each of its files.
//! Files that it does not list are ignored.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::hash::hash_file;
use crate::files::names::is_path_inside;
use crate::files::replace::sync_folder;

pub(super) const MANIFEST: &str = "checkpoint.json";

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, FileFacts>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileFacts {
    bytes: u64,
    blake3: String,
}

/// Writes the manifest of all files of a folder and syncs everything.
///
/// # Errors
/// A file cannot be read or written.
pub fn seal(path: &Path) -> io::Result<()> {
    let mut files = BTreeMap::new();
    sync_files(path, "", &mut files)?;
    let manifest = path.join(MANIFEST);
    std::fs::write(&manifest, serde_json::to_vec_pretty(&Manifest { files })?)?;
    std::fs::File::open(&manifest)?.sync_all()?;
    sync_folder(path)
}

/// Syncs the files of a folder and of its subfolders, and adds their facts to `files`, with
/// `prefix` before their names.
fn sync_files(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, FileFacts>,
) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            sync_files(&entry.path(), &format!("{name}/"), files)?;
            sync_folder(&entry.path())?;
        } else {
            std::fs::File::open(entry.path())?.sync_all()?;
            files.insert(name, facts(&entry.path())?);
        }
    }
    Ok(())
}

fn facts(path: &Path) -> io::Result<FileFacts> {
    let bytes = std::fs::metadata(path)?.len();
    Ok(FileFacts { bytes, blake3: hash_file(path)?.to_hex().to_string() })
}

/// Compares every file of a folder with its manifest.
///
/// # Errors
/// The first difference, in words.
pub fn verify(path: &Path) -> Result<(), String> {
    let text = std::fs::read(path.join(MANIFEST))
        .map_err(|error| format!("{MANIFEST} cannot be read ({error})"))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| format!("{MANIFEST} cannot be read ({error})"))?;
    for (name, expected) in &manifest.files {
        if !is_path_inside(name) {
            return Err(format!("{MANIFEST} names {name:?}, which is outside of the checkpoint"));
        }
        let found =
            facts(&path.join(name)).map_err(|error| format!("{name} cannot be read ({error})"))?;
        if found.bytes != expected.bytes {
            let (has, had) = (found.bytes, expected.bytes);
            return Err(format!("{name} has {has} bytes where {had} were written"));
        }
        if found != *expected {
            return Err(format!("{name} is not what was written"));
        }
    }
    Ok(())
}
