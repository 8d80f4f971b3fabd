//! Evaluation tasks: documents → requests to a model → scores.
//!
//! A [`Catalogue`] finds tasks and groups by their names. A [`Task`] turns the rows of a data set
//! into [`Document`]s with [`Request`]s, and the model's [`Answer`]s into values of metrics, of
//! which [`scores`] makes scores. These have no tensors and no token ids.
//!
//! Two definitions of the built-in tasks exist: [`lm_eval`] reads task files with the keys of
//! lm-eval 0.4.13 ([`config`]), its own and those of users. [`leaderboard`] has the rules of the
//! first Open LLM Leaderboard ([`rules`]). [`tasks`] has one file for each task.
//!
//! An [`Evaluation`] answers the documents of a task with a model: [`encoding`] turns requests into
//! token ids, [`engine`] computes log-likelihoods and, with [`greedy`], texts, and [`kept`] stores
//! the answers of finished documents. A [`Selection`] of tasks and groups gives [`Results`].

mod catalogue;
mod config;
mod data;
mod encoding;
mod engine;
mod error;
mod evaluation;
mod evaluation_error;
mod greedy;
mod kept;
mod leaderboard;
mod lm_eval;
mod options;
mod python;
mod random;
mod request;
mod results;
mod row;
mod rules;
mod samples;
pub mod scores;
mod selection;
mod shots;
mod task;
mod tasks;
mod template;

pub use catalogue::{Catalogue, Entry, Group, Headline, TaskSpec};
pub use config::group::GroupMetric;
pub use data::DataFolder;
pub use encoding::{EncodedDocument, EncodedKind, EncodedRequest, Encoder, EncodingError};
pub use engine::{BATCH_TOKENS, Engine, UnitAnswers, loglikelihoods, whole_tokens};
pub use error::EvalError;
pub use evaluation::{Effort, Evaluation, EvaluationContext, TaskAnswers};
pub use evaluation_error::EvaluationError;
pub use kept::KeptError;
pub use options::{Chat, FEWSHOT_SEED, Options};
pub use random::Random;
pub use request::{Answer, Document, Measured, Request};
pub use results::{EvaluationSettings, Line, ModelFacts, Results};
pub use selection::Selection;
pub use task::{Aggregation, Definition, Metric, Task};
