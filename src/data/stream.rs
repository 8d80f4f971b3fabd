//! Training rows that a thread reads and tokenizes while the run trains on the rows before them.
//!
//! The rows come in the order of the files. The thread is ahead of the training by a few batches,
//! and rows that were trained on are dropped, so memory does not grow with the data set.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::DataError;

/// Batches of rows that the thread makes before the first of them is needed.
const AHEAD: usize = 4;

/// The rows of a stream, by their index from its start.
pub(super) struct RowStream<T> {
    /// The number of rows that the run visits.
    len: usize,
    held: Mutex<Held<T>>,
}

struct Held<T> {
    /// The index of the first row of `rows`.
    first: usize,
    rows: VecDeque<T>,
    source: Receiver<Result<Vec<T>, DataError>>,
}

/// The end of a stream at which its thread puts rows in.
pub(super) struct Sender<T> {
    batches: SyncSender<Result<Vec<T>, DataError>>,
    sent: usize,
    len: usize,
}

impl<T> Sender<T> {
    /// Puts rows in; waits if enough rows are ahead.
    ///
    /// # Errors
    /// No more rows are needed: all were sent, or the run has ended.
    pub fn send(&mut self, mut rows: Vec<T>) -> io::Result<()> {
        rows.truncate(self.len - self.sent);
        self.sent += rows.len();
        let is_taken = rows.is_empty() || self.batches.send(Ok(rows)).is_ok();
        match is_taken && self.sent < self.len {
            true => Ok(()),
            false => Err(io::Error::other("no more rows are needed")),
        }
    }
}

impl<T: Send + 'static> RowStream<T> {
    /// A stream of `len` rows that `make` sends from a thread of its own. It should return without
    /// an error if a row is not taken.
    pub fn start(
        len: usize,
        make: impl FnOnce(&mut Sender<T>) -> Result<(), DataError> + Send + 'static,
    ) -> Self {
        let (batches, source) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            let mut sender = Sender { batches, sent: 0, len };
            if let Err(error) = make(&mut sender) {
                // If the run has ended, nobody reads the error.
                let _ = sender.batches.send(Err(error));
            }
        });
        Self { len, held: Mutex::new(Held { first: 0, rows: VecDeque::new(), source }) }
    }
}

impl<T: Clone> RowStream<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Waits until the rows up to the last of `wanted` are made, and drops those before the first.
    ///
    /// # Errors
    /// The rows cannot be read, or end before the last wanted one.
    pub fn wait(&self, wanted: &[usize]) -> Result<(), DataError> {
        let (Some(first), Some(last)) = (wanted.iter().min(), wanted.iter().max()) else {
            return Ok(());
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.drop_before(*first);
        while held.first + held.rows.len() <= *last {
            match held.source.recv() {
                Ok(rows) => held.rows.extend(rows?),
                Err(_) => {
                    let rows = held.first + held.rows.len();
                    return Err(DataError::StreamEnds { rows, needed: self.len });
                }
            }
            held.drop_before(*first);
        }
        Ok(())
    }

    /// A copy of the row at an index.
    ///
    /// # Panics
    /// If [`Self::wait`] was not called for this row.
    pub fn get(&self, row: usize) -> T {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let place = row.checked_sub(held.first).and_then(|place| held.rows.get(place));
        place.unwrap_or_else(|| panic!("row {row} of a stream is used before it is made")).clone()
    }
}

impl<T> Held<T> {
    fn drop_before(&mut self, row: usize) {
        let old = row.saturating_sub(self.first).min(self.rows.len());
        self.rows.drain(..old);
        self.first += old;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, end: usize) -> RowStream<usize> {
        RowStream::start(len, move |sender| {
            let mut batches = (0..end).map(|batch| [0, 1, 2].map(|row| 3 * batch + row).to_vec());
            let _ = batches.try_for_each(|batch| sender.send(batch));
            Ok(())
        })
    }

    #[test]
    fn rows_are_made_before_they_are_used_and_dropped_afterwards() {
        let stream = numbers(3000, usize::MAX / 8);
        for first in (0..3000).step_by(10) {
            let window: Vec<usize> = (first..first + 10).collect();
            stream.wait(&window).unwrap();
            assert!(window.iter().all(|row| stream.get(*row) == *row));
            assert!(stream.held.lock().unwrap().rows.len() < 10 + 3);
        }
    }

    #[test]
    fn a_later_start_skips_rows() {
        let stream = numbers(100, usize::MAX / 8);
        stream.wait(&[71, 72]).unwrap();
        assert_eq!((stream.get(72), stream.len()), (72, 100));
        assert!(stream.wait(&[]).is_ok());
    }

    #[test]
    fn a_stream_that_ends_too_early_says_so() {
        let stream = numbers(100, 5);
        stream.wait(&[14]).unwrap();
        let error = stream.wait(&[14, 15]).unwrap_err().to_string();
        assert!(error.contains("15 rows") && error.contains("100"), "{error}");
        let failing =
            RowStream::<usize>::start(10, |_| Err(DataError::StreamEnds { rows: 3, needed: 4 }));
        assert!(failing.wait(&[0]).unwrap_err().to_string().contains("3 rows"));
    }
}
