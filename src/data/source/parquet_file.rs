//! The bytes of a parquet file, as the parquet library reads them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use ::parquet::errors::Result;
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;

use super::thrift::check_lists;

/// An open file. Reading on at its end is an error after some attempts: the library skips the items
/// of a list one by one, and a damaged header can announce two billion of them.
#[derive(Debug)]
pub(super) struct ParquetFile(pub File);

/// Attempts to read at the end of the file.
const MOST_AT_END: usize = 1000;
/// The bytes at the end of a file: the length of the footer before them, and `PAR1`.
const END: u64 = 8;

/// Reads a file from a position on.
pub(super) struct FiniteReader {
    inner: BufReader<File>,
    at_end: usize,
}

impl ParquetFile {
    /// Checks the footer, which describes the content of the file.
    ///
    /// # Errors
    /// The file cannot be read, or the footer has a list without an end.
    pub fn check_footer(&self) -> io::Result<()> {
        let Some(end) = Length::len(&self.0).checked_sub(END) else { return Ok(()) };
        let mut length = [0; 4];
        self.reader_at(end)?.read_exact(&mut length)?;
        match end.checked_sub(u32::from_le_bytes(length).into()) {
            Some(start) => check_lists(&mut self.reader_at(start)?.take(end - start)),
            None => Ok(()),
        }
    }

    fn reader_at(&self, start: u64) -> io::Result<BufReader<File>> {
        let mut file = self.0.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        Length::len(&self.0)
    }
}

impl ChunkReader for ParquetFile {
    type T = FiniteReader;

    /// The library reads the header of a page from there, or the end of the file.
    fn get_read(&self, start: u64) -> Result<FiniteReader> {
        let mut inner = self.reader_at(start)?;
        if start.saturating_add(END) < Length::len(&self.0) {
            check_lists(&mut inner)?;
            inner.seek(SeekFrom::Start(start))?;
        }
        Ok(FiniteReader { inner, at_end: 0 })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

impl Read for FiniteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            self.at_end += 1;
            if self.at_end > MOST_AT_END {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reading_on_at_the_end_becomes_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdef").unwrap();
        let file = ParquetFile(file);
        assert_eq!((file.len(), &file.get_bytes(1, 3).unwrap()[..]), (6, &b"bcd"[..]));
        let mut reader = file.get_read(4).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(reader.read(&mut buffer).unwrap(), 2);
        assert_eq!(&buffer[..2], b"ef");
        let ends = (0..2 * MOST_AT_END).map(|_| reader.read(&mut buffer));
        assert_eq!(ends.filter(|end| end.is_ok()).count(), MOST_AT_END);
    }
}
