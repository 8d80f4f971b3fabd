//! Evaluation tasks: documents → requests to a model → scores.
//!
//! A [`Catalogue`] finds tasks and groups by their names. A [`Task`] turns the rows of a data set
//! into [`Document`]s with [`Request`]s, and the model's [`Answer`]s into values of metrics, of
//! which [`scores`] makes scores. No file of these has tensors or token ids.
//!
//! Two definitions of the built-in tasks exist: [`lm_eval`] reads task files with the keys of
//! lm-eval 0.4.13 ([`config`]), its own and those of users. [`leaderboard`] has the rules of the
//! first Open LLM Leaderboard ([`rules`]). [`tasks`] has one file for each task.

mod catalogue;
mod config;
mod data;
mod error;
mod leaderboard;
mod lm_eval;
mod options;
mod python;
mod random;
mod request;
mod row;
mod rules;
pub mod scores;
mod shots;
mod task;
mod tasks;
mod template;

pub use catalogue::{Catalogue, Entry, Group, Headline, TaskSpec};
pub use config::group::GroupMetric;
pub use data::DataFolder;
pub use error::EvalError;
pub use options::{Chat, FEWSHOT_SEED, Options};
pub use random::Random;
pub use request::{Answer, Document, Measured, Request};
pub use task::{Aggregation, Definition, Metric, Task};
