//! Finished answers, kept in a file beside the final one until all prompts are answered. If a run
//! ends early, the same command continues from this file.
//!
//! The first line holds the fingerprint of everything that the answers depend on. One line for each
//! prompt follows, in the order of the prompts. After each batch of answers, a line holds the hash
//! of everything above it. A batch that does not match its hash is dropped, and so are those after
//! it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blake3::Hasher;
use serde::{Deserialize, Serialize};

/// The model's answer to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The number of the prompt, from 0.
    pub row: usize,
    /// One text for each turn.
    pub turns: Vec<String>,
    /// Why the last of `turns` are empty, if the model was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

/// The file, locked against other processes, and the answers in it.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    /// Of all bytes of the file.
    hasher: Hasher,
    pub answers: Vec<Answer>,
}

/// The line after a batch.
#[derive(Serialize, Deserialize)]
struct Checksum {
    /// BLAKE3 of all bytes above the line, in hexadecimal.
    blake3: String,
}

impl Checksum {
    /// The line for the bytes that `hasher` has seen.
    fn line(hasher: &Hasher) -> String {
        let checksum = Self { blake3: hasher.finalize().to_hex().to_string() };
        serde_json::to_string(&checksum).expect("a text is JSON") + "\n"
    }
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    fingerprint: String,
    /// The version of the format. Version 1 had neither this field nor checksums.
    #[serde(default)]
    format: u32,
}

const FORMAT: u32 = 2;

/// `ANSWERS.jsonl.partial` for `ANSWERS.jsonl`.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

impl Partial {
    /// Opens the file beside `out` and reads its answers. Answers of an incomplete batch are
    /// dropped, so that the batches hold the same prompts as in a run without interruption.
    ///
    /// # Errors
    /// The file holds answers with another fingerprint, or something else.
    pub fn open(out: &Path, fingerprint: &str, rows: usize, batch: usize) -> anyhow::Result<Self> {
        let path = beside(out);
        let failed = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).with_context(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!(
                "{}: another `favonius generate` writes its answers there\n\
                 help: wait until it ends, or choose another --out",
                path.display()
            );
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(failed)?;
        let header = Header { fingerprint: fingerprint.to_owned(), format: FORMAT };
        let header = (serde_json::to_string(&header)? + "\n").into_bytes();
        refuse_other(&path, &bytes, &header)?;
        let Whole { answers, end, is_damaged } = whole_batches(&bytes, &header, rows, batch);
        if is_damaged {
            tracing::warn!(
                "{} is damaged after {} answers; the others are answered again",
                path.display(),
                answers.len()
            );
        }
        begin(&mut file, &header, end).with_context(failed)?;
        let mut hasher = Hasher::new();
        hasher.update(&header).update(bytes.get(header.len()..end).unwrap_or_default());
        Ok(Self { path, file, hasher, answers })
    }

    /// A message about the answers that the file held when it was opened; `None` if it held none.
    pub fn found(&self, rows: usize) -> Option<String> {
        match self.answers.len() {
            0 => None,
            count => {
                let path = self.path.display();
                Some(format!("continuing after {count} of {rows} answers, from {path}"))
            }
        }
    }

    /// Adds the answers of a batch and syncs them to disk.
    pub fn add(&mut self, batch: Vec<Answer>) -> anyhow::Result<()> {
        let line = |answer: &Answer| serde_json::to_string(answer).map(|text| text + "\n");
        let lines: serde_json::Result<String> = batch.iter().map(line).collect();
        let mut lines = lines?;
        self.hasher.update(lines.as_bytes());
        let checksum = Checksum::line(&self.hasher);
        self.hasher.update(checksum.as_bytes());
        lines.push_str(&checksum);
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.answers.extend(batch);
        Ok(())
    }

