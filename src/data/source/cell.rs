//! Rows as they come out of a file, before anything is checked or encoded.

use crate::data::Message;
use crate::data::report::BadRow;

/// Rows that are read, and handed on, at a time.
pub const BATCH: usize = 512;

/// What a row has in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Text(String),
    Chat(Vec<Message>),
    /// True or false, also written as 1 or 0.
    Flag(bool),
    /// Not usable, and why.
    Bad(BadRow),
}

/// A row with its cells in the order of the columns that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRow {
    /// Counted from 0 within the file.
    pub row: usize,
    pub cells: Vec<Cell>,
}

/// The role in a chat of `from`/`value` objects under the name that templates know.
pub fn role_of_from(from: &str) -> &str {
    match from {
        "human" => "user",
        "gpt" | "chatgpt" | "bot" => "assistant",
        other => other,
    }
}
