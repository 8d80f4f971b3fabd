//! Resolves hub ids and local paths to files.

use std::path::{Path, PathBuf};

use super::environment::cache_dir;
use super::error::{DATASET, HubError, MODEL};
use super::layout;
use super::snapshot::{ADAPTER_CONFIG, Kind, Snapshot};
use super::split_files;

const CARD: &str = "README.md";

/// One split of a data set.
#[derive(Debug, Clone, Copy)]
pub struct SplitName<'a> {
    /// A hub id, a folder in the hub's layout, or a `.parquet` or `.jsonl` file.
    pub id: &'a str,
    /// The configuration; `None` is the default one.
    pub config: Option<&'a str>,
    /// A branch, tag or commit; `None` is `main`.
    pub revision: Option<&'a str>,
    pub split: &'a str,
    /// The folder of the data set that holds its files; `None` is all of it.
    pub data_dir: Option<&'a str>,
    /// The files of each split, as patterns from that folder; empty if names decide.
    pub data_files: &'a [(String, Vec<String>)],
}

impl<'a> SplitName<'a> {
    /// A split of the default configuration on the branch `main`, whose files are found by their
    /// names.
    pub fn new(id: &'a str, split: &'a str) -> Self {
        Self { id, config: None, revision: None, split, data_dir: None, data_files: &[] }
    }

    fn revision(&self) -> &str {
        self.revision.unwrap_or("main")
    }

    /// The files among `names` that hold the split, in their order.
    fn files<'n>(&self, names: &'n [String], readme: Option<&str>) -> Vec<&'n str> {
        if self.data_dir.is_some() || !self.data_files.is_empty() {
            let splits = split_files::splits_of(names, self.data_dir, self.data_files);
            let own = splits.into_iter().find(|(split, _)| split == self.split);
            return own.map(|(_, files)| files).unwrap_or_default();
        }
        layout::files_of_split(names, readme, self.config, self.split)
    }
}

/// The folder of a model or of an adapter: `name_or_path` if it is a folder, else a folder of the
/// hub's cache, into which the configuration, the safetensors and the tokenizer files are fetched.
pub fn resolve_model(name_or_path: &str, revision: &str) -> Result<PathBuf, HubError> {
    if Path::new(name_or_path).is_dir() {
        return Ok(PathBuf::from(name_or_path));
    }
    require_hub_id(name_or_path, MODEL)?;
    let snapshot = Snapshot::find(name_or_path, Kind::Model, revision)?;
    let weights = snapshot.weight_files()?;
    let beside = snapshot.names.iter().map(String::as_str).filter(|name| is_model_file(name));
    let wanted: Vec<&str> = beside.chain(weights.iter().map(String::as_str)).collect();
    snapshot.fetch(&wanted)?;
    Ok(snapshot.root)
}

/// The folder in the hub's cache with the chat template of a repository. Nothing else of the
/// repository is fetched.
pub fn resolve_chat_template(id: &str, revision: &str) -> Result<PathBuf, HubError> {
    const FILES: [&str; 2] = ["tokenizer_config.json", "chat_template.jinja"];
    require_hub_id(id, MODEL)?;
    let snapshot = Snapshot::find(id, Kind::Model, revision)?;
    let is_wanted = |name: &&str| snapshot.names.iter().any(|own| own == name);
    snapshot.fetch(&FILES.into_iter().filter(is_wanted).collect::<Vec<_>>())?;
    Ok(snapshot.root)
}

/// The folder of a model that needs no download, with or without weights: `name_or_path` if it is a
/// folder, else its copy in the hub's cache.
pub fn model_here(name_or_path: &str, revision: &str) -> Option<PathBuf> {
    if Path::new(name_or_path).is_dir() {
        return Some(PathBuf::from(name_or_path));
    }
    let snapshot = Snapshot::cached(&cache_dir(), name_or_path, Kind::Model, revision)?;
    let has = |file: &str| snapshot.names.iter().any(|name| name == file);
    (has("config.json") || has(ADAPTER_CONFIG)).then_some(snapshot.root)
}

