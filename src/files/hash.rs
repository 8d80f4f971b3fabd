//! BLAKE3 of files, of model folders, and of lists of byte strings.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use blake3::{Hash, Hasher};

/// A file or folder that cannot be hashed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct HashError {
    path: PathBuf,
    source: io::Error,
}

impl HashError {
    /// `path` cannot be read.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.into(), source }
    }
}

/// Bytes that are read at a time to be hashed.
const PART: u64 = 8 << 20;

/// BLAKE3 of a file's content, computed by several threads. The file is read, not mapped: a mapped
/// file that another process shortens would end this process with SIGBUS.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> io::Result<Hash> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut part = Vec::new();
    while file.by_ref().take(PART).read_to_end(&mut part)? > 0 {
        hasher.update_rayon(&part);
        part.clear();
    }
    Ok(hasher.finalize())
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
    let mut all = Hasher::new();
    for path in files.into_iter().filter(|path| !path.ends_with("optimizer.safetensors")) {
        match hash_file(&path) {
            Ok(hash) => all.update(hash.as_bytes()),
            Err(source) => return Err(HashError { path, source }),
        };
    }
    Ok(*all.finalize().as_bytes())
}

/// The hash of a list of byte strings. Each string is hashed after its length, so that
/// `["ab", "c"]` and `["a", "bc"]` differ.
#[derive(Default)]
pub struct PartsHasher(Hasher);

impl PartsHasher {
    /// A hasher that starts with `prefix`, without its length.
    pub fn after(prefix: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(prefix);
        Self(hasher)
    }

    /// Adds a byte string.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The hash of all parts added so far.
    pub fn finish(&self) -> Hash {
        self.0.finalize()
    }
}
