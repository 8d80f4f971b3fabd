//! The decoder: its shape, its weights, its layers, and text out of it.

pub mod cache;
pub mod config;
pub mod decoder;
pub mod device;
pub mod generation;
pub mod kernels;
pub mod layer;
pub mod sampling;
pub mod weights;