/// Whether the files of a split need no download: they are at a local path or in the hub's cache.
pub fn dataset_is_here(split: &SplitName) -> bool {
    if Path::new(split.id).exists() {
        return true;
    }
    let cached = Snapshot::cached(&cache_dir(), split.id, Kind::Dataset, split.revision());
    cached.is_some_and(|snapshot| {
        let readme = read_card(&snapshot.root);
        !split.files(&snapshot.names, readme.as_deref()).is_empty()
    })
}

/// The files of a split, sorted: from a local folder, a single local file, or the hub.
pub fn resolve_dataset(split: &SplitName) -> Result<Vec<PathBuf>, HubError> {
    let path = Path::new(split.id);
    if path.is_file() {
        return single_file(path, split);
    }
    if matches!(split.id, "json" | "parquet") && !split.data_files.is_empty() && !path.is_dir() {
        return files_by_path(split);
    }
    if path.is_dir() {
        let names = layout::data_files(path)
            .map_err(|source| HubError::Io { path: path.to_owned(), source })?;
        let readme = read_card(path);
        let files = split.files(&names, readme.as_deref());
        if files.is_empty() {
            return Err(other_format(path, split, &names).unwrap_or_else(|| {
                no_split(split.id.to_owned(), split, &names, readme.as_deref())
            }));
        }
        note_missing_shards(split.id, &files);
        return Ok(files.into_iter().map(|name| path.join(name)).collect());
    }
    require_hub_id(split.id, DATASET)?;
    let snapshot = Snapshot::find(split.id, Kind::Dataset, split.revision())?;
    if snapshot.names.iter().any(|name| name == CARD) {
        snapshot.fetch(&[CARD])?;
    }
    let readme = read_card(&snapshot.root);
    let files = split.files(&snapshot.names, readme.as_deref());
    if files.is_empty() {
        return Err(no_split(snapshot.place(), split, &snapshot.names, readme.as_deref()));
    }
    note_missing_shards(split.id, &files);
    snapshot.fetch(&files)
}

/// The README.md of a data set, whose metadata may name the files of each split.
fn read_card(root: &Path) -> Option<String> {
    std::fs::read_to_string(root.join(CARD)).ok()
}

/// The files that `data_files` name by themselves, without a data set: `path: json` or `parquet`.
/// Patterns are relative to the working folder.
fn files_by_path(split: &SplitName) -> Result<Vec<PathBuf>, HubError> {
    let own = split.data_files.iter().find(|(name, _)| name == split.split);
    let mut files = Vec::new();
    for pattern in own.iter().flat_map(|(_, patterns)| patterns) {
        let (folder, rest) = split_files::fixed_folder(pattern, split.data_dir);
        let names = match folder.is_dir() {
            true => layout::data_files(&folder)
                .map_err(|source| HubError::Io { path: folder.clone(), source })?,
            false => Vec::new(),
        };
        let found = [("train".to_owned(), vec![rest])];
        let found = split_files::splits_of(&names, None, &found);
        let found = found.into_iter().flat_map(|(_, files)| files);
        files.extend(found.map(|name| folder.join(name)));
    }
    match files.is_empty() {
        true => Err(no_split(split.id.to_owned(), split, &[], None)),
        false => Ok(files),
    }
}

/// A single file is one split: the one in its name. It is also `train`, or any split with `train`
/// in its name.
fn single_file(path: &Path, split: &SplitName) -> Result<Vec<PathBuf>, HubError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = layout::split_of_file(name);
    if split.split.contains("train") || split.split == own {
        return Ok(vec![path.to_owned()]);
    }
    let mut splits = vec!["train".to_owned()];
    if own != "train" {
        splits.push(own.to_owned());
    }
    Err(HubError::NoSplit { place: split.id.to_owned(), split: split.split.to_owned(), splits })
}

/// The error of a folder whose data is in files of another format.
fn other_format(folder: &Path, split: &SplitName, names: &[String]) -> Option<HubError> {
    let (place, wanted) = (split.id.to_owned(), split.split.to_owned());
    let has = |name: &str| folder.join(name).is_file();
    let several = has("dataset_dict.json");
    if several || (has("state.json") && has("dataset_info.json")) {
        return Some(HubError::SavedToDisk { place, split: wanted, several });
    }
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let others: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let kinds = [".arrow", ".json", ".csv", ".jsonl.gz", ".jsonl.zst"];
    let kind = kinds.into_iter().find(|kind| others.iter().any(|name| name.ends_with(kind)));
    let kind = kind.filter(|_| names.is_empty())?;
    Some(HubError::OtherFiles { place, split: wanted, kind })
}

