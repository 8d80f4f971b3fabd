//! Failures of a tokenizer.

use std::{io, path::PathBuf};

use crate::data::TemplateError;

/// A tokenizer that cannot be loaded, or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{}: tokenizer.json is missing{}", dir.display(), slow_help(*.slow))]
    Missing { dir: PathBuf, slow: bool },
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a tokenizer file: {message}\nhelp: fetch the tokenizer again", path.display())]
    Broken { path: PathBuf, message: String },
    #[error(
        "{}: {name} is `{token}`, which is not in the vocabulary\nhelp: set `eos_token` in the \
         recipe to a token of the vocabulary, or fetch the tokenizer again",
        path.display()
    )]
    NotInVocabulary { path: PathBuf, name: String, token: String },
    #[error("the tokenizer in {} has no eos_token\nhelp: set `eos_token` in the \
             recipe", .0.display())]
    NoEos(PathBuf),
    #[error("{}: the tokenizer failed: {}", path.display(), reason_of(message))]
    Failed { path: PathBuf, message: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The reason of a failure in words, with a way on.
fn reason_of(message: &str) -> String {
    match message.contains("retry-limit") {
        true => format!(
            "{message}\nhelp: a regular expression in it tries too many ways to match a text; use \
             a tokenizer with a simpler one"
        ),
        false => format!("{message}\nhelp: fetch the tokenizer again, or use another one"),
    }
}

fn slow_help(slow: bool) -> &'static str {
    if slow {
        "\nhelp: convert the slow tokenizer: AutoTokenizer.from_pretrained(…).save_pretrained(…) \
         in transformers writes a tokenizer.json"
    } else {
        "\nhelp: tokenizer_name_or_path must name a folder or hub id with a tokenizer.json"
    }
}
