//! Text out of a model: the chat model, its key-value cache, sampling, prompt files.

pub mod chat_model;
pub mod conversation;
pub mod generation;
pub mod kv_cache;
pub mod prompts;
pub mod sampling;
