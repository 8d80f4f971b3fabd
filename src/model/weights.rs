//! Reading and writing weights: safetensors files in Hugging Face's layout, one file or shards with
//! an index.
//!
//! Reading maps the files and converts one tensor at a time, so it needs memory for the model and
//! one more tensor. Writing converts each tensor when it is written.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors, View};
use serde_json::json;

use super::config::{ConfigError, ModelConfig};
use super::decoder::Decoder;
use super::parameter::{Parameter, Weight};
use crate::files::shards::{IndexError, shards_of};
use crate::kernels::flex::fresh::filled;

/// Largest size of a shard in bytes, as in Hugging Face's libraries.
pub const SHARD_BYTES: usize = 5_000_000_000;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The beginning of a file that git wrote in place of one that Git LFS did not fetch.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Why a model folder cannot be loaded or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{folder}: no model.safetensors and no model.safetensors.index.json here{hint}")]
    NoWeights { folder: PathBuf, hint: &'static str },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{index} names {file}, which does not exist; fetch or copy the missing file")]
    NoShard { index: PathBuf, file: String },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged: {reason}; fetch or copy the file again")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: {reason}; fetch or copy the file again")]
    Index { path: PathBuf, reason: String },
    #[error("{folder}: tensor `{name}` is missing ({} in all: {})", missing.len(), list(missing))]
    Missing { folder: PathBuf, name: String, missing: Vec<String> },
    #[error(
        "{folder}: tensor `{name}` belongs to no part of this {architecture} model \
         ({} such: {}); is config.json the one of these weights?", extra.len(), list(extra)
    )]
    Extra { folder: PathBuf, architecture: String, name: String, extra: Vec<String> },
    #[error("{path}: tensor `{name}` has shape {found:?}; config.json makes it {expected:?}")]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "{path}: tensor `{name}` holds NaN or infinite values; the run that wrote it diverged, or the \
         file is damaged"
    )]
    NotFinite { path: PathBuf, name: String },
    #[error("{path}: tensor `{name}` has type {found:?}; F32, BF16 and F16 can be read")]
    Type { path: PathBuf, name: String, found: Dtype },
    #[error(
        "{folder}: `lm_head.weight` is another matrix than `model.embed_tokens.weight`, but config.json \
         ties them; set tie_word_embeddings: false there if the head was trained"
    )]
    Tied { folder: PathBuf },
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown}, …") } else { shown }
}

/// The safetensors files of a model folder, mapped.
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name → index into `files`.
    places: BTreeMap<String, usize>,
}

impl WeightFiles {
    /// Maps the files and reads their headers.
    ///
    /// # Errors
    /// The folder has no weights, or a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let mut this = Self { folder: folder.into(), files: Vec::new(), places: BTreeMap::new() };
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.is_file() {
            this.map(single)?;
        } else if index.is_file() {
            for file in indexed_files(&index)? {
                if !folder.join(&file).is_file() {
                    return Err(WeightsError::NoShard { index, file });
                }
                this.map(folder.join(file))?;
            }
        } else {
            let pickled = folder.join("pytorch_model.bin").is_file();
            let hint =
                if pickled { "; convert pytorch_model.bin to safetensors first" } else { "" };
            return Err(WeightsError::NoWeights { folder: folder.into(), hint });
        }
        Ok(this)
    }

    fn map(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let read = |source| WeightsError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(read)?;
        // SAFETY: the mapping is read-only. No reader can protect itself against a file that
        // another process truncates meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let tensors = SafeTensors::deserialize(&map).map_err(|error| WeightsError::Damaged {
            path: path.clone(),
            reason: match map.starts_with(LFS_POINTER) {
                true => "it is a Git LFS pointer, not the weights".into(),
                false => error.to_string(),
            },
        })?;
        for name in tensors.names() {
            self.places.insert(name.to_string(), self.files.len());
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Shape of a tensor, if it exists.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (_, map) = &self.files[*self.places.get(name)?];
        let tensors = SafeTensors::deserialize(map).ok()?;
        Some(tensors.tensor(name).ok()?.shape().to_vec())
    }

    /// Whether a stored copy of a tied head equals the embedding. True without a copy, or if the
    /// types differ.
    fn head_is_embedding(&self) -> bool {
        let find = |name: &str| {
            let (_, map) = &self.files[*self.places.get(name)?];
            let view = SafeTensors::deserialize(map).ok()?.tensor(name).ok()?;
            Some((map, view))
        };
        let (Some((head_map, head)), Some((map, embedding))) =
            (find("lm_head.weight"), find("model.embed_tokens.weight"))
        else {
            return true;
        };
        let same = head.dtype() != embedding.dtype() || head.data() == embedding.data();
        forget(head_map, head.data());
        forget(map, embedding.data());
        same
    }

    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// The values of a tensor in row-major order as float32.
    ///
    /// # Errors
    /// The tensor is missing, damaged, or has another shape or type; a value is NaN or infinite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let Some(place) = self.places.get(name) else {
            return Err(WeightsError::Missing {
                folder: self.folder.clone(),
                name: name.into(),
                missing: vec![name.into()],
            });
        };
        let (path, map) = &self.files[*place];
        let damaged = |error: safetensors::SafeTensorError| WeightsError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        };
        let tensors = SafeTensors::deserialize(map).map_err(damaged)?;
        let view = tensors.tensor(name).map_err(damaged)?;
        if view.shape() != shape {
            return Err(WeightsError::Shape {
                path: path.clone(),
                name: name.into(),
                found: view.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        let values = match view.dtype() {
            Dtype::F32 => elements(view.data(), f32::from_le_bytes),
            Dtype::BF16 => elements(view.data(), |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => elements(view.data(), |b| f16::from_le_bytes(b).to_f32()),
            found => {
                return Err(WeightsError::Type { path: path.clone(), name: name.into(), found });
            }
        };
        forget(map, view.data());
        // In blocks, because a loop that may stop at any element is not vectorized.
        let finite = |block: &[f32]| block.iter().fold(true, |all, x| all & x.is_finite());
        match values.chunks(4096).all(finite) {
            true => Ok(values),
            false => Err(WeightsError::NotFinite { path: path.clone(), name: name.into() }),
        }
    }
}

/// Releases the memory of a part of a mapped file, so that memory does not grow with each tensor
/// that is read.
fn forget(map: &Mmap, part: &[u8]) {
    let start = part.as_ptr() as usize - map.as_ptr() as usize;
    // SAFETY: the mapping is read-only and never written to, so released pages are read from the
    // file again.
    let released =
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, part.len()) };
    if let Err(error) = released {
        tracing::debug!("cannot release the memory of a file that was read: {error}");
    }
}

