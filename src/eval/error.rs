//! Errors of tasks and of their data.

use std::path::PathBuf;

use crate::data::DataError;
use crate::hub::HubError;
use crate::recipe::{RecipeError, RecipeErrors};

/// A task that cannot be built or evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A task file with mistakes, each with its line.
    #[error(transparent)]
    File(#[from] RecipeErrors),
    #[error("no task `{name}`{}\nhelp: {help}", similar(near))]
    NoTask { name: String, near: Option<String>, help: String },
    #[error("task `{task}`: {message}\nhelp: {help}")]
    Task { task: String, message: String, help: String },
    #[error("task `{task}`: {}, row {row}: {message}", file.display())]
    Row { task: String, file: PathBuf, row: usize, message: String },
}

impl From<RecipeError> for EvalError {
    fn from(error: RecipeError) -> Self {
        Self::File(error.into())
    }
}

fn similar(near: &Option<String>) -> String {
    near.as_ref().map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
