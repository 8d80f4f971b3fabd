//! Resolves hub ids and local paths to files. The hub's cache is shared with the Python libraries;
//! see [`super::environment`] for its settings.

use std::path::{Path, PathBuf};

use hf_hub::repository::{RepoSibling, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClientSync, HFError, HFRepositorySync, HFResult, split_id};

use super::bar::Bar;
use super::environment::{cache_dir, client, is_offline, status, token, with_cause};
use super::layout;
use crate::files::names::{is_file_name, is_path_inside};
use crate::files::shards::shards_of;

/// The two kinds, as messages call them.
const MODEL: &str = "model folder";
const DATASET: &str = "data set";

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

const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const CARD: &str = "README.md";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

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
}

impl SplitName<'_> {
    fn revision(&self) -> &str {
        self.revision.unwrap_or("main")
    }

    /// The files among `names` that hold the split, in their order.
    fn files<'n>(&self, names: &'n [String], readme: Option<&str>) -> Vec<&'n str> {
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
    let splits = layout::splits(names, readme, split.config);
    HubError::NoSplit { place, split: split.split.to_owned(), splits }
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

/// The kind of a repository.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// The kind as messages call it.
    fn name(self) -> &'static str {
        match self {
            Kind::Model => MODEL,
            Kind::Dataset => DATASET,
        }
    }

    /// The repository's folder in the cache, for example `models--owner--name`.
    fn folder(self, id: &str) -> String {
        let kind = match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        format!("{kind}--{}", id.replace('/', "--"))
    }
}

/// A repository on the server.
enum Remote {
    Model(HFRepositorySync<RepoTypeModel>),
    Dataset(HFRepositorySync<RepoTypeDataset>),
}

impl Remote {
    fn new(id: &str, kind: Kind) -> HFResult<Self> {
        let client = HFClientSync::from_inner(client(token().as_deref())?)?;
        let (owner, name) = split_id(id);
        Ok(match kind {
            Kind::Model => Remote::Model(client.model(owner, name)),
            Kind::Dataset => Remote::Dataset(client.dataset(owner, name)),
        })
    }

    /// The commit that `revision` points to, and the names of its files. Both become paths in the
    /// cache, so names that lead out of it are left out.
    fn commit(&self, revision: &str) -> HFResult<(String, Vec<String>)> {
        let (sha, siblings) = match self {
            Remote::Model(repo) => {
                let info = repo.info().revision(revision).send()?;
                (info.sha, info.siblings)
            }
            Remote::Dataset(repo) => {
                let info = repo.info().revision(revision).send()?;
                (info.sha, info.siblings)
            }
        };
        let sha = sha.filter(|sha| is_file_name(sha));
        let sha = sha.ok_or_else(|| HFError::malformed_response("the commit of a revision"))?;
        let name = |sibling: RepoSibling| sibling.rfilename;
        let names = siblings.unwrap_or_default().into_iter().map(name);
        Ok((sha, names.filter(|name| is_path_inside(name)).collect()))
    }

    /// The path of the file in the cache; downloads it if needed.
    fn fetch(&self, commit: &str, name: &str) -> HFResult<PathBuf> {
        match self {
            Remote::Model(repo) => {
                repo.download_file().filename(name).revision(commit).progress(Bar::new(name)).send()
            }
            Remote::Dataset(repo) => {
                repo.download_file().filename(name).revision(commit).progress(Bar::new(name)).send()
            }
        }
    }
}

/// One commit of a repository in the hub's cache.
struct Snapshot {
    id: String,
    kind: Kind,
    revision: String,
    root: PathBuf,
    names: Vec<String>,
    /// The server and the commit; `None` if only the cache is used.
    remote: Option<(Remote, String)>,
}

impl Snapshot {
    fn find(id: &str, kind: Kind, revision: &str) -> Result<Self, HubError> {
        let cache = cache_dir();
        if is_offline() {
            return Self::cached(&cache, id, kind, revision).ok_or_else(|| HubError::NotCached {
                name: id.to_owned(),
                kind: kind.name(),
                revision: revision.to_owned(),
                cache,
            });
        }
        let failed = |error: HFError| fetch_error(id, kind, revision, &error);
        let remote = Remote::new(id, kind).map_err(failed)?;
        let (commit, names) = match remote.commit(revision) {
            Ok(commit) => commit,
            Err(error) => {
                let cached =
                    Self::cached(&cache, id, kind, revision).filter(|_| status(&error).is_none());
                return cached.ok_or_else(|| failed(error)).inspect(|_| {
                    tracing::warn!(
                        "the hub cannot be reached; using the copy of {id} in the cache"
                    );
                });
            }
        };
        let folder = cache.join(kind.folder(id));
        if let Err(error) = write_revision(&folder, revision, &commit) {
            tracing::warn!("cannot write the revision of {id} into the hub's cache: {error}");
        }
        Ok(Self {
            id: id.to_owned(),
            kind,
            revision: revision.to_owned(),
            root: folder.join("snapshots").join(&commit),
            names,
            // All files come from this commit, even if the branch moves in the meantime.
            remote: Some((remote, commit)),
        })
    }

