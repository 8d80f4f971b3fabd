//! The decoder: its shape, its weights, its layers, and text out of it.

pub mod config;
pub mod decoder;
pub mod device;
pub mod files;
pub mod layer;
pub mod parameter;
pub mod weights;
