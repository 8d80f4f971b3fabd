//! The synthetic data and model of `favonius demo`: chats and preference pairs about a few simple
//! facts, a tokenizer and a tiny Mistral. Tests use it too.

mod corpus;
mod error;
mod model;
mod questions;
mod rows;
mod tokenizer;
pub mod world;

pub use error::ToyError;
