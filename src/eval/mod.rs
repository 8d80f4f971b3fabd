//! Evaluation tasks: documents → requests to a model → scores.
//!
//! A [`Task`] turns the rows of a data set into [`Document`]s with [`Request`]s, and the model's
//! [`Answer`]s into values of metrics. It has no tensors and no token ids.

mod encoding;
mod engine;
mod error;
mod evaluation;
mod evaluation_error;
mod greedy;
mod kept;
mod request;
mod results;
mod samples;
mod selection;
mod task;

pub use encoding::{EncodedDocument, EncodedKind, EncodedRequest, Encoder, EncodingError};
pub use engine::{BATCH_TOKENS, Engine, UnitAnswers, loglikelihoods, whole_tokens};
pub use error::EvalError;
pub use evaluation::{Effort, Evaluation, EvaluationContext, TaskAnswers};
pub use evaluation_error::EvaluationError;
pub use kept::KeptError;
pub use request::{Answer, Document, Measured, Request};
pub use results::{EvaluationSettings, Line, ModelFacts, Results};
pub use selection::Selection;
pub use task::{Aggregation, Definition, Metric, Task};
