//! The decoder: its configuration, its layers, its parameters, and the files of a model folder.

pub mod adapter;
pub mod config;
mod config_keys;
pub mod decoder;
pub mod device;
pub mod experts;
pub mod family;
pub mod files;
pub mod layer;
pub mod linear;
pub mod norm;
pub mod parameter;
pub mod projections;
mod save;
pub mod weights;
