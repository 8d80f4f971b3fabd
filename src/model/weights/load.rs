//! The parameters of a model, and the check that a folder has them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device};

use super::error::WeightsError;
use super::nf4::is_part;
use super::read::WeightFiles;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::parameter::{Parameter, Weight};

/// The parameters that a config asks for, in the order of the model, without their values.
pub fn expected_parameters(config: &Arc<ModelConfig>) -> Vec<Parameter> {
    empty_decoder(config).parameters().into_iter().cloned().collect()
}

/// A decoder whose parameters have no values.
pub(in crate::model) fn empty_decoder(config: &Arc<ModelConfig>) -> Decoder {
    let empty = Weight::from_values(Vec::new(), &Device::flex(), DType::F32);
    let built: Result<Decoder, std::convert::Infallible> =
        Decoder::build(config.clone(), |_, _| Ok(empty.clone()));
    let Ok(model) = built;
    model
}

/// Checks that the files hold the parameters of `config`, and nothing else.
///
/// # Errors
/// The first difference.
pub(in crate::model) fn check_names(
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
        let architecture = format!("{:?}", config.family.architecture);
        return Err(WeightsError::Extra { folder: folder.into(), architecture, name, extra });
    }
    if config.tie_word_embeddings && !files.head_is_embedding()? {
        return Err(WeightsError::Tied { folder: folder.into() });
    }
    Ok(())
}