    /// Removes the file, once the answers are in their final one.
    pub fn remove(self) -> anyhow::Result<()> {
        let Self { path, file, .. } = self;
        drop(file);
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Fails if the file at `path` must not be overwritten: it holds answers with another fingerprint,
/// or it is not a file of answers. `bytes` is its content.
fn refuse_other(path: &Path, bytes: &[u8], header: &[u8]) -> anyhow::Result<()> {
    if bytes.starts_with(header) || header.starts_with(bytes) {
        return Ok(());
    }
    let path = path.display();
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let is_ours = lines.next().is_some_and(|first| serde_json::from_slice::<Header>(first).is_ok());
    if !is_ours {
        bail!(
            "{path} should hold the finished answers, but it is another kind of file\n\
             help: move it away, or choose another --out"
        );
    }
    let count = lines.filter(|line| serde_json::from_slice::<Answer>(line).is_ok()).count();
    if count > 0 {
        let answers = if count == 1 { "answer" } else { "answers" };
        bail!(
            "{path} holds {count} {answers} of another model, other prompts or other settings\n\
             help: use the settings of that run, remove the file, or choose another --out"
        );
    }
    Ok(())
}

/// The content of a file of kept answers.
struct Whole {
    /// The answers of whole batches.
    answers: Vec<Answer>,
    /// The byte offset of their end.
    end: usize,
    /// Whether the rest is more than the beginning of a batch, which a killed process leaves.
    is_damaged: bool,
}

/// The answers after `header` in batches that are complete and match their hash. The file may be of
/// a run with another batch size; answers beyond the last multiple of `batch` are left out.
fn whole_batches(bytes: &[u8], header: &[u8], rows: usize, batch: usize) -> Whole {
    let mut whole = Whole { answers: Vec::new(), end: header.len(), is_damaged: false };
    let Some(lines) = bytes.strip_prefix(header) else { return whole };
    let mut hasher = Hasher::new();
    hasher.update(header);
    let (mut answers, mut end) = (Vec::new(), header.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if let Ok(answer) = serde_json::from_slice::<Answer>(line) {
            let is_next = answer.row == answers.len() && answer.row < rows;
            answers.push(answer);
            whole.is_damaged = !is_next;
        } else {
            whole.is_damaged = line.ends_with(b"\n") && line != Checksum::line(&hasher).as_bytes();
            let ends_batch = answers.len().is_multiple_of(batch) || answers.len() == rows;
            if line.ends_with(b"\n") && !whole.is_damaged && ends_batch {
                whole.answers.clone_from(&answers);
                whole.end = end + line.len();
            }
        }
        if whole.is_damaged {
            break;
        }
        hasher.update(line);
        end += line.len();
    }
    whole
}

/// Cuts the file at `end`, writes `header` at its start and seeks to its end.
fn begin(file: &mut File, header: &[u8], end: usize) -> io::Result<()> {
    file.set_len(end as u64)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(header)?;
    file.seek(SeekFrom::End(0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 5;
    const BATCH: usize = 2;

    fn open(folder: &Path, fingerprint: &str) -> anyhow::Result<Partial> {
        Partial::open(&folder.join("a.jsonl"), fingerprint, ROWS, BATCH)
    }

    fn answers(rows: std::ops::Range<usize>) -> Vec<Answer> {
        let answer = |row| Answer { row, turns: vec![format!("é\n{row}")], unanswered: None };
        rows.map(answer).collect()
    }

    #[test]
    fn complete_batches_are_found_again_wherever_the_file_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.partial");
        let mut partial = open(folder.path(), "f").unwrap();
        assert_eq!((partial.answers.len(), partial.found(ROWS)), (0, None));
        for rows in [0..2, 2..4, 4..5] {
            partial.add(answers(rows)).unwrap();
        }
        drop(partial);
        let whole = std::fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(5).chain([whole.len() - 1, whole.len()]) {
            std::fs::write(&path, &whole[..len]).unwrap();
            // A header, and batches of two, two and one line with a line of their hash each.
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            let known = match lines {
                0..=3 => 0,
                4..=6 => 2,
                7..=8 => 4,
                _ => ROWS,
            };
            let mut partial = open(folder.path(), "f").unwrap();
            assert_eq!(partial.answers, answers(0..known), "{len} bytes");
            assert_eq!(partial.found(ROWS).is_some(), known > 0);
            for first in (known..ROWS).step_by(BATCH) {
                partial.add(answers(first..ROWS.min(first + BATCH))).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{len} bytes");
        }
        open(folder.path(), "f").unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn answers_with_another_fingerprint_are_neither_used_nor_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.partial");
        let mut partial = open(folder.path(), "f").unwrap();
        partial.add(answers(0..4)).unwrap();
        let error = open(folder.path(), "f").unwrap_err().to_string();
        assert!(error.contains("another `favonius generate`"), "{error}");
        drop(partial);
        let held = std::fs::read(&path).unwrap();
        let error = open(folder.path(), "g").unwrap_err().to_string();
        assert!(error.contains("holds 4 answers of another model"), "{error}");
        assert!(error.contains("\nhelp: use the settings of that run"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), held);
        // A file without any answer may be overwritten.
        std::fs::write(&path, "{\"fingerprint\":\"f\"}\n{\"row\":0,\"tu").unwrap();
        assert_eq!(open(folder.path(), "g").unwrap().found(ROWS), None);
        let header = "{\"fingerprint\":\"g\",\"format\":2}\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), header);
    }

    #[test]
    fn no_answer_of_a_damaged_file_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.partial");
        let mut partial = open(folder.path(), "f").unwrap();
        for rows in [0..2, 2..4, 4..5] {
            partial.add(answers(rows)).unwrap();
        }
        drop(partial);
        let whole = std::fs::read(&path).unwrap();
        let header = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for place in (header + 1..whole.len()).step_by(3).chain([whole.len() - 1]) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x01;
            std::fs::write(&path, damaged).unwrap();
            let found = open(folder.path(), "f").unwrap().answers;
            assert_eq!(found, answers(0..found.len()), "byte {place}");
            assert!(matches!(found.len(), 0 | 2 | 4), "byte {place}");
        }
    }

    #[test]
    fn smaller_and_larger_batches_may_follow() {
        let folder = tempfile::tempdir().unwrap();
        let open = |batch| Partial::open(&folder.path().join("a.jsonl"), "f", ROWS, batch).unwrap();
        let mut partial = open(1);
        for row in 0..3 {
            partial.add(answers(row..row + 1)).unwrap();
        }
        drop(partial);
        assert_eq!(open(2).answers.len(), 2);
        assert_eq!(open(1).answers.len(), 2, "the rest was cut off");
    }

    #[test]
    fn another_kind_of_file_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.partial");
        for held in ["notes\n", "{\"prompt\": \"a\"}\n", "{\"fingerprint\":\"f\",\"row\":0}\n"] {
            std::fs::write(&path, held).unwrap();
            let error = open(folder.path(), "f").unwrap_err().to_string();
            assert!(error.contains("another kind of file\nhelp: "), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), held);
        }
    }
}
