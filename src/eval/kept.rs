//! Answers on disk, so that an evaluation that ends early continues from them.
//!
//! The file `answers-….jsonl` has a line for each document: a hash of the document's requests and
//! the answers. Its name holds the fingerprint of the model, so that the answers of another model
//! are neither used nor lost. A document is found again by its requests: another limit, another
//! order of tasks or further tasks cost nothing for documents that were answered before.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::request::{Answer, Document, Request};

/// The answers to the requests of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The hash of the requests.
    pub requests: String,
    pub answers: Vec<KeptAnswer>,
    /// Tokens that the model read for the unit that begins with this document; 0 for the other
    /// documents of the unit.
    pub tokens: usize,
    /// Tokens of generated texts, counted in the same way.
    pub new_tokens: usize,
    /// The tokens that lm-eval would read for this document.
    pub whole_tokens: usize,
    /// Requests that did not fit and were cut.
    pub cut: usize,
}

/// [`Answer`] in a file and in messages between ranks. A finite log-prob keeps all its bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeptAnswer {
    /// The log-prob, and whether it is the greedy continuation.
    Loglikelihood(f64, bool),
    Text(String),
}

impl From<Answer> for KeptAnswer {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Loglikelihood { logp, is_greedy } => Self::Loglikelihood(logp, is_greedy),
            Answer::Text(text) => Self::Text(text),
        }
    }
}

impl From<KeptAnswer> for Answer {
    fn from(answer: KeptAnswer) -> Self {
        match answer {
            KeptAnswer::Loglikelihood(logp, is_greedy) => Self::Loglikelihood { logp, is_greedy },
            KeptAnswer::Text(text) => Self::Text(text),
        }
    }
}

/// The hash of a document's requests.
pub fn hash_of(document: &Document) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for request in &document.requests {
        part(request.context());
        match request {
            Request::Loglikelihood { continuation, .. } => part(continuation),
            Request::Generate { until, max_tokens, .. } => {
                part(&format!("generate {max_tokens} {}", until.len()));
                until.iter().for_each(|stop| part(stop));
            }
        }
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// Why kept answers cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: another evaluation writes its answers there\nhelp: wait until it ends, or choose \
         another --out", .0.display()
    )]
    Taken(PathBuf),
}

/// The file of answers, locked against other processes.
#[derive(Debug)]
pub struct KeptAnswers {
    path: PathBuf,
    file: File,
}

impl KeptAnswers {
    /// Opens the file of the model with this fingerprint in `folder`, and reads its answers by the
    /// hash of the requests. An incomplete last line is dropped.
    ///
    /// # Errors
    /// The folder cannot be written, or another process has the file.
    pub fn open(
        folder: &Path,
        fingerprint: &str,
    ) -> Result<(Self, HashMap<String, Kept>), KeptError> {
        let path = folder.join(format!("answers-{fingerprint}.jsonl"));
        let failed = |source| KeptError::Io { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(KeptError::Taken(path));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut all = HashMap::new();
        let mut end = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let kept = serde_json::from_slice::<Kept>(line).ok();
            let Some(kept) = kept.filter(|_| line.ends_with(b"\n")) else { break };
            all.insert(kept.requests.clone(), kept);
            end += line.len();
        }
        if end < bytes.len() {
            tracing::warn!(
                "{}: the last {} bytes are no complete answer; they are computed again",
                path.display(),
                bytes.len() - end
            );
        }
        file.set_len(end as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { path, file }, all))
    }

    /// Adds answers and syncs them to disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, documents: &[Kept]) -> Result<(), KeptError> {
        let line = |kept: &Kept| {
            serde_json::to_string(kept).expect("texts and finite numbers become JSON") + "\n"
        };
        let lines: String = documents.iter().map(line).collect();
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| KeptError::Io { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(requests: &str, logp: f64) -> Kept {
        let answer = Answer::Loglikelihood { logp, is_greedy: true };
        let answers = vec![answer.into(), Answer::Text("é\n".into()).into()];
        let requests = requests.to_owned();
        Kept { requests, answers, tokens: 3, new_tokens: 1, whole_tokens: 5, cut: 0 }
    }

    #[test]
    fn answers_are_found_again_by_their_requests_wherever_the_file_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let all = [kept("a", -0.1), kept("b", -1e-300), kept("c", -1.0 / 3.0)];
        let (mut file, found) = KeptAnswers::open(folder.path(), "f").unwrap();
        assert!(found.is_empty());
        all.iter().for_each(|kept| file.add(std::slice::from_ref(kept)).unwrap());
        assert!(matches!(KeptAnswers::open(folder.path(), "f"), Err(KeptError::Taken(_))));
        assert!(KeptAnswers::open(folder.path(), "g").unwrap().1.is_empty());
        drop(file);
        let path = folder.path().join("answers-f.jsonl");
        let whole = std::fs::read(&path).unwrap();
        for len in (0..=whole.len()).rev().step_by(7) {
            std::fs::write(&path, &whole[..len]).unwrap();
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            let (mut file, found) = KeptAnswers::open(folder.path(), "f").unwrap();
            assert_eq!(found.len(), lines);
            all[..lines].iter().for_each(|kept| assert_eq!(&found[&kept.requests], kept));
            file.add(&all[lines..]).unwrap();
            drop(file);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{len} bytes");
        }
    }

    #[test]
    fn the_hash_depends_on_all_parts_of_the_requests() {
        let document = |requests| Document {
            id: 0,
            requests,
            row: serde_json::Value::Null,
            target: serde_json::Value::Null,
        };
        let scored = |context: &str, continuation: &str| {
            let continuation = continuation.to_owned();
            hash_of(&document(vec![Request::Loglikelihood {
                context: context.into(),
                continuation,
            }]))
        };
        let text = |until: &[&str], max_tokens| {
            let until = until.iter().map(|stop| stop.to_string()).collect();
            hash_of(&document(vec![Request::Generate { context: "a".into(), until, max_tokens }]))
        };
        let hashes = [
            scored("a", "bc"),
            scored("ab", "c"),
            text(&[], 1),
            text(&[], 2),
            text(&["b", "c"], 1),
            text(&["bc"], 1),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash));
        }
        assert_eq!(scored("a", "bc"), hashes[0]);
    }
}
