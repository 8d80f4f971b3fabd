//! The hash of a model folder.

use std::io;
use std::path::Path;

use anyhow::Context;

/// BLAKE3 of a model folder's config.json and weights.
pub fn hash_model(folder: &Path) -> anyhow::Result<[u8; 32]> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .with_context(|| format!("cannot read {}", folder.display()))?;
    files.retain(|path| {
        path.extension().is_some_and(|extension| extension == "safetensors")
            || path.file_name().is_some_and(|name| name == "config.json")
    });
    files.sort();
    let mut all = blake3::Hasher::new();
    for path in files.iter().filter(|path| !path.ends_with("optimizer.safetensors")) {
        let mut one = blake3::Hasher::new();
        one.update_mmap_rayon(path).with_context(|| format!("cannot read {}", path.display()))?;
        all.update(one.finalize().as_bytes());
    }
    Ok(*all.finalize().as_bytes())
}
