//! Rows as read from a file, before checks and encoding.

use crate::data::Message;
use crate::data::report::BadRow;

/// The number of rows in a batch.
pub const BATCH: usize = 512;

/// The content of one row in one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Text(String),
    Chat(Vec<Message>),
    /// True or false, or the numbers 1 or 0.
    Flag(bool),
    /// Unusable, with the reason.
    Bad(BadRow),
}

/// A row with its cells in the order of the requested columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// The row's index in the file, from 0.
    pub row: usize,
    pub cells: Vec<Cell>,
}

/// The standard role for a role in `from`/`value` messages.
pub fn role_of_from(from: &str) -> &str {
    match from {
        "human" => "user",
        "gpt" | "chatgpt" | "bot" => "assistant",
        other => other,
    }
}
