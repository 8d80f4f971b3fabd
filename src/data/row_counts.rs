//! The number of rows of a mixture, computed from the sizes of its sets without reading rows.

use std::path::Path;

use super::DataError;
use super::mixture;
use super::set::Set;
use super::source::{Cell, RawRow, SourceFile};
use crate::recipe::{DataSettings, DatasetSpec};

/// The number of training and held-out rows of a mixture; `rows_of` gives the size of each set.
///
/// # Errors
/// The errors of `rows_of`; a test split that leaves no training rows.
pub fn count_rows<E: From<DataError>>(
    settings: &DataSettings,
    rows_of: impl FnMut(&DatasetSpec) -> Result<usize, E>,
) -> Result<[usize; 2], E> {
    let counts: Vec<usize> =
        mixture::specs(&settings.mixture).into_iter().map(rows_of).collect::<Result<_, E>>()?;
    let plan = mixture::choose_rows(settings, &counts)?;
    Ok([plan.train.len(), plan.test.len()])
}

/// Reads every row of a `.parquet` or `.jsonl` file, and returns the number of those in which all
/// of
/// `columns` can be read.
///
/// # Errors
/// The file cannot be read.
pub fn readable_rows(path: &Path, columns: &[String]) -> Result<usize, DataError> {
    let file = SourceFile::open(path)?;
    let wanted: Vec<usize> = (0..file.rows).collect();
    let mut readable = 0;
    file.read(columns, &wanted, &mut |rows| {
        let is_readable =
            |row: &&RawRow| row.cells.iter().all(|cell| !matches!(cell, Cell::Bad(_)));
        readable += rows.iter().filter(is_readable).count();
        Ok(())
    })?;
    Ok(readable)
}

/// All sets of a mixture.
pub fn sets(settings: &DataSettings) -> Vec<&DatasetSpec> {
    mixture::specs(&settings.mixture)
}

/// The number of rows of a set whose files are local, from their footers.
///
/// # Errors
/// The files cannot be found or read.
pub fn rows_in_files(spec: &DatasetSpec) -> Result<usize, DataError> {
    Ok(Set::open(spec)?.rows())
}
