//! What the sweep notes about a run, beside the run's own files: its settings, its time, its error.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::run::Run;
use crate::files::folder_lock;
use crate::files::replace::replace_file;
use crate::train::checkpoint;

const FILE: &str = "sweep-run.json";

/// The starts of a run so far. It is a file in the run's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// The keys that the recipe and its overrides set, and their values.
    settings: Vec<(String, String)>,
    /// Seconds from start to end of its process, summed over all its starts.
    pub seconds: f64,
    /// The error of its last start, if that failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// Keys that may change between two starts of one run, because its numbers do not depend on them.
/// The folder is the one that holds the record, and it may have been moved.
const FREE: [&str; 20] = [
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "disable_tqdm",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "hub_token",
    "eval_tasks",
    "eval_tasks_limit",
    "eval_tasks_num_fewshot",
    "eval_tasks_definition",
    "eval_tasks_data",
    "eval_tasks_include_path",
    "eval_tasks_batch_tokens",
    "eval_tasks_apply_chat_template",
    "eval_tasks_fewshot_as_multiturn",
];

impl StartRecord {
    fn path(run: &Run) -> PathBuf {
        run.folder().join(FILE)
    }

    fn settings(run: &Run) -> Vec<(String, String)> {
        let written = run.recipe.written.iter();
        written.filter(|(key, _)| !FREE.contains(&key.as_str())).cloned().collect()
    }

    /// The record of a run; `None` if it was never started.
    pub fn read(run: &Run) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(run)).ok()?).ok()
    }

    /// Fails if folders of `runs` hold runs with other settings. The error names all of them.
    pub fn check<'a>(runs: impl IntoIterator<Item = &'a Run>) -> anyhow::Result<()> {
        let others: Vec<String> = runs.into_iter().filter_map(Self::difference).collect();
        if others.is_empty() {
            return Ok(());
        }
        bail!(
            "these folders hold runs with other settings:\n  {}\n\
             help: remove them, or choose another output_dir",
            others.join("\n  ")
        )
    }

    /// The folder of a run that was started with other settings, and the first setting that
    /// differs. If that run left nothing behind, a corrected run may start in its folder.
    fn difference(run: &Run) -> Option<String> {
        let before = Self::read(run).filter(|_| keeps_something(run))?;
        let differing = before.differing(&Self::settings(run))?;
        Some(format!("{}: {differing}", run.folder().display()))
    }

    /// The first key with another value `now`, and both values.
    fn differing(&self, now: &[(String, String)]) -> Option<String> {
        let of = |settings: &[(String, String)], key: &str| {
            let found = settings.iter().find(|(other, _)| other == key);
            found.map_or("not set".to_string(), |(_, value)| value.clone())
        };
        let keys = now.iter().chain(&self.settings).map(|(key, _)| key);
        // Records of earlier versions also hold keys that are free now.
        let mut keys = keys.filter(|key| !FREE.contains(&key.as_str()));
        let key = keys.find(|key| of(now, key) != of(&self.settings, key))?;
        let (was, is) = (of(&self.settings, key), of(now, key));
        Some(format!("`{key}` was {was} there and is {is} now"))
    }

    /// Writes the record of a run that is about to start. It keeps the time of earlier starts.
    pub fn begin(run: &Run) -> anyhow::Result<()> {
        let settings = Self::settings(run);
        let before = Self::read(run).filter(|before| before.differing(&settings).is_none());
        let seconds = before.map_or(0.0, |before| before.seconds);
        Self { settings, seconds, error: None }.write(&Self::path(run))
    }

    /// Adds the time of a start that ended, and its error if it failed.
    pub fn end(folder: &Path, seconds: f64, error: Option<String>) -> anyhow::Result<()> {
        let path = folder.join(FILE);
        let mut record: Self = serde_json::from_slice(&std::fs::read(&path)?)?;
        record.seconds += seconds;
        record.error = error;
        record.write(&path)
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", path.display());
        std::fs::create_dir_all(path.parent().unwrap_or(path)).with_context(failed)?;
        replace_file(path, &serde_json::to_vec_pretty(self)?).with_context(failed)
    }
}

/// Whether the run's folder holds a finished run, a checkpoint (damaged or not), or a running
/// process.
fn keeps_something(run: &Run) -> bool {
    run.is_trained()
        || !checkpoint::list(run.folder()).is_empty()
        || folder_lock::is_taken(run.folder())
}
