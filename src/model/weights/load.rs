//! A model from its folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};

use super::error::WeightsError;
use super::format::WeightFormat;
use super::nf4::is_part;
use super::read::WeightFiles;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Parameter, Weight};

impl Decoder {
    /// Loads config.json and weights of a model folder onto `device`, in `format`; a `DType` is the
    /// format without quantization. Weights that are stored in NF4 stay so.
    /// `progress(done, total)` is called after each tensor.
    ///
    /// # Errors
    /// A file cannot be read, or the weights do not fit config.json.
    pub fn load(
        folder: &Path,
        device: &Device,
        format: impl Into<WeightFormat>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, WeightsError> {
        let format = format.into();
        let config = Arc::new(ModelConfig::load(folder)?);
        let mut files = WeightFiles::open(folder)?;
        if config.tie_word_embeddings {
            files.tie();
        }
        let expected = expected_parameters(&config);
        check_names(folder, &config, &files, &expected)?;
        let (mut done, total) = (0, expected.len());
        Self::build(config, |name, shape| {
            let weight = format.read(&files, name, shape, device)?;
            done += 1;
            progress(done, total);
            Ok(weight)
        })
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
    let here: BTreeSet<&str> = files.names().filter(|name| !is_part(name)).collect();
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