    /// The copy that an earlier run or a Python library left in the cache.
    fn cached(cache: &Path, id: &str, kind: Kind, revision: &str) -> Option<Self> {
        if !is_path_inside(revision) {
            return None;
        }
        let folder = cache.join(kind.folder(id));
        let commit = std::fs::read_to_string(folder.join("refs").join(revision))
            .map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
        if !is_file_name(&commit) {
            return None;
        }
        let root = folder.join("snapshots").join(commit);
        let mut names = layout::data_files(&root).ok()?;
        let top = std::fs::read_dir(&root).ok()?;
        names.extend(top.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
        names.sort_unstable();
        names.dedup();
        let (id, revision) = (id.to_owned(), revision.to_owned());
        Some(Self { id, kind, revision, root, names, remote: None })
    }

    fn fetch(&self, names: &[&str]) -> Result<Vec<PathBuf>, HubError> {
        let Some((remote, commit)) = &self.remote else {
            return Ok(names.iter().map(|name| self.root.join(name)).collect());
        };
        let fetch = |name: &&str| {
            let fetched = remote.fetch(commit, name);
            fetched.map_err(|error| fetch_error(&self.id, self.kind, &self.revision, &error))
        };
        names.iter().map(fetch).collect()
    }

    /// The weights that transformers would load: an adapter, else `model.safetensors`, else the
    /// index and its shards. Repositories may hold further copies in other formats.
    fn weight_files(&self) -> Result<Vec<String>, HubError> {
        let has = |name: &str| self.names.iter().any(|own| own == name);
        if has(ADAPTER) && has(ADAPTER_CONFIG) {
            return Ok(vec![ADAPTER_CONFIG.to_owned(), ADAPTER.to_owned()]);
        }
        if has(WEIGHTS) {
            return Ok(vec![WEIGHTS.to_owned()]);
        }
        if has(INDEX) {
            self.fetch(&[INDEX])?;
            // A broken index, or one that names files outside the folder, is reported when the
            // weights are read.
            let shards = shards_of(&self.root.join(INDEX)).unwrap_or_default();
            return Ok(shards.into_iter().chain([INDEX.to_owned()]).collect());
        }
        let is_weights = |name: &&String| {
            [".safetensors", ".bin", ".gguf"].iter().any(|ending| name.ends_with(ending))
        };
        let message = match self.names.iter().find(is_weights) {
            Some(other) => format!(
                "its weights are in `{other}`\nhelp: convert them to {WEIGHTS}, or choose a \
                 revision that has it"
            ),
            None => "it has no .safetensors files".to_owned(),
        };
        Err(HubError::NoWeights { place: self.place(), message })
    }

    fn place(&self) -> String {
        format!("{} (revision {})", self.id, self.revision)
    }
}

/// Records in the cache which commit a branch or tag points to, as the Python libraries do.
fn write_revision(folder: &Path, revision: &str, commit: &str) -> std::io::Result<()> {
    if revision == commit {
        return Ok(());
    }
    if !is_path_inside(revision) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let note = folder.join("refs").join(revision);
    std::fs::create_dir_all(note.parent().unwrap_or(folder))?;
    std::fs::write(note, commit)
}

fn fetch_error(id: &str, kind: Kind, revision: &str, error: &HFError) -> HubError {
    let help = match status(error) {
        Some(401 | 403) => {
            "it is private, gated, or does not exist: accept its terms and set HF_TOKEN, or \
             correct the id"
        }
        Some(404) => "correct the id or the revision",
        _ => "check the network, or set HF_HUB_OFFLINE=1 to use the hub's cache",
    };
    HubError::Fetch {
        name: id.to_owned(),
        kind: kind.name(),
        revision: revision.to_owned(),
        message: with_cause(error),
        help,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(id: &Path, split: &str) -> Result<Vec<PathBuf>, HubError> {
        let id = id.to_str().unwrap();
        resolve_dataset(&SplitName { id, config: None, revision: None, split })
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

    #[test]
    fn a_name_may_be_a_path_or_an_id() {
        let refused = HFError::malformed_response("nothing");
        let name = "data/zephyr-7b-sft-full";
        let error = fetch_error(name, Kind::Model, "main", &refused).to_string();
        let start = "`data/zephyr-7b-sft-full`: no such local model folder, and as a hub id";
        assert!(error.starts_with(start), "{error}");
        assert!(error.contains("first run the recipe that writes it"), "{error}");
        let error = fetch_error(name, Kind::Dataset, "main", &refused).to_string();
        assert!(error.contains("no such local data set") && !error.contains("SFT"), "{error}");
    }

    #[test]
    fn the_cache_of_the_python_libraries_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("models--owner--name");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc").unwrap();
        std::fs::create_dir_all(folder.join("snapshots/abc")).unwrap();
        std::fs::write(folder.join("snapshots/abc/config.json"), "{}").unwrap();
        let find =
            |revision: &str| Snapshot::cached(root.path(), "owner/name", Kind::Model, revision);
        assert_eq!(find("main").unwrap().names, ["config.json"]);
        assert_eq!(find("abc").unwrap().root, folder.join("snapshots/abc"));
        assert!(find("other").is_none());
        assert!(find("../refs/main").is_none(), "a revision does not lead out of its folder");
        std::fs::write(folder.join("refs/main"), "../../elsewhere").unwrap();
        std::fs::create_dir_all(root.path().join("models--owner--name/snapshots")).unwrap();
        std::fs::create_dir_all(root.path().join("elsewhere")).unwrap();
        assert!(find("main").is_none(), "nor does the commit in the cache");
        assert!(write_revision(&folder, "../../planted", "abc").is_err());
        assert!(!root.path().join("planted").exists());
    }
}
