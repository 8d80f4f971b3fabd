//! Reading weight files.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::tensor::DType;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::error::{INDEX, SINGLE, WeightsError};
use crate::files::shards::{IndexError, shards_of};
use crate::files::tensor_file::{TensorFile, TensorFileError};
use crate::kernels::flex::fresh::filled;
use crate::model::config::ModelConfig;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The safetensors files of a model folder, open.
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name → index into `files`, and the name in that file.
    places: BTreeMap<String, (usize, String)>,
}

impl WeightFiles {
    /// Opens the files and reads their headers.
    ///
    /// # Errors
    /// The folder has no weights, or a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        let mut this = Self { folder: folder.into(), files: Vec::new(), places: BTreeMap::new() };
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.is_file() {
            this.add(single)?;
        } else if index.is_file() {
            for file in indexed_files(&index)? {
                if !folder.join(&file).is_file() {
                    return Err(WeightsError::NoShard { index, file });
                }
                this.add(folder.join(file))?;
            }
        } else {
            let pickled = folder.join("pytorch_model.bin").is_file();
            let hint =
                if pickled { "; convert pytorch_model.bin to safetensors first" } else { "" };
            return Err(WeightsError::NoWeights { folder: folder.into(), hint });
        }
        this.name_as_whole_model();
        Ok(this)
    }

    /// [`Self::open`] of a model whose embedding may be stored as its head only.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_model(folder: &Path, config: &ModelConfig) -> Result<Self, WeightsError> {
        let mut files = Self::open(folder)?;
        if config.tie_word_embeddings {
            files.tie();
        }
        Ok(files)
    }

    /// Opens one file in `folder`, and gives each tensor the name that `rename` makes of its own.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn open_one(
        folder: &Path,
        file: &str,
        rename: impl Fn(&str) -> String,
    ) -> Result<Self, WeightsError> {
        let mut this = Self { folder: folder.into(), files: Vec::new(), places: BTreeMap::new() };
        this.add(folder.join(file))?;
        let places = std::mem::take(&mut this.places).into_iter();
        this.places = places.map(|(name, place)| (rename(&name), place)).collect();
        Ok(this)
    }

    /// A checkpoint of the decoder without its head has names without `model.`. As in transformers,
    /// they get this prefix.
    fn name_as_whole_model(&mut self) {
        const PREFIX: &str = "model.";
        if self.places.keys().any(|name| name.starts_with(PREFIX)) {
            return;
        }
        let places = std::mem::take(&mut self.places).into_iter();
        self.places = places
            .map(|(name, place)| match name.as_str() {
                HEAD => (name, place),
                _ => (format!("{PREFIX}{name}"), place),
            })
            .collect();
    }

    /// Makes the head of a tied model its embedding too, if only the head is stored.
    fn tie(&mut self) {
        if let (Some(head), None) = (self.places.get(HEAD), self.places.get(EMBEDDING)) {
            self.places.insert(EMBEDDING.to_owned(), head.clone());
        }
    }

    fn add(&mut self, path: PathBuf) -> Result<(), WeightsError> {
        let file = TensorFile::open(&path).map_err(|error| match error {
            TensorFileError::Read(source) => WeightsError::Read { path, source },
            other => WeightsError::Damaged { path, reason: other.to_string() },
        })?;
        let place = self.files.len();
        self.places.extend(file.names().into_iter().map(|name| (name.clone(), (place, name))));
        self.files.push(file);
        Ok(())
    }

    /// The file of a tensor, and its type, shape and place there.
    fn find(&self, name: &str) -> Option<(&TensorFile, &TensorInfo)> {
        let (file, stored) = self.places.get(name)?;
        let file = &self.files[*file];
        Some((file, file.tensor(stored)?))
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Shape of a tensor, if it exists.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.find(name).map(|(_, tensor)| tensor.shape.clone())
    }

    /// Whether a stored copy of a tied head equals the embedding. True without a copy, or if the
    /// types differ.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn head_is_embedding(&self) -> Result<bool, WeightsError> {
        const PART: usize = 1 << 20;
        let (Some(head), Some(embedding)) = (self.find(HEAD), self.find(EMBEDDING)) else {
            return Ok(true);
        };
        if head.1.dtype != embedding.1.dtype {
            return Ok(true);
        }
        let bytes = length(head.1);
        if bytes != length(embedding.1) {
            return Ok(false);
        }
        let mut parts = [vec![0; PART.min(bytes)], vec![0; PART.min(bytes)]];
        for start in (0..bytes).step_by(PART) {
            let len = PART.min(bytes - start);
            for ((file, tensor), part) in [head, embedding].into_iter().zip(&mut parts) {
                file.read(tensor, start, &mut part[..len]).map_err(unreadable(file))?;
            }
            if parts[0][..len] != parts[1][..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(TensorFile::bytes).sum()
    }

    /// The file that holds a tensor.
    pub(super) fn path_of(&self, name: &str) -> Option<&Path> {
        self.find(name).map(|(file, _)| file.path())
    }

    /// The type and the bytes of a tensor, if it exists.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn bytes_of(&self, name: &str) -> Result<Option<(Dtype, Vec<u8>)>, WeightsError> {
        let Some((file, tensor)) = self.find(name) else { return Ok(None) };
        let mut bytes = vec![0; length(tensor)];
        file.read(tensor, 0, &mut bytes).map_err(unreadable(file))?;
        Ok(Some((tensor.dtype, bytes)))
    }

    /// The values of a tensor in row-major order as float32. Values that are stored in NF4 are
    /// dequantized.
    ///
    /// # Errors
    /// The tensor is missing or cannot be read, or has another shape or type; a value is NaN or
    /// infinite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        match self.read_nf4(name, shape)? {
            Some(packed) => Ok(packed.dequantize()),
            None => self.read_numbers(name, shape),
        }
    }

    /// [`Self::read`] if `dtype` may not hold the stored values: `None` if they have this type.
    ///
    /// # Errors
    /// See [`Self::read`].
    pub fn read_unless(
        &self,
        dtype: DType,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<f32>>, WeightsError> {
        match (self.find(name).map(|(_, tensor)| tensor.dtype), dtype) {
            (Some(Dtype::BF16), DType::BF16) | (Some(Dtype::F16), DType::F16) => Ok(None),
            _ => self.read(name, shape).map(Some),
        }
    }

    /// [`Self::read`] of a tensor that is not quantized.
    fn read_numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let Some((file, tensor)) = self.find(name) else {
            return Err(WeightsError::Missing {
                folder: self.folder.clone(),
                name: name.into(),
                missing: vec![name.into()],
            });
        };
        let path = || file.path().to_owned();
        if tensor.shape != shape {
            return Err(WeightsError::Shape {
                path: path(),
                name: name.into(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let values = match tensor.dtype {
            Dtype::F32 => elements(file, tensor, f32::from_le_bytes),
            Dtype::BF16 => elements(file, tensor, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => elements(file, tensor, |b| f16::from_le_bytes(b).to_f32()),
            found => return Err(WeightsError::Type { path: path(), name: name.into(), found }),
        };
        let values = values.map_err(unreadable(file))?;
        // In blocks, because a loop that may stop at any element is not vectorized.
        let finite = |block: &[f32]| block.iter().fold(true, |all, x| all & x.is_finite());
        match values.chunks(4096).all(finite) {
            true => Ok(values),
            false => Err(WeightsError::NotFinite { path: path(), name: name.into() }),
        }
    }
}

/// Bytes of a tensor.
fn length(tensor: &TensorInfo) -> usize {
    tensor.data_offsets.1 - tensor.data_offsets.0
}

fn unreadable(file: &TensorFile) -> impl Fn(io::Error) -> WeightsError {
    |source| WeightsError::Read { path: file.path().to_owned(), source }
}

/// Reads and converts elements on all threads, because most of the time goes into the first access
/// to new memory.
fn elements<const N: usize>(
    file: &TensorFile,
    tensor: &TensorInfo,
    convert: impl Fn([u8; N]) -> f32 + Sync,
) -> io::Result<Vec<f32>> {
    const CHUNK: usize = 1 << 14;
    let failed = OnceLock::new();
    let values = filled(length(tensor) / N, CHUNK, |index, chunk| {
        let mut stored = [[0; N]; CHUNK];
        let stored = &mut stored[..chunk.len()];
        match file.read(tensor, index * CHUNK * N, stored.as_flattened_mut()) {
            Ok(()) => {
                for (value, stored) in chunk.iter_mut().zip(stored) {
                    *value = convert(*stored);
                }
            }
            // One error is enough.
            Err(error) => drop(failed.set(error)),
        }
    });
    failed.into_inner().map_or(Ok(values), Err)
}

/// The files that an index names, in order, each once.
fn indexed_files(index: &Path) -> Result<BTreeSet<String>, WeightsError> {
    shards_of(index).map_err(|error| match error {
        IndexError::Read(source) => WeightsError::Read { path: index.into(), source },
        other => WeightsError::Index { path: index.into(), reason: other.to_string() },
    })
}
