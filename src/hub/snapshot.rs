//! A commit of a repository in the hub's cache, which is shared with the Python libraries; see
//! [`super::environment`] for its settings.

use std::path::{Path, PathBuf};

use hf_hub::repository::{RepoSibling, RepoTypeDataset, RepoTypeModel};
use hf_hub::{HFClientSync, HFError, HFRepositorySync, HFResult, split_id};

use super::bar::Bar;
use super::environment::{cache_dir, client, is_offline, status, token, with_cause};
use super::error::{DATASET, HubError, MODEL};
use super::layout;
use crate::files::names::{is_file_name, is_path_inside};
use crate::files::shards::shards_of;

const ADAPTER: &str = "adapter_model.safetensors";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The kind of a repository.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// The kind as messages call it.
    pub(super) fn name(self) -> &'static str {
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
pub(super) struct Snapshot {
    id: String,
    kind: Kind,
    revision: String,
    pub(super) root: PathBuf,
    pub(super) names: Vec<String>,
    /// The server and the commit; `None` if only the cache is used.
    remote: Option<(Remote, String)>,
}

impl Snapshot {
    pub(super) fn find(id: &str, kind: Kind, revision: &str) -> Result<Self, HubError> {
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
    pub(super) fn cached(cache: &Path, id: &str, kind: Kind, revision: &str) -> Option<Self> {
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

    pub(super) fn fetch(&self, names: &[&str]) -> Result<Vec<PathBuf>, HubError> {
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
    pub(super) fn weight_files(&self) -> Result<Vec<String>, HubError> {
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

    pub(super) fn place(&self) -> String {
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
