//! The small world of `favonius demo`: a village's facts as chats and preference pairs, a tokenizer
//! and a tiny Mistral. Tests use it too.

mod corpus;
mod model;
mod questions;
mod rows;
mod tokenizer;
pub mod world;
