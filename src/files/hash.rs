//! The hash of a model folder.

use std::io;
use std::path::{Path, PathBuf};

/// A file or folder that cannot be hashed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct HashError {
    path: PathBuf,
    source: io::Error,
}

/// BLAKE3 of a model folder's config.json and weights.
///
/// # Errors
/// The folder or one of these files cannot be read.
pub fn hash_model(folder: &Path) -> Result<[u8; 32], HashError> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(|source| HashError { path: folder.into(), source })?;
    files.retain(|path| {
        path.extension().is_some_and(|extension| extension == "safetensors")
            || path.file_name().is_some_and(|name| name == "config.json")
    });
    files.sort();
    let mut all = blake3::Hasher::new();
    for path in files.into_iter().filter(|path| !path.ends_with("optimizer.safetensors")) {
        let mut one = blake3::Hasher::new();
        match one.update_mmap_rayon(&path) {
            Ok(_) => all.update(one.finalize().as_bytes()),
            Err(source) => return Err(HashError { path, source }),
        };
    }
    Ok(*all.finalize().as_bytes())
}
