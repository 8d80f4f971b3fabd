//! A cache of token ids. The key is the hash of all inputs: the contents of the source files, the
//! tokenizer, the settings. A damaged cache file is rebuilt.
//!
//! Layout: magic, the numbers of all rows (u32, little-endian; training rows first), the count of
//! numbers of each row (u32), header (JSON: reports and counts of rows), length of the header
//! (u64), BLAKE3 hash of all bytes before it. The file is written row by row, and a large one is
//! read row by row, so no more than a part of it is ever in memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake3::Hasher;
use serde::{Deserialize, Serialize};

use super::report::ReportParts;
use super::row_list::{FileRows, Place, RowFile, RowList};
use super::splits::{Made, Splits};
use super::stored::Stored;
use crate::files::hash::{PartsHasher, hash_file};
use crate::files::replace::replace_file_with;

const MAGIC: &[u8; 16] = b"favonius-ids-005";
const HASH: u64 = 32;
/// The length of the header's length.
const LENGTH: u64 = 8;
/// Rows that take no more bytes than this are kept in memory, others stay in the file.
pub(super) const IN_MEMORY: u64 = 64 << 20;
/// Bytes that are read at a time to be hashed.
const PART: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    train: usize,
    test: usize,
    train_report: ReportParts,
    test_report: ReportParts,
}

/// The hash of all inputs of the token ids.
pub(super) struct Key(PartsHasher);

impl Key {
    /// Starts a key; `what` names the kind of rows.
    pub fn new(what: &str) -> Self {
        let mut key = Self(PartsHasher::after(MAGIC));
        key.part(what.as_bytes());
        key
    }

    /// Adds a part.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0.part(bytes);
    }

    /// Adds a file's content, and its path, which the reports contain.
    pub fn file(&mut self, path: &Path) -> io::Result<()> {
        self.part(path.as_os_str().as_encoded_bytes());
        self.part(hash_file(path)?.as_bytes());
        Ok(())
    }

    /// The key itself.
    pub fn bytes(&self) -> [u8; 32] {
        *self.0.finish().as_bytes()
    }

    /// The path of the cache file in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("tokens-{}.bin", &self.0.finish().to_hex()[..32]))
    }
}

/// Reads a cache file; `None` if it is missing or damaged. Rows that take more than `in_memory`
/// bytes stay in the file.
pub(super) fn load<T: Stored + Clone>(path: &Path, in_memory: u64) -> Option<Splits<T>> {
    let file = File::open(path).ok()?;
    let kept = read(path, file, in_memory);
    if kept.is_none() {
        tracing::warn!("{}: the token cache is damaged; making it again", path.display());
    }
    kept
}

fn read<T: Stored + Clone>(path: &Path, file: File, in_memory: u64) -> Option<Splits<T>> {
    let layout = Layout::of(&file).ok()??;
    let hashes = layout.verify(&file).ok()??;
    let Layout { header, counts, .. } = layout;
    let mut start = MAGIC.len() as u64;
    let places = counts.into_iter().map(|count| {
        let place = Place { start, count };
        start += 4 * u64::from(count);
        place
    });
    let mut places: Vec<Place> = places.collect();
    let test_places = places.split_off(header.train);
    let file = RowFile { path: path.to_owned(), file: Arc::new(file) };
    let rows = |places: Vec<Place>| -> Option<RowList<T>> {
        let bytes: u64 = places.iter().map(|place| 4 * u64::from(place.count)).sum();
        if bytes > in_memory {
            let file = file.clone();
            return Some(RowList::in_file(FileRows { file, places, decode: T::decode }));
        }
        let start = places.first().map_or(0, |place| place.start);
        let count = u32::try_from(bytes / 4).ok()?;
        let numbers = file.numbers(Place { start, count }).ok()?;
        let mut rest = numbers.as_slice();
        let row = |place: Place| {
            let (own, later) = rest.split_at_checked(place.count as usize)?;
            rest = later;
            T::decode(own)
        };
        places.into_iter().map(row).collect::<Option<Vec<T>>>().map(RowList::from)
    };
    Some(Splits {
        train: rows(places)?,
        test: rows(test_places)?,
        train_report: header.train_report.into(),
        test_report: header.test_report.into(),
        fingerprint: hashes[0],
        train_fingerprint: hashes[1],
    })
}

