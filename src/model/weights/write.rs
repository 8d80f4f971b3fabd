//! Writing weight files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use safetensors::{Dtype, View};
use serde_json::json;

use super::error::{INDEX, SINGLE, WeightsError};
use crate::kernels::update::is_finite;
use crate::model::decoder::Decoder;
use crate::model::files::dtype_name;
use crate::model::parameter::Parameter;

/// Largest size of a shard in bytes, as in Hugging Face's libraries.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// Writes all weights of `model` into `folder` as `dtype`, in shards of at most `shard_bytes`. They
/// are checked before the first file is written.
///
/// # Errors
/// A weight is NaN or infinite, or becomes so as `dtype`; a file cannot be written.
pub(in crate::model) fn write_all(
    model: &Decoder,
    folder: &Path,
    dtype: DType,
    shard_bytes: usize,
) -> Result<(), WeightsError> {
    let parameters = model.parameters();
    parameters.iter().try_for_each(|parameter| check_finite(parameter, dtype))?;
    let views = parameters.iter().map(|p| StoredTensor::parameter(p, dtype)).collect();
    write_sharded(folder, views, shard_bytes)
}

/// Checks that a parameter can be saved as `dtype`.
pub(in crate::model) fn check_finite(
    parameter: &Parameter,
    dtype: DType,
) -> Result<(), WeightsError> {
    let vector = parameter.vector();
    let name = || parameter.name.to_string();
    if !is_finite(&vector) {
        return Err(WeightsError::Diverged { name: name() });
    }
    if vector.dtype() != dtype && !is_finite(&vector.cast(dtype)) {
        return Err(WeightsError::Overflow { name: name(), dtype: dtype_name(dtype) });
    }
    Ok(())
}

/// A tensor that will be written. It is converted only then.
#[derive(Clone)]
pub(in crate::model) struct StoredTensor {
    name: String,
    shape: Vec<usize>,
    value: Tensor<1>,
    dtype: DType,
}

impl StoredTensor {
    fn parameter(parameter: &Parameter, dtype: DType) -> Self {
        Self::named(parameter.name.to_string(), parameter, dtype)
    }

    /// A parameter under another name.
    pub fn named(name: String, parameter: &Parameter, dtype: DType) -> Self {
        Self { name, shape: parameter.shape.clone(), value: parameter.vector(), dtype }
    }

    fn width(&self) -> usize {
        if self.dtype == DType::F32 { 4 } else { 2 }
    }
}

impl View for &StoredTensor {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let data = self.value.clone().cast(self.dtype).into_data();
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.width()
    }
}

/// Writes one safetensors file and waits until it is on disk. Each tensor's bytes are computed
/// once, when they are written.
///
/// # Errors
/// The file cannot be written.
pub fn write_file<V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    metadata: &[(&str, &str)],
) -> Result<(), WeightsError> {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let views = tensors.into_iter();
    let write = |source| WeightsError::Write { path: path.into(), source };
    // The library makes a file that only its owner may read. Give it the permissions of an ordinary
    // file.
    let plain = OpenOptions::new().create(true).append(true).open(path).map_err(write)?;
    let permissions = plain.metadata().map_err(write)?.permissions();
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| write(std::io::Error::other(error.to_string())))?;
    std::fs::set_permissions(path, permissions).map_err(write)?;
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(write)
}

pub(in crate::model) fn named(
    tensors: &[StoredTensor],
) -> impl Iterator<Item = (String, &StoredTensor)> {
    tensors.iter().map(|tensor| (tensor.name.clone(), tensor))
}

fn write_sharded(
    folder: &Path,
    tensors: Vec<StoredTensor>,
    shard_bytes: usize,
) -> Result<(), WeightsError> {
    let size = |tensor: &StoredTensor| (&tensor).data_len();
    let mut shards: Vec<Vec<StoredTensor>> = vec![Vec::new()];
    let (mut filled, mut total, mut parameters) = (0, 0, 0);
    for tensor in tensors {
        let bytes = size(&tensor);
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        parameters += (&tensor).shape().iter().product::<usize>();
        shards.last_mut().expect("the list begins with one shard").push(tensor);
    }
    let metadata = [("format", "pt")];
    if let [only] = shards.as_slice() {
        return write_file(&folder.join(SINGLE), named(only), &metadata);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_file(&folder.join(&file), named(shard), &metadata)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), file.clone())));
    }
    let metadata = json!({"total_parameters": parameters, "total_size": total});
    let index = json!({"metadata": metadata, "weight_map": weight_map});
    let path = folder.join(INDEX);
    std::fs::write(&path, format!("{index:#}\n"))
        .map_err(|source| WeightsError::Write { path, source })
}
