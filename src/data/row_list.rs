//! The rows of a split as token ids: in memory, in a file from which each row is read when it is
//! needed, or in a stream that is read while a run trains.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::DataError;
use super::stream::RowStream;

/// Rows in a fixed order. Clones share the rows.
///
/// Rows of a large data set stay in a file, which is read by offset. Ranks of one host share the
/// file in the system's page cache.
#[derive(Clone)]
pub struct RowList<T>(Held<T>);

#[derive(Clone)]
enum Held<T> {
    Memory(Arc<Vec<T>>),
    File(Arc<FileRows<T>>),
    Stream(Arc<RowStream<T>>),
}

/// Rows in a file.
pub(super) struct FileRows<T> {
    pub file: RowFile,
    pub places: Vec<Place>,
    /// Decodes the numbers of a row.
    pub decode: fn(&[u32]) -> Option<T>,
}

/// A file of numbers (u32, little-endian).
#[derive(Debug, Clone)]
pub(super) struct RowFile {
    pub path: PathBuf,
    pub file: Arc<File>,
}

/// The numbers of a row: the place of the first byte in the file, and their count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub start: u64,
    pub count: u32,
}

impl RowFile {
    /// The numbers at a place.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter.
    pub fn numbers(&self, place: Place) -> io::Result<Vec<u32>> {
        let mut numbers = vec![0_u32; place.count as usize];
        self.file.read_exact_at(bytemuck::cast_slice_mut(&mut numbers), place.start)?;
        numbers.iter_mut().for_each(|number| *number = u32::from_le(*number));
        Ok(numbers)
    }
}

impl<T: Clone> RowList<T> {
    /// Rows that stay in a file.
    pub(super) fn in_file(rows: FileRows<T>) -> Self {
        Self(Held::File(Arc::new(rows)))
    }

    /// Rows that are read while a run trains.
    pub(super) fn streamed(rows: RowStream<T>) -> Self {
        Self(Held::Stream(Arc::new(rows)))
    }

    /// Whether the rows are read while a run trains. Each of them must be waited for, in the order
    /// of their indices.
    pub fn is_streamed(&self) -> bool {
        matches!(self.0, Held::Stream(_))
    }

    /// Waits until rows of a stream are read, and drops those before the first of them. Other rows
    /// are always there.
    ///
    /// # Errors
    /// The stream fails, or ends before these rows.
    pub fn wait(&self, rows: &[&[usize]]) -> Result<(), DataError> {
        match &self.0 {
            Held::Memory(_) | Held::File(_) => Ok(()),
            Held::Stream(stream) => stream.wait(&rows.concat()),
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Memory(rows) => rows.len(),
            Held::File(rows) => rows.places.len(),
            Held::Stream(rows) => rows.len(),
        }
    }

    /// Whether no row exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the rows are in memory, and not in a file.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.0, Held::Memory(_))
    }

    /// The row at an index.
    ///
    /// # Panics
    /// If `row` is not below [`Self::len`], if the file of the rows was changed or cannot be read,
    /// or if [`Self::wait`] was not called for a row of a stream.
    pub fn get(&self, row: usize) -> Cow<'_, T> {
        match &self.0 {
            Held::Memory(rows) => Cow::Borrowed(&rows[row]),
            Held::Stream(rows) => Cow::Owned(rows.get(row)),
            Held::File(rows) => {
                let read = rows.file.numbers(rows.places[row]);
                let decoded = read.map(|numbers| (rows.decode)(&numbers));
                let path = rows.file.path.display();
                match decoded {
                    Ok(Some(row)) => Cow::Owned(row),
                    Ok(None) => panic!("{path}: row {row} was changed; start the run again"),
                    Err(error) => panic!("{path}: cannot read row {row}: {error}"),
                }
            }
        }
    }

    /// The rows at these indices, in this order.
    ///
    /// # Panics
    /// As [`Self::get`].
    pub fn select(&self, rows: &[usize]) -> Vec<Cow<'_, T>> {
        rows.iter().map(|row| self.get(*row)).collect()
    }

    /// Copies of all rows.
    ///
    /// # Panics
    /// As [`Self::get`].
    pub fn to_vec(&self) -> Vec<T> {
        self.iter().map(Cow::into_owned).collect()
    }

    /// All rows in their order, as values.
    pub(super) fn into_rows(self) -> Box<dyn Iterator<Item = T>>
    where
        T: 'static,
    {
        match self.0 {
            Held::Memory(rows) => match Arc::try_unwrap(rows) {
                Ok(rows) => Box::new(rows.into_iter()),
                Err(shared) => Box::new((0..shared.len()).map(move |row| shared[row].clone())),
            },
            Held::File(_) | Held::Stream(_) => {
                Box::new((0..self.len()).map(move |row| self.get(row).into_owned()))
            }
        }
    }

    /// All rows in their order.
    ///
    /// # Panics
    /// As [`Self::get`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Cow<'_, T>> {
        (0..self.len()).map(|row| self.get(row))
    }
}

impl<T> From<Vec<T>> for RowList<T> {
    fn from(rows: Vec<T>) -> Self {
        Self(Held::Memory(Arc::new(rows)))
    }
}

impl<T> FromIterator<T> for RowList<T> {
    fn from_iter<I: IntoIterator<Item = T>>(rows: I) -> Self {
        Vec::from_iter(rows).into()
    }
}

impl<T> Default for RowList<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T: Clone + PartialEq> PartialEq for RowList<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other.iter()).all(|(a, b)| a == b)
    }
}

impl<T: Clone + fmt::Debug> fmt::Debug for RowList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