/// The parts of a cache file.
struct Layout {
    header: Header,
    /// The count of numbers of each row.
    counts: Vec<u32>,
    /// The bytes of the training rows and of the test rows.
    rows: [Range<u64>; 2],
    /// All bytes but the hash.
    content: Range<u64>,
}

impl Layout {
    /// Reads header and counts; `None` if they do not fit the file's length.
    fn of(file: &File) -> io::Result<Option<Self>> {
        let length = file.metadata()?.len();
        let Some(end) = length.checked_sub(HASH + LENGTH) else { return Ok(None) };
        let mut bytes = [0; LENGTH as usize];
        file.read_exact_at(&mut bytes, end)?;
        let Some(header_at) = end.checked_sub(u64::from_le_bytes(bytes)) else { return Ok(None) };
        let mut header = vec![0; (end - header_at) as usize];
        file.read_exact_at(&mut header, header_at)?;
        let Ok(header) = serde_json::from_slice::<Header>(&header) else { return Ok(None) };
        let count = header.train.checked_add(header.test);
        let counts_at =
            count.and_then(|count| header_at.checked_sub((count as u64).checked_mul(4)?));
        let (Some(count), Some(counts_at)) = (count, counts_at) else { return Ok(None) };
        let mut counts = vec![0_u32; count];
        file.read_exact_at(bytemuck::cast_slice_mut(&mut counts), counts_at)?;
        counts.iter_mut().for_each(|count| *count = u32::from_le(*count));
        let bytes = |counts: &[u32]| counts.iter().map(|count| 4 * u64::from(*count)).sum::<u64>();
        let begin = MAGIC.len() as u64;
        let middle = begin + bytes(&counts[..header.train]);
        let is_whole = middle + bytes(&counts[header.train..]) == counts_at;
        let rows = [begin..middle, middle..counts_at];
        Ok(is_whole.then(|| Self { header, counts, rows, content: 0..length - HASH }))
    }

    /// Checks magic and hash, and returns the fingerprints of both splits and of the training rows;
    /// `None` if the file is damaged.
    fn verify(&self, file: &File) -> io::Result<Option<[[u8; 32]; 2]>> {
        let (mut all, mut both, mut train) = (Hasher::new(), Hasher::new(), Hasher::new());
        let [train_rows, test_rows] = self.rows.clone();
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        hash_range(file, 0..train_rows.start, &mut [&mut all])?;
        both.update(&(self.header.train as u64).to_le_bytes());
        train.update(&(self.header.train as u64).to_le_bytes());
        hash_range(file, train_rows, &mut [&mut all, &mut both, &mut train])?;
        both.update(&(self.header.test as u64).to_le_bytes());
        train.update(&0_u64.to_le_bytes());
        let rest = test_rows.end..self.content.end;
        hash_range(file, test_rows, &mut [&mut all, &mut both])?;
        hash_range(file, rest, &mut [&mut all])?;
        let mut hash = [0; HASH as usize];
        file.read_exact_at(&mut hash, self.content.end)?;
        let is_whole = magic == *MAGIC && *all.finalize().as_bytes() == hash;
        Ok(is_whole.then(|| [both, train].map(|hasher| *hasher.finalize().as_bytes())))
    }
}

/// Adds the bytes of a part of a file to all `hashers`.
fn hash_range(file: &File, range: Range<u64>, hashers: &mut [&mut Hasher]) -> io::Result<()> {
    let mut part = vec![0; PART.min(range.end - range.start) as usize];
    let mut at = range.start;
    while at < range.end {
        let part = &mut part[..PART.min(range.end - at) as usize];
        file.read_exact_at(part, at)?;
        hashers.iter_mut().for_each(|hasher| {
            hasher.update_rayon(part);
        });
        at += part.len() as u64;
    }
    Ok(())
}

