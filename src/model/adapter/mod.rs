//! LoRA adapters (Hu et al., arXiv 2106.09685) in the form of PEFT.
//!
//! - [`config`]: the settings of an adapter, and `adapter_config.json`.
//! - [`targets`]: the linear layers that get an adapter, and the modules that are trained whole.
//! - [`lora`]: the two matrices beside a linear layer.
//! - [`attach`]: adds an adapter to a decoder.
//! - [`peft`][]: `adapter_model.safetensors`.
//! - [`source`]: a model folder or an adapter's folder → the base and its adapters, loaded.
//! - [`merge`]: an adapter added to the weights of its base.

pub mod attach;
pub mod config;
pub mod error;
pub mod lora;
pub mod merge;
pub mod peft;
pub mod source;
pub mod targets;

pub use config::LoraConfig;
pub use error::AdapterError;
pub use lora::Lora;
pub use source::ModelSource;
pub use targets::Targets;
