//! Streams rows from parquet and jsonl files, reading only the requested columns.

pub(super) mod cell;
mod jsonl;
mod parquet;
mod parquet_file;
mod parquet_json;
mod records;
mod thrift;

use std::path::{Path, PathBuf};

use super::DataError;
pub(super) use cell::{CHAT_TEMPLATE_KWARGS, Cell, RawRow, TEMPLATE_COLUMNS};
pub(crate) use records::records;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parquet,
    Jsonl,
}

/// A data file whose row count and columns are known.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub path: PathBuf,
    pub rows: usize,
    pub columns: Vec<String>,
    kind: Kind,
}

impl SourceFile {
    /// Opens the file and counts its rows.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => Kind::Parquet,
            Some("jsonl") => Kind::Jsonl,
            _ => {
                let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(DataError::FileKind { path: path.to_owned(), file_name });
            }
        };
        let (rows, columns) = match kind {
            Kind::Parquet => parquet::describe(path)?,
            Kind::Jsonl => jsonl::describe(path)?,
        };
        Ok(Self { path: path.to_owned(), rows, columns, kind })
    }

    /// Reads the rows `wanted` (ascending) with these `columns`, and passes them to `each` in
    /// batches.
    pub fn read(
        &self,
        columns: &[String],
        wanted: &[usize],
        each: &mut dyn FnMut(Vec<RawRow>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        match self.kind {
            Kind::Parquet => parquet::read(&self.path, columns, wanted, each),
            Kind::Jsonl => jsonl::read(&self.path, columns, wanted, each),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All rows of a file.
    pub fn rows(path: &Path, columns: &[&str]) -> Result<Vec<RawRow>, DataError> {
        let file = SourceFile::open(path)?;
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        let wanted: Vec<usize> = (0..file.rows).collect();
        let mut rows = Vec::new();
        file.read(&columns, &wanted, &mut |batch| {
            rows.extend(batch);
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn other_files_are_refused() {
        let error = SourceFile::open(Path::new("rows.csv")).unwrap_err().to_string();
        assert!(
            error.starts_with("rows.csv: `rows.csv` is neither a .parquet nor a .jsonl file"),
            "{error}"
        );
    }
}
