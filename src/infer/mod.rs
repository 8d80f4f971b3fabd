//! Text generation: the chat model, its key-value cache, sampling, and files of prompts.

pub mod chat_model;
pub mod conversation;
pub mod decoding;
mod error;
pub mod generation;
pub mod kv_cache;
pub mod prompts;
pub mod sampling;

pub use error::InferError;
