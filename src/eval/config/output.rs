//! `output_type`: the kind of request to the model.

use std::fmt;

use super::keys::Keys;
use super::prompt::Prompt;
use crate::recipe::RecipeError;

/// The kind of request to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputType {
    /// The log-likelihood of each choice.
    MultipleChoice,
    /// The log-likelihood of one text.
    Loglikelihood,
    /// A text.
    GenerateUntil,
}

impl fmt::Display for OutputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MultipleChoice => "multiple_choice",
            Self::Loglikelihood => "loglikelihood",
            Self::GenerateUntil => "generate_until",
        })
    }
}

/// Reads `output_type`.
///
/// # Errors
/// The value is unknown, or `doc_to_choice` is missing.
pub fn output(keys: &mut Keys, prompt: &Prompt) -> Result<OutputType, RecipeError> {
    let Some(key) = keys.take("output_type") else { return Ok(OutputType::GenerateUntil) };
    let output = match key.text()?.as_str() {
        "multiple_choice" => OutputType::MultipleChoice,
        "loglikelihood" => OutputType::Loglikelihood,
        "generate_until" => OutputType::GenerateUntil,
        other => {
            let message = format!("output_type `{other}` is not supported");
            let help = "use multiple_choice, loglikelihood or generate_until";
            return Err(key.error(message, help));
        }
    };
    if output == OutputType::MultipleChoice && prompt.choice.is_none() {
        let help = "write doc_to_choice: with a list, a column or a template";
        return Err(key.error("multiple_choice needs `doc_to_choice`", help));
    }
    Ok(output)
}
