//! An adapter added to the weights of its base: a full model in a new folder.

use std::path::Path;

use burn::tensor::{DType, Device};

use super::source::{ModelSource, Outermost};
use crate::data::{Tokenizer, TokenizerError};
use crate::files::json_object::ObjectError;
use crate::model::config::ConfigError;
use crate::model::files::ModelFiles;
use crate::model::weights::{SHARD_BYTES, WeightFormat, WeightsError};

/// Why an adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Files(#[from] ObjectError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("cannot write into {folder}")]
    Write { folder: String, source: std::io::Error },
}

/// Writes the full model of `source` into the folder `out`, with weights of type `dtype`: weights,
/// configuration and tokenizer. The changes of the adapters are added in float32, then the sum is
/// converted. `progress(done, total)` is called after each tensor.
///
/// # Errors
/// A file cannot be read or written, or weights and settings do not fit each other.
pub fn merge(
    source: &ModelSource,
    out: &Path,
    dtype: DType,
    progress: impl FnMut(usize, usize),
) -> Result<(), MergeError> {
    let write = |source| MergeError::Write { folder: out.display().to_string(), source };
    let config = source.config(Outermost::Merged)?;
    let tokenizer = Tokenizer::load(source.folder_with("tokenizer.json"), None, None)?;
    let files = ModelFiles::of(source.folder_with("generation_config.json"), &config, &tokenizer)?;
    let format = WeightFormat::numbers(dtype);
    let model = source.load(Outermost::Merged, &Device::flex(), format, progress)?;
    std::fs::create_dir_all(out).map_err(write)?;
    model.save_weights(out, dtype, SHARD_BYTES)?;
    files.write(&tokenizer, dtype, out).map_err(write)
}

/// The type in which the base of `source` is stored, by its `config.json`; float32 if the file does
/// not say.
///
/// # Errors
/// `config.json` of the base cannot be used.
pub fn stored_dtype(source: &ModelSource) -> Result<DType, ConfigError> {
    let config = source.config(Outermost::Merged)?;
    let named = ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str());
    Ok(match named {
        Some("bfloat16") => DType::BF16,
        Some("float16") => DType::F16,
        _ => DType::F32,
    })
}
