//! Rows that are being made, in the order of reading: in memory, in a file that a process which was
//! killed can continue, or on their way to a run that trains on them.
//!
//! The file `KEY-SPLIT.rows` has a record for each kept row: its index in the split (two numbers),
//! the count of its numbers, the numbers (u32, little-endian). `KEY-SPLIT.journal` has a line of
//! JSON for each batch: the rows that were read so far, the length of the first file, the BLAKE3
//! hash of the batch's bytes, and the report so far. A start after a kill continues behind the last
//! batch whose bytes have their hash.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::report::{ReportParts, RowReport};
use super::row_list::{FileRows, Place, RowFile, RowList};
use super::stored::Stored;

/// Takes the kept rows of each batch, and the report up to it.
pub(super) type Sink<'a, T> = &'a mut dyn FnMut(Vec<T>, &RowReport) -> io::Result<()>;

/// The place of the rows until all are made.
pub(super) enum Hold<'a, T> {
    Memory,
    /// Files whose names begin with this path.
    Files(&'a Path),
    /// They are sent away, and not held.
    Sent(Sink<'a, T>),
}

impl<'a, T> Hold<'a, T> {
    /// Files whose names begin with `base`, or memory without it.
    pub fn of(base: Option<&'a Path>) -> Self {
        base.map_or(Self::Memory, Self::Files)
    }
}

/// Numbers before those of a row.
const RECORD_HEADER: usize = 3;

/// A batch in the journal.
#[derive(Serialize, Deserialize)]
struct Batch {
    /// Rows that were read, those of earlier batches included.
    read: usize,
    /// The length of the file of rows after the batch.
    bytes: u64,
    hash: String,
    report: ReportParts,
}

/// The rows of a split that are being made.
pub(super) struct Unfinished<'a, T> {
    kept: Kept<'a, T>,
    /// Rows that were read.
    pub read: usize,
    pub report: RowReport,
}

enum Kept<'a, T> {
    Memory(Vec<Option<T>>),
    File(Files<T>),
    Sent(Sink<'a, T>),
}

struct Files<T> {
    rows: RowFile,
    journal: File,
    bytes: u64,
    /// The place of each row of the split that was kept.
    places: Vec<Option<Place>>,
    row: PhantomData<T>,
}

impl<'a, T: Stored + Clone> Unfinished<'a, T> {
    /// A split of `rows` rows.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn held(hold: Hold<'a, T>, rows: usize) -> io::Result<Self> {
        match hold {
            Hold::Memory => Ok(Self::in_memory(rows)),
            Hold::Files(base) => Self::in_files(base, rows),
            Hold::Sent(sink) => {
                let report = RowReport { read: rows, ..RowReport::default() };
                Ok(Self { kept: Kept::Sent(sink), read: 0, report })
            }
        }
    }

    /// Rows in memory, of a split of `rows` rows.
    pub fn in_memory(rows: usize) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(rows, || None);
        let report = RowReport { read: rows, ..RowReport::default() };
        Self { kept: Kept::Memory(slots), read: 0, report }
    }

    /// Rows in files whose names begin with `base`, with the batches that an earlier start left
    /// there.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn in_files(base: &Path, rows: usize) -> io::Result<Self> {
        let paths = ["rows", "journal"].map(|end| base.with_extension(end));
        let open = |path: &PathBuf| {
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
        };
        let file = Arc::new(open(&paths[0])?);
        let journal = open(&paths[1])?;
        let mut all = Self {
            kept: Kept::Memory(Vec::new()),
            read: 0,
            report: RowReport { read: rows, ..RowReport::default() },
        };
        let mut places = vec![None; rows];
        let (mut bytes, mut lines) = (0, 0);
        let mut reader = BufReader::new(&journal);
        let mut line = String::new();
        // The last line may be cut by a kill.
        while reader.read_line(&mut line).is_ok() && line.ends_with('\n') {
            let Ok(batch) = serde_json::from_str::<Batch>(&line) else { break };
            let Some(found) = places_of_batch(&file, bytes, &batch, rows) else { break };
            for (slot, place) in found {
                places[slot] = Some(place);
            }
            bytes = batch.bytes;
            lines += line.len() as u64;
            all.read = batch.read;
            all.report = batch.report.into();
            line.clear();
        }
        file.set_len(bytes)?;
        journal.set_len(lines)?;
        let rows = RowFile { path: paths[0].clone(), file };
        all.kept = Kept::File(Files { rows, journal, bytes, places, row: PhantomData });
        Ok(all)
    }

    /// Adds the kept rows of a batch, each with its index in the split. `self.read` and
    /// `self.report` must include the batch.
    ///
    /// # Errors
    /// The files cannot be written, or the rows are not taken.
    pub fn add(&mut self, batch: Vec<(usize, T)>) -> io::Result<()> {
        let Self { kept, read, report } = self;
        match kept {
            Kept::Memory(slots) => {
                batch.into_iter().for_each(|(slot, row)| slots[slot] = Some(row));
                Ok(())
            }
            Kept::File(files) => files.add(&batch, *read, report),
            Kept::Sent(sink) => sink(batch.into_iter().map(|(_, row)| row).collect(), report),
        }
    }

    /// The kept rows in the order of the split, and the report. Rows that were sent are not held.
    pub fn finish(self) -> (RowList<T>, RowReport) {
        let mut report = self.report;
        let rows: RowList<T> = match self.kept {
            Kept::Memory(slots) => slots.into_iter().flatten().collect(),
            Kept::Sent(_) => RowList::default(),
            Kept::File(Files { rows, places, .. }) => RowList::in_file(FileRows {
                file: rows,
                places: places.into_iter().flatten().collect(),
                decode: T::decode,
            }),
        };
        report.kept = rows.len();
        (rows, report)
    }
}

