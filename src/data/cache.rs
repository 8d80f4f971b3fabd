//! A cache of token ids. The key is the hash of all inputs: the contents of the source files, the
//! tokenizer, the settings. A damaged cache file is rebuilt.
//!
//! Layout: magic, length of the header (u64), header (JSON: reports and counts), numbers (u32,
//! little-endian), BLAKE3 hash of all bytes before it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LabelledCompletion;
use super::PreferencePair;
use super::SftDocument;
use super::SftRow;
use super::report::{BadRow, BadRowAt, RowReport};
use crate::files::hash::{PartsHasher, hash_file};
use crate::files::replace::replace_cache_file;

const MAGIC: &[u8; 16] = b"favonius-ids-004";
const HASH: usize = 32;

/// A row whose token ids can be written as numbers and read back.
pub(super) trait Stored: Sized {
    fn write(&self, out: &mut Vec<u32>);
    /// Reads a row; `None` if the numbers end too early or are invalid.
    fn read(numbers: &mut Numbers) -> Option<Self>;
}

/// The numbers that have not been read yet.
pub(super) struct Numbers<'a>(&'a [u32]);

impl Numbers<'_> {
    fn one(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    /// Reads a count, then that many numbers.
    fn list(&mut self) -> Option<Vec<u32>> {
        let count = self.one()?;
        self.take(count as usize)
    }
}

fn write_list(list: &[u32], out: &mut Vec<u32>) {
    out.push(list.len() as u32);
    out.extend_from_slice(list);
}

impl Stored for PreferencePair {
    fn write(&self, out: &mut Vec<u32>) {
        for ids in [&self.prompt, &self.chosen, &self.rejected] {
            write_list(ids, out);
        }
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        Some(Self { prompt: numbers.list()?, chosen: numbers.list()?, rejected: numbers.list()? })
    }
}

impl Stored for LabelledCompletion {
    fn write(&self, out: &mut Vec<u32>) {
        out.push(u32::from(self.label));
        write_list(&self.prompt, out);
        write_list(&self.completion, out);
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let label = numbers.one()? == 1;
        Some(Self { prompt: numbers.list()?, completion: numbers.list()?, label })
    }
}

impl Stored for SftRow {
    fn write(&self, out: &mut Vec<u32>) {
        out.push(self.documents.len() as u32);
        for document in &self.documents {
            write_list(&document.ids, out);
            // Labels come in runs, so store only the places at which they change.
            let mut last = false;
            let changes: Vec<u32> = (0u32..)
                .zip(&document.labels)
                .filter(|(_, label)| std::mem::replace(&mut last, **label) != **label)
                .map(|(place, _)| place)
                .collect();
            write_list(&changes, out);
        }
    }

    fn read(numbers: &mut Numbers) -> Option<Self> {
        let documents = numbers.one()?;
        let document = |_| {
            let ids = numbers.list()?;
            let changes = numbers.list()?;
            let mut labels = vec![false; ids.len()];
            for run in changes.chunks(2) {
                let end = run.get(1).map_or(ids.len(), |end| *end as usize);
                labels.get_mut(run[0] as usize..end)?.fill(true);
            }
            Some(SftDocument { ids, labels })
        };
        Some(Self { documents: (0..documents).map(document).collect::<Option<_>>()? })
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    train: usize,
    test: usize,
    train_report: ReportParts,
    test_report: ReportParts,
}

/// A report in a form that JSON can hold: its map has keys that are not strings.
#[derive(Serialize, Deserialize)]
struct ReportParts {
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

/// Both splits as stored in the cache.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept<T> {
    pub train: Vec<T>,
    pub test: Vec<T>,
    pub train_report: RowReport,
    pub test_report: RowReport,
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

    /// The path of the cache file in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("tokens-{}.bin", &self.0.finish().to_hex()[..32]))
    }
}

/// Reads a cache file; `None` if it is missing or damaged.
pub(super) fn load<T: Stored>(path: &Path) -> Option<Kept<T>> {
    let bytes = std::fs::read(path).ok()?;
    let kept = parse(&bytes);
    if kept.is_none() {
        tracing::warn!("{}: the token cache is damaged; making it again", path.display());
    }
    kept
}