/// Converts elements on all threads, because most of the time goes into the first access to new
/// memory.
fn elements<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let stored = bytes.as_chunks::<N>().0;
    filled(stored.len(), CHUNK, |index, chunk| {
        for (value, stored) in chunk.iter_mut().zip(&stored[index * CHUNK..]) {
            *value = read(*stored);
        }
    })
}

/// The files that an index names, in order, each once.
fn indexed_files(index: &Path) -> Result<BTreeSet<String>, WeightsError> {
    shards_of(index).map_err(|error| match error {
        IndexError::Read(source) => WeightsError::Read { path: index.into(), source },
        other => WeightsError::Index { path: index.into(), reason: other.to_string() },
    })
}

impl Decoder {
    /// Loads config.json and weights of a model folder onto `device`, in `dtype`.
    /// `progress(done, total)` is called after each tensor.
    ///
    /// # Errors
    /// A file cannot be read, or the weights do not fit config.json.
    pub fn load(
        folder: &Path,
        device: &Device,
        dtype: DType,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, WeightsError> {
        let config = Arc::new(ModelConfig::load(folder)?);
        let files = WeightFiles::open(folder)?;
        let expected = expected_parameters(&config);
        check_names(folder, &config, &files, &expected)?;
        let (mut done, total) = (0, expected.len());
        Self::build(config, |name, shape| {
            let values = files.read(name, shape)?;
            done += 1;
            progress(done, total);
            Ok(Weight::from_values(values, device, dtype))
        })
    }

    /// Writes the weights into `folder` as `dtype`, in shards of at most `shard_bytes`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save_weights(
        &self,
        folder: &Path,
        dtype: DType,
        shard_bytes: usize,
    ) -> Result<(), WeightsError> {
        let parameters = self.parameters();
        let views = parameters.iter().map(|p| StoredTensor::parameter(p, dtype)).collect();
        write_sharded(folder, views, shard_bytes)
    }
}

/// The parameters that a config asks for, in the order of the model, without their values.
pub fn expected_parameters(config: &Arc<ModelConfig>) -> Vec<Parameter> {
    let empty = Weight::from_values(Vec::new(), &Device::flex(), DType::F32);
    let built: Result<Decoder, std::convert::Infallible> =
        Decoder::build(config.clone(), |_, _| Ok(empty.clone()));
    let Ok(model) = built;
    model.parameters().into_iter().cloned().collect()
}

