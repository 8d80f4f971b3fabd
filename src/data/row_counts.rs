//! How many rows a mixture gives, told from the sizes of its sets: no row is read.

use super::DataError;
use super::load;
use super::mixture;
use crate::recipe::{DataSettings, DatasetSpec};

/// Training and held-out rows of a mixture whose sets have as many rows as `rows_of` says.
///
/// # Errors
/// Those of `rows_of`, and a test split that leaves nothing to train on.
pub fn count_rows<E: From<DataError>>(
    settings: &DataSettings,
    rows_of: impl FnMut(&DatasetSpec) -> Result<usize, E>,
) -> Result<[usize; 2], E> {
    let counts: Vec<usize> =
        mixture::specs(&settings.mixture).into_iter().map(rows_of).collect::<Result<_, E>>()?;
    let plan = mixture::plan(settings, &counts)?;
    Ok([plan.train.len(), plan.test.len()])
}

/// Every set of a mixture.
pub fn sets(settings: &DataSettings) -> Vec<&DatasetSpec> {
    mixture::specs(&settings.mixture)
}

/// Rows of a set whose files are here, from their footers.
///
/// # Errors
/// The files cannot be found or read.
pub fn rows_in_files(spec: &DatasetSpec) -> Result<usize, DataError> {
    Ok(load::Set::open(spec)?.rows())
}
