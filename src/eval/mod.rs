//! Evaluation tasks: documents → requests to a model → scores.
//!
//! A [`Task`] turns the rows of a data set into [`Document`]s with [`Request`]s, and the model's
//! [`Answer`]s into values of metrics. It has no tensors and no token ids.

mod error;
mod request;
mod task;

pub use error::EvalError;
pub use request::{Answer, Document, Measured, Request};
pub use task::{Aggregation, Definition, Metric, Task};
