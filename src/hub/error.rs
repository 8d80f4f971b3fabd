//! A model or data set that cannot be found.

use std::path::PathBuf;

/// The two kinds, as messages call them.
pub(super) const MODEL: &str = "model folder";
pub(super) const DATASET: &str = "data set";

/// A model or data set that cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "`{name}`: no such {kind}\nhelp: a local path must exist; a hub id has the form \
         `owner/name` and needs the network, or HF_HUB_OFFLINE=1 and a copy in the hub's cache{}",
        earlier_stage(kind)
    )]
    NoFolder { name: String, kind: &'static str },
    #[error("`{name}`: no such local {kind}, and as a hub id (revision {revision}) it is not in \
             the hub's cache ({}), and HF_HUB_OFFLINE is set\nhelp: {}; for a hub id, unset \
             HF_HUB_OFFLINE or fetch it once with `hf download`", cache.display(), if_local(kind))]
    NotCached { name: String, kind: &'static str, revision: String, cache: PathBuf },
    #[error(
        "`{name}`: no such local {kind}, and as a hub id (revision {revision}) it cannot be \
         fetched: {message}\nhelp: {}; for a hub id, {help}",
        if_local(kind)
    )]
    Fetch {
        name: String,
        kind: &'static str,
        revision: String,
        message: String,
        help: &'static str,
    },
    #[error(
        "{place}: no .parquet or .jsonl file with {wanted}{below}\nhelp: correct `data_files` or \
         `data_dir`; patterns are relative to the data set, as in datasets.load_dataset"
    )]
    NoDataFile { place: String, wanted: String, below: String },
    #[error("{place}: no split `{split}`; {}", splits_there(splits))]
    NoSplit { place: String, split: String, splits: Vec<String> },
    #[error(
        "{place}: written by `save_to_disk` of datasets, whose .arrow files are not read\nhelp: \
         write .parquet files in Python: datasets.load_from_disk({place:?}){}.to_parquet({:?})",
        if *.several { format!("[{split:?}]") } else { String::new() },
        format!("{split}.parquet")
    )]
    SavedToDisk { place: String, split: String, several: bool },
    #[error(
        "{place}: no split `{split}`: its data files are {kind}, and only .parquet and .jsonl files \
         are read\nhelp: convert them in Python: datasets.load_dataset({place:?}, \
         split={split:?}).to_parquet({:?})",
        format!("{split}.parquet")
    )]
    OtherFiles { place: String, split: String, kind: &'static str },
    #[error("{place}: {message}")]
    NoWeights { place: String, message: String },
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// The model of a DPO recipe may be the output of its SFT stage, which has not run yet.
fn earlier_stage(kind: &str) -> &'static str {
    match kind {
        MODEL => {
            "; the output of another recipe (the SFT stage before DPO) exists once that recipe has \
             run"
        }
        _ => "",
    }
}

/// Advice for the case that a local path was meant.
fn if_local(kind: &str) -> &'static str {
    match kind {
        MODEL => {
            "for a local folder, correct its path, or first run the recipe that writes it (the SFT \
             stage before DPO)"
        }
        _ => "for a local path, correct it",
    }
}

fn splits_there(splits: &[String]) -> String {
    if splits.is_empty() {
        return "it has no .parquet or .jsonl files".to_owned();
    }
    let splits: Vec<String> = splits.iter().map(|split| format!("`{split}`")).collect();
    format!("the splits are {}", splits.join(", "))
}
