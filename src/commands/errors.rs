//! Errors of commands: their text and their exit code.

use std::io::Write;

use crate::eval::{EvalError, EvaluationError};
use crate::files::caught::is_catching;
use crate::files::printable::printable;
use crate::recipe::RecipeErrors;
use crate::run::RunError;

/// Exit code of a wrong command line or recipe.
pub const BAD_USAGE: u8 = 2;

/// A command line that contradicts itself, or that cannot be carried out. The text is the whole
/// message, with a `help:` line if the user can do something about it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Fails because the command line is wrong.
pub fn usage<T>(text: impl Into<String>) -> anyhow::Result<T> {
    Err(UsageError(text.into()).into())
}

/// An error and its causes as text, after the `place` where it happened, and its exit code. The
/// errors of a recipe name their places themselves.
pub fn message(error: &anyhow::Error, place: &str) -> (String, u8) {
    if let Some(errors) = recipe_errors(error) {
        return (errors.to_string(), BAD_USAGE);
    }
    let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
    let mut text = format!("{place}{error}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many messages already contain their cause.
        if !text.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
        }
    }
    let is_usage = error.is::<UsageError>() || names_no_task(error);
    (text, if is_usage { BAD_USAGE } else { 1 })
}

/// Whether the command line names a task that does not exist.
fn names_no_task(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<EvaluationError>();
    matches!(error, Some(EvaluationError::Task(EvalError::NoTask { .. })))
}

/// The errors of a recipe or a task file, found while it was read or when its run began.
fn recipe_errors(error: &anyhow::Error) -> Option<&RecipeErrors> {
    if let Some(EvaluationError::Task(EvalError::File(errors))) = error.downcast_ref() {
        return Some(errors);
    }
    match error.downcast_ref::<RunError>() {
        Some(RunError::Recipe(errors)) => Some(errors),
        Some(_) => None,
        None => error.downcast_ref(),
    }
}

/// Prints an error on standard error. A line of a recipe's errors begins with its place, not with
/// `error:`.
pub fn print(error: &anyhow::Error) {
    let (text, _) = message(error, "");
    let before = if recipe_errors(error).is_some() { "" } else { "error: " };
    // If standard error is closed, the exit code still says that the command failed.
    let _ = writeln!(std::io::stderr(), "{before}{}", printable(&text));
}

/// From now on, panics that become errors (see [`crate::files::caught`]) are not printed as panics.
pub fn print_no_caught_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !is_catching() {
            print(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_printed_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read a: no such file");
        assert_eq!(message(&error, "").0, "cannot read a: no such file");
        let error = anyhow::anyhow!("no such file").context("cannot read a");
        assert_eq!(message(&error, "r").0, "r: cannot read a\n  because: no such file");
    }

    #[test]
    fn errors_of_the_command_line_have_their_exit_code() {
        let error = usage::<()>("--jobs: no").unwrap_err();
        assert_eq!(message(&error, ""), ("--jobs: no".to_owned(), BAD_USAGE));
        assert_eq!(message(&anyhow::anyhow!("no"), "").1, 1);
    }
}
