//! The content of a model's folder: a full model, or an adapter whose settings name its base.
//!
//! The base of an adapter may be an adapter's folder itself. Then that adapter is merged before the
//! outer one is added.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake3::Hasher;
use burn::tensor::{Device, Tensor, TensorData};

use super::config::{CONFIG, LoraConfig};
use super::error::AdapterError;
use super::peft::{AdapterFiles, WEIGHTS, is_adapter, merged_config, stored_as};
use crate::files::hash::{HashError, hash_file, hash_model};
use crate::hub::resolve::resolve_model;
use crate::model::config::{ConfigError, ModelConfig};
use crate::model::decoder::Decoder;
use crate::model::weights::{
    WeightFiles, WeightFormat, WeightsError, check_names, expected_parameters,
};

/// The folders of a model: a base and the adapters on it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSource {
    /// The folder of the full model.
    pub base: PathBuf,
    /// From the one next to the base to the outermost. Empty for a full model.
    pub adapters: Vec<SourceAdapter>,
}

/// An adapter in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceAdapter {
    pub folder: PathBuf,
    pub config: LoraConfig,
}

/// How the outermost adapter is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outermost {
    /// It stays an adapter beside the base.
    Attached,
    /// It is added to the weights of the base, as those before it.
    Merged,
    /// It is left out.
    Left,
}

impl ModelSource {
    /// The content of `folder`. The base of an adapter is found by its name: a folder, or a model
    /// of the hub.
    ///
    /// # Errors
    /// The settings of an adapter are damaged, or its base is not found.
    pub fn of(folder: &Path) -> Result<Self, AdapterError> {
        let mut source = Self { base: folder.to_path_buf(), adapters: Vec::new() };
        while is_adapter(&source.base) {
            let outer = &source.base;
            let same = |known: &SourceAdapter| {
                known.folder.canonicalize().ok() == outer.canonicalize().ok()
            };
            if source.adapters.iter().any(same) {
                return Err(AdapterError::Circle { folder: outer.clone() });
            }
            let config = LoraConfig::load(outer)?;
            let revision = config.revision.as_deref().unwrap_or("main");
            let base = resolve_model(&config.base_model, revision).map_err(|error| {
                let (folder, base) = (outer.clone(), config.base_model.clone());
                AdapterError::Base { folder, base, source: Box::new(error) }
            })?;
            let folder = std::mem::replace(&mut source.base, base);
            source.adapters.insert(0, SourceAdapter { folder, config });
        }
        Ok(source)
    }

    /// The adapter in `folder` on the model in `base`, whatever its settings name.
    ///
    /// # Errors
    /// `folder` holds no adapter, or see [`Self::of`].
    pub fn on_base(folder: &Path, base: &Path) -> Result<Self, AdapterError> {
        let mut source = Self::of(base)?;
        let config = LoraConfig::load(folder)?;
        source.adapters.push(SourceAdapter { folder: folder.to_path_buf(), config });
        Ok(source)
    }

    /// The outermost adapter; `None` for a full model.
    pub fn outermost(&self) -> Option<&SourceAdapter> {
        self.adapters.last()
    }

    /// The folder with the file `name`: that of the outermost adapter that has it, else the base.
    pub fn folder_with(&self, name: &str) -> &Path {
        let folders = self.adapters.iter().rev().map(|adapter| adapter.folder.as_path());
        folders.into_iter().find(|folder| folder.join(name).is_file()).unwrap_or(&self.base)
    }

    /// The configuration of the model with all adapters but the outermost merged; with that one
    /// too if it is to be [`Outermost::Merged`].
    ///
    /// # Errors
    /// `config.json` of the base cannot be used.
    pub fn config(&self, outermost: Outermost) -> Result<ModelConfig, ConfigError> {
        let base = ModelConfig::load(&self.base)?;
        let merged = self.merged(outermost).iter();
        Ok(merged.fold(base, |config, adapter| merged_config(config, &adapter.config)))
    }

    fn merged(&self, outermost: Outermost) -> &[SourceAdapter] {
        match outermost {
            Outermost::Merged => &self.adapters,
            Outermost::Attached | Outermost::Left => {
                &self.adapters[..self.adapters.len().saturating_sub(1)]
            }
        }
    }

