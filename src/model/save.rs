//! Writing a model: all its weights, or its adapter alone.

use std::path::Path;

use burn::tensor::DType;

use super::adapter::peft::save_adapter;
use super::decoder::Decoder;
use super::weights::{WeightsError, write_all};

impl Decoder {
    /// Writes the weights into `folder` as `dtype`, in shards of at most `shard_bytes`. All weights
    /// are checked before the first file is written. A model with an adapter writes the adapter
    /// alone, see [`save_adapter`].
    ///
    /// # Errors
    /// A weight is NaN or infinite, or becomes so as `dtype`; a file cannot be written.
    pub fn save_weights(
        &self,
        folder: &Path,
        dtype: DType,
        shard_bytes: usize,
    ) -> Result<(), WeightsError> {
        match &self.adapter {
            Some(adapter) => save_adapter(self, adapter, folder, dtype),
            None => write_all(self, folder, dtype, shard_bytes),
        }
    }
}
