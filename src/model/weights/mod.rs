//! Reading and writing weights: safetensors files in Hugging Face's layout, one file or shards with
//! an index.
//!
//! Reading converts one tensor at a time, part by part, so it needs memory for the model only.
//! Writing converts each tensor when it is written.

mod error;
mod format;
mod load;
mod nf4;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use error::WeightsError;
pub use format::WeightFormat;
pub use load::expected_parameters;
pub(in crate::model) use load::{check_names, empty_decoder};
pub use read::WeightFiles;
pub use write::{SHARD_BYTES, write_file};
pub(in crate::model) use write::{StoredTensor, check_finite, named, write_all};
