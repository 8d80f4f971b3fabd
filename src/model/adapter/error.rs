//! The errors of this module.

use std::path::PathBuf;

use crate::files::json_object::ObjectError;
use crate::hub::HubError;

/// Why an adapter cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(transparent)]
    File(#[from] ObjectError),
    #[error("{path}: `{key}` is {found}; expected {expected}")]
    Invalid { path: PathBuf, key: &'static str, found: String, expected: &'static str },
    #[error("{path}: `{key}` is {found}, which is not supported: {reason}")]
    Unsupported { path: PathBuf, key: &'static str, found: String, reason: &'static str },
    #[error(
        "{folder} holds an adapter, but its base model `{base}` cannot be used: {source}\n\
         help: correct `base_model_name_or_path` in its adapter_config.json"
    )]
    Base { folder: PathBuf, base: String, source: Box<HubError> },
    #[error(
        "{folder} holds an adapter whose base is, through `base_model_name_or_path`, that adapter \
         itself; correct it in adapter_config.json"
    )]
    Circle { folder: PathBuf },
    #[error("{0} is a full model, not an adapter: it has no adapter_config.json")]
    NoAdapter(PathBuf),
    #[error("the target `{0}` is not a valid regular expression: {1}")]
    Pattern(String, String),
    #[error(
        "no linear layer of the model matches the targets {targets}; its linear layers are {there}"
    )]
    NoTarget { targets: String, there: String },
    #[error(
        "the targets {targets} match `{module}`, and an adapter on it is not supported: only the \
         linear layers within the decoder's layers can have one. To train it whole, name it in \
         `lora_modules_to_save`"
    )]
    NotInLayers { targets: String, module: &'static str },
    #[error(
        "the targets {targets} match the experts or the router of the model, and adapters on them \
         are not supported; name linear layers of attention: q_proj, k_proj, v_proj, o_proj"
    )]
    Experts { targets: String },
    #[error(
        "`{0}` is to be trained whole and is a part of the experts or of the router; with an adapter \
         this is not supported: leave it out of `lora_modules_to_save`, or train all weights"
    )]
    SavedExperts(String),
    #[error(
        "no module of the model has a name that ends with `{0}`, which is to be trained whole; \
         usual names are lm_head and embed_tokens"
    )]
    NoModule(String),
    #[error("{folder}: no adapter_model.safetensors here{hint}")]
    NoWeights { folder: PathBuf, hint: &'static str },
    #[error(
        "{folder}: tensor `{name}` is missing; does adapter_config.json belong to these weights, \
         and is `{base}` the base model?"
    )]
    Missing { folder: PathBuf, name: String, base: String },
    #[error(
        "{folder}: tensor `{name}` belongs to no module that adapter_config.json names; does the \
         file belong to these weights, and is `{base}` the base model?"
    )]
    Extra { folder: PathBuf, name: String, base: String },
    #[error(
        "{folder}: tensor `{name}` has shape {found:?}; adapter_config.json and the base model \
         `{base}` make it {expected:?}"
    )]
    Shape { folder: PathBuf, name: String, base: String, found: Vec<usize>, expected: Vec<usize> },
}
