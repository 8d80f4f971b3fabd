//! Errors of a recipe. Each has its place, the offending line, and advice.

use std::fmt;
use std::path::PathBuf;

use super::secret::masked;

/// The most characters of a long line that an error shows.
const EXCERPT_WIDTH: usize = 100;

/// All errors of a recipe or pipeline. `Display` masks secrets and prints each as `file:line:col:
/// message`, then the line with carets, then a `help:` line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub struct RecipeErrors(pub Vec<RecipeError>);

impl RecipeErrors {
    /// Sorts errors: first those about the whole file, then those in the file by line, then those
    /// of the command line.
    pub(super) fn in_order(mut errors: Vec<RecipeError>) -> Self {
        errors.sort_by_key(|error| {
            let at = error.place.as_ref().map(|place| (place.line, place.column));
            (error.file.as_os_str() == COMMAND_LINE, at)
        });
        RecipeErrors(errors)
    }
}

impl fmt::Display for RecipeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// One error.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeError {
    /// The recipe's file, or [`COMMAND_LINE`] for an override.
    pub file: PathBuf,
    /// What is wrong, in one sentence.
    pub message: String,
    /// The place; `None` if the error is about the whole file.
    pub place: Option<ErrorPlace>,
    /// What to do about it.
    pub help: Option<String>,
}

/// The offending text.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorPlace {
    /// The line, from 1; for the command line, the number of the override.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The number of wrong characters, at least 1.
    pub width: usize,
    /// The whole line.
    pub text: String,
}

/// The place of a key, for errors that are found after the recipe was read.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyPlace {
    file: PathBuf,
    place: Option<ErrorPlace>,
}

impl KeyPlace {
    /// An error at this place.
    pub fn error(&self, message: String, help: Option<String>) -> RecipeErrors {
        let (file, place) = (self.file.clone(), self.place.clone());
        RecipeErrors(vec![RecipeError { file, message, place, help }])
    }
}

impl From<RecipeError> for RecipeErrors {
    fn from(error: RecipeError) -> Self {
        RecipeErrors(vec![error])
    }
}

impl From<RecipeError> for KeyPlace {
    fn from(error: RecipeError) -> Self {
        KeyPlace { file: error.file, place: error.place }
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match &self.place {
            None => write!(f, ": {}", masked(&self.message))?,
            Some(place) => {
                if self.file.as_os_str() != COMMAND_LINE {
                    write!(f, ":{}:{}", place.line, place.column)?;
                }
                write!(f, ": {}", masked(&self.message))?;
                place.draw(f)?;
            }
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {}", masked(help))?;
        }
        Ok(())
    }
}

impl ErrorPlace {
    /// Draws the line and a row of carets under the offending part. A long line is cut around that
    /// part.
    fn draw(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let chars: Vec<char> = masked(&self.text).chars().map(plain).collect();
        let start = (self.column - 1).min(chars.len());
        let first = match start + self.width.min(EXCERPT_WIDTH / 2) > EXCERPT_WIDTH {
            true => start - EXCERPT_WIDTH / 4,
            false => 0,
        };
        let last = (first + EXCERPT_WIDTH).min(chars.len());
        let shown: String = chars[first..last].iter().collect();
        let before = if first > 0 { "…" } else { "" };
        let after = if last < chars.len() { "…" } else { "" };
        write!(f, "\n    {before}{}{after}", shown.trim_end())?;
        let indent = start - first + before.chars().count();
        let carets = self.width.min(last.saturating_sub(start)).max(1);
        write!(f, "\n    {}{}", " ".repeat(indent), "^".repeat(carets))
    }
}

/// The `file` of errors in overrides.
pub const COMMAND_LINE: &str = "command line";
