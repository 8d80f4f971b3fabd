//! One run of a sweep: its recipe, its command line and its files.

use std::path::{Path, PathBuf};

use crate::recipe::Recipe;
use crate::run::{evaluation, start, upload};

/// The file with a run's output.
const LOG: &str = "run.log";
/// The file with the error that a run ended with.
const ERROR: &str = "error.json";

/// One run, with its recipe read and its command line complete.
pub struct Run {
    /// The name of its folder.
    pub name: String,
    /// The keys that the sweep sets for this run, and their values.
    pub settings: Vec<(String, String)>,
    pub recipe: Recipe,
    /// The command line of its process, after the program's name. It holds no secret.
    pub arguments: Vec<String>,
    /// The hub's token, if the sweep or its command line has one.
    pub token: Option<String>,
}

impl Run {
    /// The `output_dir` of its recipe.
    pub fn folder(&self) -> &Path {
        self.recipe.output_dir()
    }

    /// Whether nothing is left to do: it is trained, and evaluated and uploaded if its recipe says
    /// so.
    pub fn is_finished(&self) -> bool {
        let is_pending = upload::is_pending(&self.recipe) || evaluation::is_pending(&self.recipe);
        self.is_trained() && !is_pending
    }

    /// Whether its folder holds the finished model. A model of other settings does not count: then
    /// the run's process says whether it continues.
    pub fn is_trained(&self) -> bool {
        start::holds_run_of(&self.recipe)
    }

    /// The file with the output of its process.
    pub fn log(&self) -> PathBuf {
        self.folder().join(LOG)
    }

    /// The file with the error of its process, if that ended with one.
    pub fn error_file(&self) -> PathBuf {
        self.folder().join(ERROR)
    }
}
