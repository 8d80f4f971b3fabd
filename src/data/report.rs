//! Counts of rows that were read, kept and left out, with reasons.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The most bad rows that a report names by file and row; further ones are only counted.
const NAMED: usize = 10;

/// Why a row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BadRow {
    /// The row lacks this field.
    MissingField(String),
    /// The field, or a role or content in it, is null.
    Null(String),
    /// The field holds neither text nor a chat.
    WrongType(String),
    /// The label is neither true nor false.
    NotALabel,
    /// A chat without messages.
    EmptyChat(String),
    /// The field's text, or the last message of its chat, is empty.
    Empty(String),
    /// A role that is empty or unknown to the chat template.
    BrokenRole(String),
    /// The field is not UTF-8.
    BrokenUtf8(String),
    /// Chosen and rejected are equal.
    IdenticalSides,
    /// Chosen and rejected share no first message, and the row has no prompt.
    NoPrompt,
    /// The field does not begin with the prompt that chosen and rejected have in common.
    OtherPrompt(String),
    /// The chat has no assistant turn.
    NoAssistantTurn,
    /// The response (this field) does not end in an assistant turn.
    NoAssistantEnd(String),
    /// `tools` or `chat_template_kwargs` has a form that transformers refuses.
    NotTemplateValue(String),
    /// `chat_template_kwargs` holds a name that transformers takes for itself.
    TakenVariable(String),
    /// The chat template refused the row.
    Template(String),
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingField(field) => write!(f, "`{field}` is missing"),
            Self::Null(field) => write!(f, "`{field}` is null or contains null"),
            Self::WrongType(field) => write!(f, "`{field}` is neither text nor a list of messages"),
            Self::NotALabel => f.write_str("`label` is neither true nor false"),
            Self::EmptyChat(field) => write!(f, "`{field}` has no messages"),
            Self::Empty(field) => write!(f, "`{field}` is empty"),
            Self::BrokenRole(role) => write!(f, "a message has the unknown role `{role}`"),
            Self::BrokenUtf8(field) => write!(f, "`{field}` is not UTF-8"),
            Self::IdenticalSides => f.write_str("`chosen` and `rejected` are the same"),
            Self::NoPrompt => f.write_str("`chosen` and `rejected` have no prompt in common"),
            Self::OtherPrompt(field) => write!(
                f,
                "`{field}` does not begin with the prompt that `chosen` and `rejected` have in \
                 common"
            ),
            Self::NoAssistantTurn => f.write_str("the chat has no assistant turn"),
            Self::NoAssistantEnd(field) => write!(f, "`{field}` does not end in an assistant turn"),
            Self::NotTemplateValue(field) if field == "tools" => {
                f.write_str("`tools` is neither a list of objects nor its JSON text")
            }
            Self::NotTemplateValue(field) => write!(f, "`{field}` is not an object"),
            Self::TakenVariable(name) => {
                write!(f, "`chat_template_kwargs` may not set `{name}`")
            }
            Self::Template(message) => write!(f, "the chat template refused the row: {message}"),
        }
    }
}

/// A bad row with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRowAt {
    pub file: PathBuf,
    /// The row's index in the file, from 0.
    pub row: usize,
    pub reason: BadRow,
}

/// Counts for the rows of a split. `read = kept + no_room + no_label + Σ bad`; `kept` counts rows
/// before packing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowReport {
    pub read: usize,
    pub kept: usize,
    /// Rows whose prompt leaves no room for a response.
    pub no_room: usize,
    /// Rows without a target token after truncation.
    pub no_label: usize,
    pub bad: BTreeMap<BadRow, usize>,
    /// The first ten bad rows, in file order.
    pub first_bad: Vec<BadRowAt>,
}

impl RowReport {
    /// Counts a bad row, and records its place if it is one of the first ten.
    pub(super) fn add_bad(&mut self, file: &std::path::Path, row: usize, reason: BadRow) {
        if self.first_bad.len() < NAMED {
            self.first_bad.push(BadRowAt { file: file.to_owned(), row, reason: reason.clone() });
        }
        *self.bad.entry(reason).or_default() += 1;
    }

    /// The share of rows that are bad, 0 to 1.
    pub fn bad_share(&self) -> f64 {
        let bad: usize = self.bad.values().sum();
        if self.read == 0 { 0.0 } else { bad as f64 / self.read as f64 }
    }
}

/// The lines that the user sees.
impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows read, {} kept", self.read, self.kept)?;
        if self.no_room > 0 {
            write!(f, "\n  {} left out: the prompt leaves no room for a response", self.no_room)?;
        }
        if self.no_label > 0 {
            write!(f, "\n  {} left out: no target token is left", self.no_label)?;
        }
        for (reason, count) in &self.bad {
            write!(f, "\n  {count} left out: {reason}")?;
            if let Some(first) = self.first_bad.iter().find(|at| at.reason == *reason) {
                write!(f, " (first: {}, row {})", first.file.display(), first.row)?;
            }
        }
        Ok(())
    }
}

/// A report in a form that JSON can hold: its map has keys that are not strings.
#[derive(Serialize, Deserialize)]
pub(super) struct ReportParts {
    read: usize,
    kept: usize,
    no_room: usize,
    no_label: usize,
    bad: Vec<(BadRow, usize)>,
    first_bad: Vec<BadRowAt>,
}

impl From<&RowReport> for ReportParts {
    fn from(report: &RowReport) -> Self {
        let RowReport { read, kept, no_room, no_label, bad, first_bad } = report.clone();
        Self { read, kept, no_room, no_label, bad: bad.into_iter().collect(), first_bad }
    }
}

impl From<ReportParts> for RowReport {
    fn from(parts: ReportParts) -> Self {
        let ReportParts { read, kept, no_room, no_label, bad, first_bad } = parts;
        Self {
            read,
            kept,
            no_room,
            no_label,
            bad: bad.into_iter().collect::<BTreeMap<_, _>>(),
            first_bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_first_ten_bad_rows_are_named_and_all_are_counted() {
        let mut report = RowReport { read: 100, kept: 70, no_room: 10, ..RowReport::default() };
        for row in 0..20 {
            let reason =
                if row < 5 { BadRow::IdenticalSides } else { BadRow::Empty("chosen".to_owned()) };
            report.add_bad(Path::new("a.parquet"), row, reason);
        }
        assert_eq!(report.first_bad.len(), 10);
        assert_eq!(report.bad_share(), 0.2);
        assert_eq!(
            report.to_string(),
            "100 rows read, 70 kept\n  10 left out: the prompt leaves no room for a response\n  \
             15 left out: `chosen` is empty (first: a.parquet, row 5)\n  \
             5 left out: `chosen` and `rejected` are the same (first: a.parquet, row 0)"
        );
    }
}
