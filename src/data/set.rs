//! A data set with its files open.

use std::{path::PathBuf, sync::Once};

use super::DataError;
use super::source::{Cell, SourceFile, TEMPLATE_COLUMNS};
use crate::hub::resolve;
use crate::recipe::DatasetSpec;

/// Columns in which preference data sets keep the prompt under another name than `prompt`.
const PROMPT_LIKE: [&str; 9] = [
    "question",
    "instruction",
    "conversations",
    "messages",
    "input",
    "query",
    "context",
    "history",
    "system",
];

/// A data set with its files open.
pub(super) struct Set {
    pub spec: DatasetSpec,
    pub files: Vec<SourceFile>,
    pub columns: Vec<String>,
    /// Completed once a column was named that may hold the prompt but is not read.
    noted: Once,
}

impl Set {
    pub fn open(spec: &DatasetSpec) -> Result<Self, DataError> {
        let paths = resolve::resolve_dataset(&spec.split_name())?;
        let files: Vec<SourceFile> =
            paths.iter().map(|path| SourceFile::open(path)).collect::<Result<_, _>>()?;
        // A key may appear in the later files of a split only.
        let mut columns: Vec<String> = Vec::new();
        for column in files.iter().flat_map(|file| &file.columns) {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
        let mut set = Self { spec: spec.clone(), files, columns, noted: Once::new() };
        if let Some(chosen) = &spec.columns {
            if let Some(missing) = chosen.iter().find(|column| !set.columns.contains(column)) {
                return Err(
                    set.no_column(format!("`{missing}`"), "correct `columns` in the recipe")
                );
            }
            set.columns.retain(|column| chosen.contains(column));
        }
        Ok(set)
    }

    pub fn rows(&self) -> usize {
        self.files.iter().map(|file| file.rows).sum()
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|own| own == name)
    }

    /// The columns that this kind of rows gives to the chat template, as in TRL: its trainers of
    /// ORPO and CPO pass no tools, and the handbook passed nothing. Warns of the others.
    pub fn template_columns(&self, passed: &[&str]) -> Vec<String> {
        let there = TEMPLATE_COLUMNS.into_iter().filter(|name| self.has(name));
        let (read, missed): (Vec<&str>, Vec<&str>) = there.partition(|name| passed.contains(name));
        for name in missed {
            tracing::warn!(
                "{}: the column `{name}` is not read; as in the trainer that \
                 `preference_semantics` names, the chat template does not get it",
                self.spec.id
            );
        }
        read.into_iter().map(str::to_owned).collect()
    }

    /// Warns once if the responses are texts without a prompt, and another column may hold it.
    pub fn note_unread_prompt(&self, chosen: &Cell, prompt: Option<&Cell>) {
        let (Cell::Text(_), None) = (chosen, prompt) else { return };
        let Some(column) = PROMPT_LIKE.into_iter().find(|name| self.has(name)) else { return };
        self.noted.call_once(|| {
            tracing::warn!(
                "{}: no column `prompt`; the prompt of a row is the start that `chosen` and \
                 `rejected` share, and the column `{column}` is not read; if it holds the prompt, \
                 rename it to `prompt`",
                self.spec.id
            );
        });
    }

    /// The columns that are read: all that are `needed`, and those of `optional` that exist.
    ///
    /// # Errors
    /// A needed column is missing; `help` describes the right form.
    pub fn columns_of(
        &self,
        needed: &[&str],
        optional: &[&str],
        help: &str,
    ) -> Result<Vec<String>, DataError> {
        let missing: Vec<&str> = needed.iter().copied().filter(|name| !self.has(name)).collect();
        if !missing.is_empty() {
            return Err(self.no_column(format!("`{}`", missing.join("` and no `")), help));
        }
        let names = needed.iter().chain(optional).filter(|name| self.has(name));
        Ok(names.map(|name| (*name).to_owned()).collect())
    }

    pub fn no_column(&self, wanted: String, help: &str) -> DataError {
        DataError::Column {
            path: self
                .files
                .first()
                .map_or_else(|| PathBuf::from(&self.spec.id), |file| file.path.clone()),
            wanted,
            columns: self.columns.clone(),
            help: help.to_owned(),
        }
    }
}
