//! The decoder: its configuration, its layers, its parameters, and the files of a model folder.

pub mod adapter;
pub mod config;
mod config_keys;
pub mod decoder;
pub mod device;
pub mod family;
pub mod files;
pub mod layer;
pub mod parameter;
mod save;
pub mod weights;
