//! Writes the demo's world to disk: data sets, the base model with its tokenizer, and recipes.

use std::fs;
use std::path::{Path, PathBuf};

use super::corpus::{self, Fact};
use super::error::ToyError;
use super::model;
use super::rows;
use super::tokenizer;

/// File names and texts of the recipes in this repository.
const RECIPES: [(&str, &str); 3] = [
    ("sft.yaml", include_str!("../../recipes/demo/sft.yaml")),
    ("dpo.yaml", include_str!("../../recipes/demo/dpo.yaml")),
    (PIPELINE, include_str!("../../recipes/demo/pipeline.yaml")),
];
const PIPELINE: &str = "pipeline.yaml";

/// File names and texts of the evaluation tasks in this repository.
const TASKS: [(&str, &str); 2] = [
    ("facts.yaml", include_str!("../../recipes/demo/tasks/facts.yaml")),
    ("manners.yaml", include_str!("../../recipes/demo/tasks/manners.yaml")),
];
/// The names of these tasks.
const TASK_NAMES: [&str; 2] = ["demo_facts", "demo_manners"];

/// The demo's folder in these recipes. Every path in them is in double quotes and starts with it.
const FOLDER_IN_RECIPES: &str = "\"favonius-demo/";

/// The paths of the demo's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoWorld {
    pub root: PathBuf,
    /// The folder of a tiny Mistral with random weights, and its tokenizer.
    pub base_model: PathBuf,
    /// The SFT data set, with the splits `train_sft` and `test_sft`.
    pub chats: PathBuf,
    /// The DPO data set, with the splits `train_prefs` and `test_prefs`.
    pub preferences: PathBuf,
    /// The pipeline file: SFT, then DPO.
    pub pipeline: PathBuf,
    /// Held-out questions, one of each kind, that the demo asks before and after training.
    pub questions: Vec<String>,
    /// The folder of the evaluation tasks, and their names.
    pub tasks: PathBuf,
    pub task_names: Vec<String>,
}

/// Writes the world to `out`. The same seed writes the same bytes, except that the recipes contain
/// the absolute path of `out`.
///
/// # Errors
/// A file cannot be written, or the path `out` is not UTF-8.
pub fn write(out: &Path, seed: u64) -> Result<DemoWorld, ToyError> {
    let root = std::path::absolute(out)
        .map_err(|source| ToyError::Path { path: out.to_owned(), source })?;
    let corpus = corpus::generate(seed);

    let chats = root.join("chats");
    rows::write_chats(&chats, "train_sft", &corpus.train_chats)?;
    rows::write_chats(&chats, "test_sft", &corpus.test_chats)?;
    let preferences = root.join("preferences");
    rows::write_preferences(&preferences, "train_prefs", &corpus.train_pairs)?;
    rows::write_preferences(&preferences, "test_prefs", &corpus.test_pairs)?;

    let base_model = root.join("base");
    fs::create_dir_all(&base_model).map_err(ToyError::folder(&base_model))?;
    tokenizer::write(&base_model, &corpus)?;
    model::write(&base_model, seed)?;

    write_recipes(&root)?;
    let tasks = root.join("tasks");
    write_tasks(&tasks, &corpus.facts)?;
    Ok(DemoWorld {
        pipeline: root.join(PIPELINE),
        root,
        base_model,
        chats,
        preferences,
        questions: corpus.questions,
        tasks,
        task_names: TASK_NAMES.map(str::to_owned).to_vec(),
    })
}

/// Writes the evaluation tasks, and the rows of those that have rows of their own.
fn write_tasks(folder: &Path, facts: &[Fact]) -> Result<(), ToyError> {
    fs::create_dir_all(folder).map_err(ToyError::folder(folder))?;
    let row = |fact: &Fact| serde_json::json!(fact).to_string() + "\n";
    let rows: String = facts.iter().map(row).collect();
    for (name, text) in TASKS.into_iter().chain([("facts.jsonl", rows.as_str())]) {
        let path = folder.join(name);
        fs::write(&path, text).map_err(ToyError::write(&path))?;
    }
    Ok(())
}

fn write_recipes(root: &Path) -> Result<(), ToyError> {
    let folder = root.to_str().ok_or_else(|| ToyError::NotUtf8(root.to_owned()))?;
    for (name, text) in RECIPES {
        let path = root.join(name);
        fs::write(&path, with_folder(text, folder)).map_err(ToyError::write(&path))?;
    }
    Ok(())
}

/// The recipe with its paths moved to `folder`. YAML's double quotes accept the escapes of JSON.
fn with_folder(recipe: &str, folder: &str) -> String {
    let quoted = serde_json::Value::from(format!("{folder}/")).to_string();
    recipe.replace(FOLDER_IN_RECIPES, quoted.trim_end_matches('"'))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    fn columns(folder: &Path, split: &str) -> Vec<String> {
        let path = folder.join(format!("data/{split}-00000-of-00001.parquet"));
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
        assert!(reader.metadata().file_metadata().num_rows() >= 100);
        reader.schema().fields().iter().map(|f| f.name().clone()).collect()
    }

    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }

    #[test]
    fn the_data_sets_have_the_columns_of_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let world = write(folder.path(), 7).unwrap();
        for split in ["train_sft", "test_sft"] {
            assert_eq!(columns(&world.chats, split), ["prompt", "prompt_id", "messages"]);
        }
        for split in ["train_prefs", "test_prefs"] {
            assert_eq!(
                columns(&world.preferences, split),
                [
                    "prompt",
                    "prompt_id",
                    "chosen",
                    "rejected",
                    "messages",
                    "score_chosen",
                    "score_rejected"
                ]
            );
        }
    }

    #[test]
    fn the_same_seed_writes_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), 7).unwrap();
        write(two.path(), 7).unwrap();
        let mut found = Vec::new();
        files(one.path(), &mut found);
        assert_eq!(found.len(), 16);
        let folder = |path: &Path| path.to_str().unwrap().to_string();
        for path in found {
            let other = two.path().join(path.strip_prefix(one.path()).unwrap());
            if path.extension().is_some_and(|e| e == "yaml") {
                let text = fs::read_to_string(&other).unwrap();
                let text = text.replace(&folder(two.path()), &folder(one.path()));
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            } else {
                assert_eq!(fs::read(&path).unwrap(), fs::read(&other).unwrap(), "{path:?}");
            }
        }
    }

    #[test]
    fn a_folder_with_quotes_in_its_name_is_escaped_in_the_recipes() {
        for (_, text) in RECIPES {
            assert!(!with_folder(text, "/x").contains(FOLDER_IN_RECIPES));
        }
        assert_eq!(with_folder("a: \"favonius-demo/base\"", "/a\"b"), "a: \"/a\\\"b/base\"");
    }
}
