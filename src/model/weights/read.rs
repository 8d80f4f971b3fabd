//! Reading weight files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};

use super::error::{INDEX, SINGLE, WeightsError};
use crate::files::shards::{IndexError, shards_of};
use crate::kernels::flex::fresh::filled;

/// The beginning of a file that git wrote in place of one that Git LFS did not fetch.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The safetensors files of a model folder, mapped.
pub struct WeightFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name → index into `files`, and the name in that file.
    places: BTreeMap<String, (usize, String)>,
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
        this.name_as_whole_model();
        Ok(this)
    }

    /// Maps one file in `folder`, and gives each tensor the name that `rename` makes of its own.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn open_one(
        folder: &Path,
        file: &str,
        rename: impl Fn(&str) -> String,
    ) -> Result<Self, WeightsError> {
        let mut this = Self { folder: folder.into(), files: Vec::new(), places: BTreeMap::new() };
        this.map(folder.join(file))?;
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
    pub(in crate::model) fn tie(&mut self) {
        if let (Some(head), None) = (self.places.get(HEAD), self.places.get(EMBEDDING)) {
            self.places.insert(EMBEDDING.to_owned(), head.clone());
        }
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
            self.places.insert(name.to_string(), (self.files.len(), name.to_string()));
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
        let (file, stored) = self.places.get(name)?;
        let tensors = SafeTensors::deserialize(&self.files[*file].1).ok()?;
        Some(tensors.tensor(stored).ok()?.shape().to_vec())
    }

    /// Whether a stored copy of a tied head equals the embedding. True without a copy, or if the
    /// types differ.
    pub(super) fn head_is_embedding(&self) -> bool {
        let find = |name: &str| {
            let (file, stored) = self.places.get(name)?;
            let map = &self.files[*file].1;
            let view = SafeTensors::deserialize(map).ok()?.tensor(stored).ok()?;
            Some((map, view))
        };
        let (Some((head_map, head)), Some((map, embedding))) = (find(HEAD), find(EMBEDDING)) else {
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

    /// The file that holds a tensor.
    pub(super) fn path_of(&self, name: &str) -> Option<&Path> {
        self.places.get(name).map(|(file, _)| self.files[*file].0.as_path())
    }

    /// The type and the bytes of a tensor, if it exists.
    ///
    /// # Errors
    /// The file is damaged.
    pub(super) fn bytes_of(&self, name: &str) -> Result<Option<(Dtype, Vec<u8>)>, WeightsError> {
        let Some((file, stored)) = self.places.get(name) else { return Ok(None) };
        let (path, map) = &self.files[*file];
        let view = SafeTensors::deserialize(map).and_then(|tensors| tensors.tensor(stored));
        let view = view.map_err(|error| WeightsError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let bytes = view.data().to_vec();
        forget(map, view.data());
        Ok(Some((view.dtype(), bytes)))
    }

    /// The values of a tensor in row-major order as float32. Values that are stored in NF4 are
    /// dequantized.
    ///
    /// # Errors
    /// The tensor is missing, damaged, or has another shape or type; a value is NaN or infinite.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        match self.read_nf4(name, shape)? {
            Some(packed) => Ok(packed.dequantize()),
            None => self.read_numbers(name, shape),
        }
    }

    /// [`Self::read`] of a tensor that is not quantized.
    fn read_numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let Some((file, stored)) = self.places.get(name) else {
            return Err(WeightsError::Missing {
                folder: self.folder.clone(),
                name: name.into(),
                missing: vec![name.into()],
            });
        };
        let (path, map) = &self.files[*file];
        let damaged = |error: safetensors::SafeTensorError| WeightsError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        };
        let tensors = SafeTensors::deserialize(map).map_err(damaged)?;
        let view = tensors.tensor(stored).map_err(damaged)?;
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