/// Warns of a split of which shards are missing, such as after a download that was cut off.
fn note_missing_shards(place: &str, files: &[&str]) {
    for (name, missing) in layout::missing_shards(files) {
        tracing::warn!(
            "{place}: of the files {name}, {} are missing: {}; the rows of the others are used",
            missing.len(),
            missing.iter().take(5).map(|n| format!("{n:05}")).collect::<Vec<_>>().join(", ")
        );
    }
}

fn no_split(place: String, split: &SplitName, names: &[String], readme: Option<&str>) -> HubError {
    let splits = match split.data_dir.is_some() || !split.data_files.is_empty() {
        true => {
            let splits = split_files::splits_of(names, split.data_dir, split.data_files);
            if splits.is_empty() {
                return no_data_file(place, split);
            }
            splits.into_iter().map(|(split, _)| split).collect()
        }
        false => layout::splits(names, readme, split.config),
    };
    HubError::NoSplit { place, split: split.split.to_owned(), splits }
}

/// The error of `data_files` or `data_dir` that find no file.
fn no_data_file(place: String, split: &SplitName) -> HubError {
    let patterns = split.data_files.iter().flat_map(|(_, patterns)| patterns);
    let wanted = match patterns.map(|pattern| format!("`{pattern}`")).collect::<Vec<_>>() {
        patterns if patterns.is_empty() => "any name".to_owned(),
        patterns => patterns.join(", "),
    };
    let below = split.data_dir.map(|folder| format!(" below `{folder}`")).unwrap_or_default();
    HubError::NoDataFile { place, wanted, below }
}

/// Accepts `owner/name` or `name`; anything else was meant as a path.
fn require_hub_id(name: &str, kind: &'static str) -> Result<(), HubError> {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_id = match name.split_once('/') {
        Some((owner, name)) => word(owner) && word(name),
        None => word(name),
    };
    if is_id && !layout::is_data(name) {
        Ok(())
    } else {
        Err(HubError::NoFolder { name: name.to_owned(), kind })
    }
}

fn is_model_file(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "chat_template.jinja",
        "LICENSE",
    ];
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(id: &Path, split: &str) -> Result<Vec<PathBuf>, HubError> {
        let id = id.to_str().unwrap();
        resolve_dataset(&SplitName::new(id, split))
    }

    #[test]
    fn a_missing_split_lists_the_existing_ones() {
        let root = tempfile::tempdir().unwrap();
        for name in ["train_prefs-00000-of-00001.parquet", "test_prefs.jsonl"] {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        let files = resolve(root.path(), "test_prefs").unwrap();
        assert_eq!(files, [root.path().join("test_prefs.jsonl")]);
        let error = resolve(root.path(), "dev").unwrap_err().to_string();
        let splits = "the splits are `test`, `test_prefs`, `train`, `train_prefs`";
        assert!(error.ends_with(&format!("no split `dev`; {splits}")), "{error}");
    }

    #[test]
    fn a_single_file_is_never_both_train_and_test() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pairs.jsonl");
        std::fs::write(&file, "").unwrap();
        assert_eq!(resolve(&file, "train_prefs").unwrap(), std::slice::from_ref(&file));
        assert_eq!(resolve(&file, "pairs").unwrap(), std::slice::from_ref(&file));
        assert!(matches!(resolve(&file, "test"), Err(HubError::NoSplit { .. })));
    }

    #[test]
    fn a_path_is_not_searched_on_the_hub() {
        for name in
            ["./data", "/no/such/folder", "a/b/c", "train.jsonl", "a/train.parquet", "../x", "a b"]
        {
            let error = resolve(Path::new(name), "train").unwrap_err();
            assert!(matches!(error, HubError::NoFolder { .. }), "{name}: {error}");
        }
        let error = resolve_model("models/mine/here", "main").unwrap_err().to_string();
        assert!(error.contains("no such model folder"), "{error}");
        assert!(error.contains("the SFT stage before DPO"), "{error}");
    }
}
