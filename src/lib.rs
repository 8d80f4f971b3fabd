//! Favonius: alignment training on Burn, driven by YAML recipes: SFT, DPO and its family, ORPO,
//! CPO, SimPO and KTO.
//!
//! Data goes one way: [`recipe`] → [`data`] → [`model`] → [`objective`] → [`train`] → [`report`].
//! [`plan`] says what a recipe will do, and [`run`] does it. [`parallel`] shares the training among
//! ranks. [`hub`] reads from the Hugging Face hub and uploads to it. `commands` is the command
//! line; no other module imports it.

#![recursion_limit = "256"]

#[cfg(feature = "cli")]
pub mod commands;
pub mod data;
pub mod eval;
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
