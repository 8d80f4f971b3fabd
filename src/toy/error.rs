//! The errors of writing the demo's world.

use std::io;
use std::path::{Path, PathBuf};

use arrow_schema::ArrowError;
use parquet::errors::ParquetError;
use safetensors::SafeTensorError;

/// Why the demo's world cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ToyError {
    #[error("cannot resolve the path {}: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("the path {} is not UTF-8; choose another --out", .0.display())]
    NotUtf8(PathBuf),
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Parquet { path: PathBuf, source: ParquetError },
    #[error("the rows do not fit their columns: {0}")]
    Columns(#[from] ArrowError),
    #[error("cannot serialize the weights: {0}")]
    Weights(#[from] SafeTensorError),
    #[error("cannot train the tokenizer: {0}")]
    Tokenizer(tokenizers::Error),
}

impl ToyError {
    /// Maps an I/O error to [`ToyError::Folder`] for `path`.
    pub(super) fn folder(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Folder { path: path.to_owned(), source }
    }

    /// Maps an I/O error to [`ToyError::Write`] for `path`.
    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}
