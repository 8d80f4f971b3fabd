//! Python's forms of values and texts, which the prompts and metrics of lm-eval depend on.

mod literal;
mod number;
mod pattern;
mod text;

pub use literal::literal_eval;
pub use number::{float, float_text, sum};
pub use pattern::Pattern;
pub use text::{capitalized, is_digits, lower, repr, text_of, trimmed, without_punctuation};