/// Writes both splits to `path`, row by row. The file is replaced when it is complete.
pub(super) fn store<T: Stored>(path: &Path, train: Made<T>, test: Made<T>) -> io::Result<()> {
    replace_file_with(path, |file| {
        let mut out = Hashing { out: BufWriter::new(file), hasher: Hasher::new() };
        out.put(MAGIC)?;
        let mut counts = Vec::new();
        let mut numbers = Vec::new();
        let mut rows = [0; 2];
        for (made, rows) in [train.rows, test.rows].into_iter().zip(&mut rows) {
            for row in made {
                numbers.clear();
                row.write(&mut numbers);
                counts.push((numbers.len() as u32).to_le());
                numbers.iter_mut().for_each(|number| *number = number.to_le());
                out.put(bytemuck::cast_slice(&numbers))?;
                *rows += 1;
            }
        }
        out.put(bytemuck::cast_slice(&counts))?;
        let header = serde_json::to_vec(&Header {
            train: rows[0],
            test: rows[1],
            train_report: (&train.report).into(),
            test_report: (&test.report).into(),
        })?;
        out.put(&header)?;
        out.put(&(header.len() as u64).to_le_bytes())?;
        let hash = out.hasher.finalize();
        out.out.write_all(hash.as_bytes())?;
        out.out.flush()
    })
}

/// A writer that hashes what it writes.
struct Hashing<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Hashing<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::report::{BadRow, RowReport};
    use crate::data::splits::{Rows, in_memory};
    use crate::data::{PreferencePair, SftDocument, SftRow};

    fn splits() -> [Made<SftRow>; 2] {
        let row = |ids: &[u32], labels: &[bool]| SftRow {
            documents: vec![
                SftDocument { ids: ids.to_vec(), labels: labels.to_vec() },
                SftDocument { ids: vec![], labels: vec![] },
            ],
        };
        let mut report =
            RowReport { read: 9, kept: 2, no_room: 1, no_label: 2, ..RowReport::default() };
        report.add_bad(Path::new("a"), 3, BadRow::Null("x".to_owned()));
        let train =
            vec![row(&[1, 2, 3, 4], &[false, true, true, false]), row(&[7, 8], &[true, true])];
        let test = vec![row(&[5], &[false])];
        [
            Made { rows: Box::new(train.into_iter()), report },
            Made { rows: Box::new(test.into_iter()), report: RowReport::default() },
        ]
    }

    fn both() -> Splits<SftRow> {
        let [train, test] = splits();
        in_memory(train, test)
    }

    #[test]
    fn what_is_kept_comes_back_from_memory_and_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.bin");
        assert!(load::<SftRow>(&path, IN_MEMORY).is_none());
        let [train, test] = splits();
        store(&path, train, test).unwrap();
        for limit in [IN_MEMORY, 0] {
            // Equality includes the fingerprints, which are those of the rows.
            assert_eq!(load::<SftRow>(&path, limit).unwrap(), both());
        }
        let (prompt, chosen) = (vec![1], vec![2, 3]);
        let pair = PreferencePair { prompt, chosen, ..PreferencePair::default() };
        let with_gold = PreferencePair { gold: vec![4], ..pair.clone() };
        let made = || Made {
            rows: Box::new([pair.clone(), with_gold.clone()].into_iter()) as Rows<_>,
            report: RowReport::default(),
        };
        store(&path, made(), made()).unwrap();
        let in_file = load::<PreferencePair>(&path, 0).unwrap();
        // The file was replaced while it is open; its rows stay those that were opened.
        let [train, test] = splits();
        store(&path, train, test).unwrap();
        assert_eq!(in_file, in_memory(made(), made()));
        assert_eq!(in_file.train.select(&[0, 0]).len(), 2);
    }

    #[test]
    fn any_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.bin");
        let [train, test] = splits();
        store(&path, train, test).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let is_read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            [IN_MEMORY, 0].iter().any(|limit| load::<SftRow>(&path, *limit).is_some())
        };
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            assert!(!is_read(&damaged), "byte {place}");
            assert!(!is_read(&whole[..place]), "cut at {place}");
        }
        assert!(is_read(&whole));
    }

    #[test]
    fn the_key_depends_on_the_contents_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows");
        let key = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let mut key = Key::new("pairs");
            key.file(&file).unwrap();
            key.path(Path::new("cache"))
        };
        assert_eq!(key("a"), key("a"));
        assert_ne!(key("a"), key("b"));
    }
}