fn check_names(
    folder: &Path,
    config: &ModelConfig,
    files: &WeightFiles,
    expected: &[Parameter],
) -> Result<(), WeightsError> {
    let known: BTreeSet<&str> = expected.iter().map(|parameter| &*parameter.name).collect();
    let here: BTreeSet<&str> = files.names().collect();
    let missing: Vec<String> =
        expected.iter().map(|p| p.name.to_string()).filter(|n| !here.contains(&**n)).collect();
    if let Some(name) = missing.first().cloned() {
        return Err(WeightsError::Missing { folder: folder.into(), name, missing });
    }
    // Old checkpoints contain rotary tables, and some tied models a copy of the head.
    let harmless = |name: &str| {
        name.ends_with(".rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    let extra: Vec<String> =
        here.difference(&known).filter(|n| !harmless(n)).map(|n| n.to_string()).collect();
    if let Some(name) = extra.first().cloned() {
        let architecture = format!("{:?}", config.architecture);
        return Err(WeightsError::Extra { folder: folder.into(), architecture, name, extra });
    }
    if config.tie_word_embeddings && !files.head_is_embedding() {
        return Err(WeightsError::Tied { folder: folder.into() });
    }
    Ok(())
}

/// A tensor that will be written. It is converted only then.
#[derive(Clone)]
pub struct StoredTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub value: Tensor<1>,
    pub dtype: DType,
}

impl StoredTensor {
    fn parameter(parameter: &Parameter, dtype: DType) -> Self {
        Self {
            name: parameter.name.to_string(),
            shape: parameter.shape.clone(),
            value: parameter.vector(),
            dtype,
        }
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

/// Writes one safetensors file and waits until it is on disk. Each tensor's bytes are made once,
/// when they are written.
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

fn named(tensors: &[StoredTensor]) -> impl Iterator<Item = (String, &StoredTensor)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Decoder {
        let raw = json!({"model_type": "mistral", "vocab_size": 11, "hidden_size": 8,
            "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "max_position_embeddings": 32});
        let config = Arc::new(ModelConfig::from_json(raw, Path::new("config.json")).unwrap());
        let built: Result<_, std::convert::Infallible> = Decoder::build(config, |name, shape| {
            let len: usize = shape.iter().product();
            let seed = name.len() as f32;
            let values = (0..len).map(|i| (i as f32 + seed) * 0.01 - 0.3).collect();
            Ok(Weight::from_values(values, &Device::flex(), DType::F32))
        });
        let Ok(model) = built;
        model
    }

    fn write(model: &Decoder, folder: &Path, shard_bytes: usize) {
        std::fs::write(folder.join("config.json"), model.config.raw.to_string()).unwrap();
        model.save_weights(folder, DType::F32, shard_bytes).unwrap();
    }

    fn load(folder: &Path) -> Result<Decoder, WeightsError> {
        Decoder::load(folder, &Device::flex(), DType::F32, |_, _| ())
    }

    fn values(model: &Decoder) -> Vec<Vec<f32>> {
        model.parameters().iter().map(|p| p.vector().to_data().try_to_vec().unwrap()).collect()
    }

    #[test]
    fn one_file_and_shards_give_the_same_weights_back() {
        let model = tiny();
        for shard_bytes in [SHARD_BYTES, 600] {
            let folder = tempfile::tempdir().unwrap();
            write(&model, folder.path(), shard_bytes);
            let index = folder.path().join(INDEX);
            assert_eq!(index.exists(), shard_bytes == 600);
            if let Ok(text) = std::fs::read_to_string(index) {
                let index: serde_json::Value = serde_json::from_str(&text).unwrap();
                let parameters = model.config.parameters();
                assert_eq!(index["metadata"]["total_parameters"], parameters);
                assert_eq!(index["metadata"]["total_size"], 4 * parameters);
            }
            assert_eq!(values(&load(folder.path()).unwrap()), values(&model));
        }
    }

    #[test]
    fn weights_have_the_permissions_of_other_files() {
        let folder = tempfile::tempdir().unwrap();
        write(&tiny(), folder.path(), SHARD_BYTES);
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "x").unwrap();
        let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions();
        assert_eq!(permissions(&folder.path().join(SINGLE)), permissions(&plain));
    }

    #[test]
    fn missing_extra_and_misshapen_tensors_are_named() {
        let model = tiny();
        let folder = tempfile::tempdir().unwrap();
        write(&model, folder.path(), SHARD_BYTES);
        let mut raw = model.config.raw.clone();
        let mut with = |key: &str, value: serde_json::Value| {
            raw = model.config.raw.clone();
            raw[key] = value;
            std::fs::write(folder.path().join("config.json"), raw.to_string()).unwrap();
            load(folder.path()).unwrap_err().to_string()
        };
        let missing = with("num_hidden_layers", json!(3));
        assert!(missing.contains("tensor `model.layers.2.input_layernorm.weight` is missing"));
        assert!(missing.contains("9 in all"), "{missing}");
        let extra = with("num_hidden_layers", json!(1));
        assert!(
            extra.contains("tensor `model.layers.1.input_layernorm.weight` belongs to no part")
        );
        let shape = with("vocab_size", json!(12));
        assert!(shape.contains("`model.embed_tokens.weight` has shape [11, 8]"), "{shape}");
        assert!(shape.contains("config.json makes it [12, 8]"), "{shape}");
    }

    #[test]
    fn a_file_cut_short_is_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        write(&tiny(), folder.path(), SHARD_BYTES);
        let path = folder.path().join(SINGLE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors is damaged"), "{error}");
    }
}
