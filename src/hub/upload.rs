//! Uploads a run's folder to a hub repository in one commit.

use std::io;
use std::path::Path;

use hf_hub::repository::CommitOperation;
use hf_hub::{HFClientSync, split_id};

use super::access::Destination;
use super::bar::Bar;
use super::environment::{client, with_cause};
use crate::files::shards::is_weights;

/// The files that a finished run consists of, besides its weights: configuration, tokenizer, record
/// and card. No other file is uploaded: if `output_dir` is a folder with files of the user, they
/// stay here.
const UPLOADED: [&str; 17] = [
    "README.md",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "trainer_state.json",
    "train_results.json",
    "eval_results.json",
    "all_results.json",
];
/// The folder of TensorBoard's event files, which the hub displays, and how their names begin.
const EVENTS: &str = "runs";
const EVENT_FILE: &str = "events.out.tfevents.";

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{folder} cannot be read: {source}")]
    Folder { folder: String, source: io::Error },
    #[error("{0}")]
    Hub(String),
}

/// The files of a run's folder to upload, sorted, with `/` between folders: the model, its
/// tokenizer, the record, the card, and the event files below `runs/`. Everything else is left out.
///
/// # Errors
/// The folder cannot be read.
pub fn files_to_upload(folder: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for (name, is_folder) in entries(folder)? {
        if is_folder && name == EVENTS {
            events_below(&folder.join(EVENTS), EVENTS, &mut files)?;
        } else if !is_folder && (UPLOADED.contains(&name.as_str()) || is_weights(&name)) {
            files.push(name);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Adds the event files below `folder`. Links are not followed: they may lead anywhere.
fn events_below(folder: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    for (name, is_folder) in entries(folder)? {
        let (inside, path) = (folder.join(&name), format!("{prefix}/{name}"));
        if inside.is_symlink() {
            continue;
        }
        if is_folder {
            events_below(&inside, &path, files)?;
        } else if name.starts_with(EVENT_FILE) {
            files.push(path);
        }
    }
    Ok(())
}

/// The entries of a folder and whether they are folders. Skips names that start with `.` or `_`.
fn entries(folder: &Path) -> io::Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with(['.', '_']) {
            found.push((name, entry.path().is_dir()));
        }
    }
    Ok(found)
}

/// Uploads [`files_to_upload`] in one commit. Returns the id of the commit if the hub reports it.
///
/// # Errors
/// A file cannot be read, or the hub cannot be reached or refuses, after several attempts of the
/// library.
pub fn upload(
    folder: &Path,
    destination: &Destination,
    token: &str,
    message: &str,
) -> Result<Option<String>, UploadError> {
    let files = files_to_upload(folder)
        .map_err(|source| UploadError::Folder { folder: folder.display().to_string(), source })?;
    let operations =
        files.into_iter().map(|name| CommitOperation::add_file(name.clone(), folder.join(&name)));
    let failed = |error: hf_hub::HFError| UploadError::Hub(with_cause(&error));
    let client = client(Some(token)).and_then(HFClientSync::from_inner).map_err(failed)?;
    let (owner, name) = split_id(&destination.id);
    let commit = client
        .model(owner, name)
        .create_commit()
        .operations(operations.collect())
        .commit_message(message)
        .maybe_revision(destination.revision.clone())
        .progress(Bar::new("uploading"))
        .send()
        .map_err(failed)?;
    Ok(commit.commit_oid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_a_run_are_uploaded() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "trainer_state.json",
            "favonius.json",
            "plan.json",
            "sweep-run.json",
            "sft.yaml",
            "id_rsa",
            "notes.md",
            "model_ema.safetensors",
            "runs/notes.txt",
            "_notes.txt",
            ".model-x/config.json",
            "checkpoint-3/optimizer.safetensors",
            "dpo/model.safetensors",
            "runs/now/events.out.tfevents.1",
            "runs/_old/events.out.tfevents.0",
        ] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let expected = [
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "runs/now/events.out.tfevents.1",
            "trainer_state.json",
        ];
        assert_eq!(files_to_upload(folder.path()).unwrap(), expected);
    }
}