fn parse<T: Stored>(bytes: &[u8]) -> Option<Kept<T>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let body = body.strip_prefix(MAGIC)?;
    let (length, body) = body.split_first_chunk::<8>()?;
    let (header, numbers) =
        body.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: Header = serde_json::from_slice(header).ok()?;
    let numbers: Vec<u32> =
        numbers.as_chunks::<4>().0.iter().map(|number| u32::from_le_bytes(*number)).collect();
    let mut numbers = Numbers(&numbers);
    let mut rows = |count| (0..count).map(|_| T::read(&mut numbers)).collect::<Option<Vec<T>>>();
    Some(Kept {
        train: rows(header.train)?,
        test: rows(header.test)?,
        train_report: header.train_report.into(),
        test_report: header.test_report.into(),
    })
}

/// Writes `kept` to `path` atomically.
pub(super) fn store<T: Stored>(path: &Path, kept: &Kept<T>) -> io::Result<()> {
    let header = serde_json::to_vec(&Header {
        train: kept.train.len(),
        test: kept.test.len(),
        train_report: (&kept.train_report).into(),
        test_report: (&kept.test_report).into(),
    })?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    let mut numbers = Vec::new();
    kept.train.iter().chain(&kept.test).for_each(|row| row.write(&mut numbers));
    bytes.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    replace_cache_file(path, &bytes)
}

/// A hash of the content and the order of the token ids of both splits.
pub(super) fn fingerprint<T: Stored>(train: &[T], test: &[T]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut numbers = Vec::new();
    for rows in [train, test] {
        hasher.update(&(rows.len() as u64).to_le_bytes());
        for row in rows {
            numbers.clear();
            row.write(&mut numbers);
            numbers.iter().for_each(|number| {
                hasher.update(&number.to_le_bytes());
            });
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept<SftRow> {
        let row = |ids: &[u32], labels: &[bool]| SftRow {
            documents: vec![
                SftDocument { ids: ids.to_vec(), labels: labels.to_vec() },
                SftDocument { ids: vec![], labels: vec![] },
            ],
        };
        let mut report =
            RowReport { read: 9, kept: 2, no_room: 1, no_label: 2, ..RowReport::default() };
        report.add_bad(Path::new("a"), 3, BadRow::Null("x".to_owned()));
        Kept {
            train: vec![
                row(&[1, 2, 3, 4], &[false, true, true, false]),
                row(&[7, 8], &[true, true]),
            ],
            test: vec![row(&[5], &[false])],
            train_report: report,
            test_report: RowReport::default(),
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/tokens.bin");
        assert!(load::<SftRow>(&path).is_none());
        store(&path, &kept()).unwrap();
        assert_eq!(load::<SftRow>(&path).unwrap(), kept());
        let pair = PreferencePair { prompt: vec![1], chosen: vec![2, 3], rejected: vec![] };
        let pairs = Kept {
            train: vec![pair.clone()],
            test: vec![pair],
            train_report: RowReport::default(),
            test_report: RowReport::default(),
        };
        store(&path, &pairs).unwrap();
        assert_eq!(load::<PreferencePair>(&path).unwrap(), pairs);
    }

    #[test]
    fn any_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.bin");
        store(&path, &kept()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            assert!(parse::<SftRow>(&damaged).is_none(), "byte {place}");
            assert!(parse::<SftRow>(&whole[..place]).is_none(), "cut at {place}");
        }
    }

    #[test]
    fn the_fingerprint_knows_content_and_order() {
        let Kept { train, test, .. } = kept();
        let base = fingerprint(&train, &test);
        assert_eq!(base, fingerprint(&train.clone(), &test.clone()));
        let swapped: Vec<_> = train.iter().rev().cloned().collect();
        assert_ne!(base, fingerprint(&swapped, &test));
        assert_ne!(base, fingerprint(&train[..1], &test));
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