impl<T: Stored> Files<T> {
    fn add(&mut self, batch: &[(usize, T)], read: usize, report: &RowReport) -> io::Result<()> {
        let mut numbers = Vec::new();
        for (slot, row) in batch {
            let begin = numbers.len();
            let slot_number = *slot as u64;
            numbers.extend([slot_number as u32, (slot_number >> 32) as u32, 0]);
            row.write(&mut numbers);
            let count = (numbers.len() - begin - RECORD_HEADER) as u32;
            numbers[begin + 2] = count;
            let start = self.bytes + 4 * (begin + RECORD_HEADER) as u64;
            self.places[*slot] = Some(Place { start, count });
        }
        numbers.iter_mut().for_each(|number| *number = number.to_le());
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        self.rows.file.write_all_at(bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        let hash = blake3::hash(bytes).to_hex().to_string();
        let batch = Batch { read, bytes: self.bytes, hash, report: report.into() };
        let line = serde_json::to_string(&batch)? + "\n";
        io::Seek::seek(&mut self.journal, io::SeekFrom::End(0))?;
        self.journal.write_all(line.as_bytes())
    }
}

/// Index and place of each row of a batch that begins at byte `start`. `None` if the batch is
/// damaged.
fn places_of_batch(
    file: &File,
    start: u64,
    batch: &Batch,
    rows: usize,
) -> Option<Vec<(usize, Place)>> {
    let length = usize::try_from(batch.bytes.checked_sub(start)?).ok()?;
    if file.metadata().ok()?.len() < batch.bytes || !length.is_multiple_of(4) {
        return None;
    }
    let mut numbers = vec![0_u32; length / 4];
    file.read_exact_at(bytemuck::cast_slice_mut(&mut numbers), start).ok()?;
    let bytes: &[u8] = bytemuck::cast_slice(&numbers);
    if blake3::hash(bytes).to_hex().as_str() != batch.hash {
        return None;
    }
    let mut places = Vec::new();
    let mut at = 0;
    while at < numbers.len() {
        let [low, high, count] = *numbers.get(at..)?.first_chunk::<RECORD_HEADER>()?;
        let [low, high, count] = [low, high, count].map(u32::from_le);
        let slot = usize::try_from(u64::from(high) << 32 | u64::from(low)).ok()?;
        at += RECORD_HEADER;
        let place = Place { start: start + 4 * at as u64, count };
        places.push((Some(slot).filter(|slot| *slot < rows)?, place));
        at += count as usize;
    }
    Some(places)
}

/// Removes the files whose names begin with `base`. Files that cannot be removed do no harm.
pub(super) fn remove(base: &Path) {
    for end in ["rows", "journal"] {
        let _ = std::fs::remove_file(base.with_extension(end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferencePair;
    use crate::data::report::BadRow;

    fn pair(id: u32) -> PreferencePair {
        let (prompt, chosen) = (vec![id; 3], vec![id]);
        PreferencePair { prompt, chosen, ..PreferencePair::default() }
    }

    fn rows(all: Unfinished<PreferencePair>) -> Vec<PreferencePair> {
        all.finish().0.iter().map(|row| row.into_owned()).collect()
    }

    #[test]
    fn rows_come_back_in_the_order_of_the_split() {
        let dir = tempfile::tempdir().unwrap();
        let files = Unfinished::in_files(&dir.path().join("key-train"), 4).unwrap();
        for mut all in [Unfinished::in_memory(4), files] {
            all.read = 2;
            all.add(vec![(3, pair(3)), (0, pair(0))]).unwrap();
            all.read = 4;
            all.report.add_bad(Path::new("f"), 2, BadRow::NotALabel);
            all.add(vec![(1, pair(1))]).unwrap();
            let report = all.report.clone();
            let (rows, finished) = all.finish();
            let rows: Vec<_> = rows.iter().map(|row| row.into_owned()).collect();
            assert_eq!(rows, [pair(0), pair(1), pair(3)]);
            assert_eq!(finished, RowReport { kept: 3, ..report });
        }
    }

    #[test]
    fn a_killed_start_is_continued_behind_its_last_whole_batch() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("key-train");
        let open = || Unfinished::<PreferencePair>::in_files(&base, 6).unwrap();
        let mut all = open();
        for batch in 0..3 {
            all.read = 2 * (batch + 1);
            all.report.no_room = batch;
            all.add(vec![(2 * batch, pair(batch as u32)), (2 * batch + 1, pair(9))]).unwrap();
        }
        drop(all);
        let [data, journal] = ["rows", "journal"].map(|end| base.with_extension(end));
        let (whole, lines) = (std::fs::read(&data).unwrap(), std::fs::read(&journal).unwrap());
        // Everything is there.
        let all = open();
        assert_eq!((all.read, all.report.no_room), (6, 2));
        assert_eq!(rows(all).len(), 6);
        // The last line of the journal is cut.
        std::fs::write(&journal, &lines[..lines.len() - 9]).unwrap();
        let all = open();
        assert_eq!((all.read, all.report.no_room), (4, 1));
        assert_eq!(rows(all), [pair(0), pair(9), pair(1), pair(9)]);
        // A byte of the second batch is damaged.
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&data, damaged).unwrap();
        std::fs::write(&journal, &lines).unwrap();
        let mut all = open();
        assert_eq!(all.read, 2);
        all.read = 6;
        all.add(vec![(2, pair(1)), (3, pair(9)), (4, pair(2)), (5, pair(9))]).unwrap();
        let expected = [0, 9, 1, 9, 2, 9].map(pair);
        assert_eq!(rows(all), expected);
        assert_eq!(rows(open()), expected);
        remove(&base);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(open().read, 0);
    }
}
