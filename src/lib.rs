//! Favonius: alignment training (SFT, then DPO against a frozen reference) on Burn, driven by YAML
//! recipes.
//!
//! Data goes one way: [`recipe`] → [`data`] → [`model`] → [`objective`] → [`train`] → [`report`];
//! [`parallel`] is how ranks share the training, [`hub`] the way to Hugging Face's.
//! The command line is `commands`; nothing imports it.

#![recursion_limit = "256"]

#[cfg(feature = "cli")]
pub mod commands;
pub mod data;
pub mod files;
pub mod hub;
pub mod infer;
pub mod model;
pub mod objective;
pub mod parallel;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod run;
pub mod toy;
pub mod train;

pub use favonius_kernels as kernels;
