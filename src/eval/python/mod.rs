//! Python's forms of values and texts, which the prompts and metrics of lm-eval depend on.

mod literal;
mod number;
mod pattern;
mod repr;
mod text;

pub use literal::literal_eval;
pub use number::{float, float_text, sum};
pub use pattern::Pattern;
pub use repr::{repr, text_of};
pub use text::{capitalized, is_digits, lower, trimmed, without_punctuation};
