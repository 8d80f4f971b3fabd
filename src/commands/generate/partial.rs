//! Finished answers, kept beside the file that they are for until all are there: what a run that ends early leaves, and the
//! same command goes on from.
//!
//! The first line holds the fingerprint of all that decides the answers. A line for each prompt follows, in their order.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What the model said to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The prompt's number, from 0 on.
    pub row: usize,
    /// One text a turn.
    pub turns: Vec<String>,
    /// Why the last of `turns` are empty, where the model was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

/// The file, held against other processes, and the answers in it.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    pub answers: Vec<Answer>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    fingerprint: String,
}

/// `ANSWERS.jsonl.partial` for `ANSWERS.jsonl`.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

impl Partial {
    /// Opens the file beside `out`, with its answers if `fingerprint` is theirs; where the file holds something else, that
    /// is an error. Of a batch that was not kept to its end nothing counts, so that the same prompts meet in a batch as in
    /// a run that was never cut off.
    pub fn open(out: &Path, fingerprint: &str, rows: usize, batch: usize) -> anyhow::Result<Self> {
        let path = beside(out);
        let failed = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).with_context(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!(
                "{}: another `favonius generate` keeps its answers there\nhelp: wait for its end, or choose another --out",
                path.display()
            );
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(failed)?;
        let header = Header { fingerprint: fingerprint.to_owned() };
        let header = (serde_json::to_string(&header)? + "\n").into_bytes();
        refuse_other(&path, &bytes, &header)?;
        let (answers, end) = whole_batches(&bytes, &header, rows, batch);
        begin(&mut file, &header, end).with_context(failed)?;
        Ok(Self { path, file, answers })
    }

    /// A word on what was there at the start, if there was something.
    pub fn found(&self, rows: usize) -> Option<String> {
        match self.answers.len() {
            0 => None,
            count => {
                let path = self.path.display();
                Some(format!("going on after {count} of {rows} answers, from {path}"))
            }
        }
    }

    /// Keeps the answers of a batch, on disk too.
    pub fn add(&mut self, batch: Vec<Answer>) -> anyhow::Result<()> {
        let line = |answer: &Answer| serde_json::to_string(answer).map(|text| text + "\n");
        let lines: serde_json::Result<String> = batch.iter().map(line).collect();
        let lines = lines?;
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.answers.extend(batch);
        Ok(())
    }

    /// The answers are in their own file: this one goes.
    pub fn remove(self) -> anyhow::Result<()> {
        let Self { path, file, .. } = self;
        drop(file);
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// Fails where the file at `path` holds what a new start would cost: answers of something else, which took their time, or
/// what is none of ours. `bytes` are what it holds.
fn refuse_other(path: &Path, bytes: &[u8], header: &[u8]) -> anyhow::Result<()> {
    if bytes.starts_with(header) || header.starts_with(bytes) {
        return Ok(());
    }
    let path = path.display();
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let is_ours = lines.next().is_some_and(|first| serde_json::from_slice::<Header>(first).is_ok());
    if !is_ours {
        bail!(
            "{path} would hold the answers until all are there, but is a file of something else\nhelp: move it away, or choose another --out"
        );
    }
    let count = lines.filter(|line| serde_json::from_slice::<Answer>(line).is_ok()).count();
    if count > 0 {
        let answers = if count == 1 { "answer" } else { "answers" };
        bail!(
            "{path} holds {count} {answers} of another model, other prompts or other settings\nhelp: give the settings of then, remove it, or choose another --out"
        );
    }
    Ok(())
}

/// The answers that follow `header`, as far as whole batches go, and where the last of them ends.
fn whole_batches(bytes: &[u8], header: &[u8], rows: usize, batch: usize) -> (Vec<Answer>, usize) {
    let mut answers: Vec<Answer> = Vec::new();
    let mut ends = vec![header.len()];
    let mut end = header.len();
    let lines = bytes.strip_prefix(header).unwrap_or_default();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        // The last line may have been cut off.
        let answer = match line.ends_with(b"\n") {
            true => serde_json::from_slice::<Answer>(line).ok(),
            false => None,
        };
        let next = answers.len();
        let Some(answer) = answer.filter(|answer| answer.row == next && next < rows) else { break };
        answers.push(answer);
        end += line.len();
        ends.push(end);
    }
    let count = answers.len();
    // The last batch may be a small one.
    let whole = if count == rows { count } else { count - count % batch };
    answers.truncate(whole);
    (answers, ends[whole])
}

/// Cuts the file at `end`, writes `header` at its head and goes behind all that is left.
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
    fn whole_batches_are_found_again_wherever_the_file_is_cut() {
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
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            let known = match lines.saturating_sub(1) {
                ROWS => ROWS,
                some => some - some % BATCH,
            };
            let mut partial = open(folder.path(), "f").unwrap();
            assert_eq!(partial.answers, answers(0..known), "{len} bytes");
            assert_eq!(partial.found(ROWS).is_some(), known > 0);
            partial.add(answers(known..ROWS)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{len} bytes");
        }
        open(folder.path(), "f").unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn answers_of_something_else_are_neither_taken_nor_lost() {
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
        assert!(error.contains("\nhelp: give the settings of then"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), held);
        // Without any answer there is nothing to lose.
        std::fs::write(&path, "{\"fingerprint\":\"f\"}\n{\"row\":0,\"tu").unwrap();
        assert_eq!(open(folder.path(), "g").unwrap().found(ROWS), None);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"fingerprint\":\"g\"}\n");
    }

    #[test]
    fn a_file_of_something_else_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.partial");
        for held in ["notes\n", "{\"prompt\": \"a\"}\n", "{\"fingerprint\":\"f\",\"row\":0}\n"] {
            std::fs::write(&path, held).unwrap();
            let error = open(folder.path(), "f").unwrap_err().to_string();
            assert!(error.contains("a file of something else\nhelp: "), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), held);
        }
    }
}