    /// A hash of everything that the weights depend on. For a full model it is
    /// [`hash_model`](crate::files::hash::hash_model) of its folder.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<[u8; 32], HashError> {
        let base = hash_model(&self.base)?;
        if self.adapters.is_empty() {
            return Ok(base);
        }
        let mut all = Hasher::new();
        all.update(b"adapters 1").update(&base);
        for path in self.adapters.iter().flat_map(|a| [CONFIG, WEIGHTS].map(|n| a.folder.join(n))) {
            let hash = hash_file(&path).map_err(|source| HashError::new(&path, source))?;
            all.update(hash.as_bytes());
        }
        Ok(*all.finalize().as_bytes())
    }

    /// Loads the model onto `device`, in `format`; a `DType` is the format without quantization.
    /// Weights of the base that are stored in NF4 stay so. No parameter of an attached adapter is
    /// trainable.
    /// `progress(done, total)` is called after each tensor of the base.
    ///
    /// # Errors
    /// A file cannot be read, or weights and settings do not fit each other.
    pub fn load(
        &self,
        outermost: Outermost,
        device: &Device,
        format: impl Into<WeightFormat>,
        progress: impl FnMut(usize, usize),
    ) -> Result<Decoder, WeightsError> {
        let merged = self.merged(outermost);
        let mut model = self.load_merged(merged, device, format.into(), progress)?;
        if let (Outermost::Attached, Some(adapter)) = (outermost, self.outermost()) {
            let files = AdapterFiles::open(&adapter.folder, &adapter.config, &model.config)?;
            attach_from(&mut model, &adapter.config, &files)?;
            model.freeze();
        }
        Ok(model)
    }

    /// The base with `merged` adapters added to its weights. They are added in float32, before the
    /// weight is converted to the type of `format`. A weight in 4 bits is dequantized and quantized
    /// again, as in PEFT.
    fn load_merged(
        &self,
        merged: &[SourceAdapter],
        device: &Device,
        format: WeightFormat,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Decoder, WeightsError> {
        let stored = Arc::new(ModelConfig::load(&self.base)?);
        let files = WeightFiles::open_model(&self.base, &stored)?;
        check_names(&self.base, &stored, &files, &expected_parameters(&stored))?;
        let mut config = stored.clone();
        let mut deltas = Vec::new();
        for adapter in merged {
            let files = AdapterFiles::open(&adapter.folder, &adapter.config, &config)?;
            deltas.push((files, &adapter.config));
            let next = merged_config((*config).clone(), &adapter.config);
            config = Arc::new(next);
        }
        let (mut done, total) = (0, expected_parameters(&config).len());
        let unties = config.tie_word_embeddings != stored.tie_word_embeddings;
        Decoder::build(config, |name, shape| {
            let place = stored_as(name).filter(|_| unties).unwrap_or(name);
            let change = |values: &mut Vec<f32>| {
                let mut deltas = deltas.iter();
                deltas.try_for_each(|(files, config)| add_delta(values, files, config, name, shape))
            };
            let changes = deltas.iter().any(|(files, _)| files.changes(name));
            let change = changes.then_some(change);
            let weight = format.read_changed(&files, place, shape, device, change)?;
            done += 1;
            progress(done, total);
            Ok(weight)
        })
    }
}

/// Adds to `model` the adapter of `config` with the values of `files`. Its parameters are
/// trainable.
///
/// # Errors
/// The targets do not fit the model, or the values are damaged.
pub fn attach_from(
    model: &mut Decoder,
    config: &LoraConfig,
    files: &AdapterFiles,
) -> Result<(), WeightsError> {
    model.attach(config, |_, parameter| files.read(&parameter.name, &parameter.shape))
}

/// Adds an adapter's change of the parameter `name` to its `values`. A module that is trained whole
/// has values of its own, which replace them.
fn add_delta(
    values: &mut Vec<f32>,
    files: &AdapterFiles,
    config: &LoraConfig,
    name: &str,
    shape: &[usize],
) -> Result<(), WeightsError> {
    if let Some(whole) = files.read(name, shape)? {
        *values = whole;
        return Ok(());
    }
    let (Some(module), [out, width]) = (name.strip_suffix(".weight"), shape) else { return Ok(()) };
    let (r, scale) = config.rank_and_scale(module)?;
    let [a, b] = [("A", [r, *width]), ("B", [*out, r])].map(|(matrix, shape)| {
        let values = files.read(&format!("{module}.lora_{matrix}.weight"), &shape)?;
        let tensor = |values| -> Tensor<2> {
            Tensor::from_data(TensorData::new(values, shape), &Device::flex())
        };
        Ok::<_, WeightsError>(values.map(tensor))
    });
    if let (Some(a), Some(b)) = (a?, b?) {
        let delta = b.matmul(a).mul_scalar(scale).into_data();
        let delta: Vec<f32> = delta.try_into_vec().expect("the product is float32");
        values.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
    }
    Ok(())
}

impl Decoder {
    /// Loads the model in `folder` onto `device`, in `format`; a `DType` is the format without
    /// quantization. Weights that are stored in NF4 stay so. If the folder holds an adapter, its
    /// base is found by name, and the adapter is added to it.
    /// `progress(done, total)` is called after each tensor.
    ///
    /// # Errors
    /// A file cannot be read, or the weights do not fit config.json.
    pub fn load(
        folder: &Path,
        device: &Device,
        format: impl Into<WeightFormat>,
        progress: impl FnMut(usize, usize),
    ) -> Result<Self, WeightsError> {
        ModelSource::of(folder)?.load(Outermost::Attached, device, format, progress)
    }
}
