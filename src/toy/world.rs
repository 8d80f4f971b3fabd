//! The demo's world on disk: data sets, base model with tokenizer, recipes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::corpus;
use super::model;
use super::rows;
use super::tokenizer;

/// The recipes as they stand in the project, with the names that they are written under.
const RECIPES: [(&str, &str); 3] = [
    ("sft.yaml", include_str!("../../recipes/demo/sft.yaml")),
    ("dpo.yaml", include_str!("../../recipes/demo/dpo.yaml")),
    (PIPELINE, include_str!("../../recipes/demo/pipeline.yaml")),
];
const PIPELINE: &str = "pipeline.yaml";

/// How the project's recipes name the demo's folder: each path is in double quotes and begins with it.
const FOLDER_IN_RECIPES: &str = "\"favonius-demo/";

/// Where everything is that the demo needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoWorld {
    pub root: PathBuf,
    /// A tiny Mistral with random weights, and its tokenizer.
    pub base_model: PathBuf,
    /// Splits `train_sft` and `test_sft`.
    pub chats: PathBuf,
    /// Splits `train_prefs` and `test_prefs`.
    pub preferences: PathBuf,
    /// SFT, then DPO.
    pub pipeline: PathBuf,
    /// Held-out questions for the before/after picture, one of each kind.
    pub questions: Vec<String>,
}

/// Writes the world to `out`; the same seed writes the same bytes (recipes name `out` by its absolute path).
///
/// # Errors
/// A file cannot be written, or `out` is not UTF-8.
pub fn write(out: &Path, seed: u64) -> anyhow::Result<DemoWorld> {
    let root = std::path::absolute(out)
        .with_context(|| format!("cannot find the folder {}", out.display()))?;
    let corpus = corpus::generate(seed);

    let chats = root.join("chats");
    rows::write_chats(&chats, "train_sft", &corpus.train_chats)?;
    rows::write_chats(&chats, "test_sft", &corpus.test_chats)?;
    let preferences = root.join("preferences");
    rows::write_preferences(&preferences, "train_prefs", &corpus.train_pairs)?;
    rows::write_preferences(&preferences, "test_prefs", &corpus.test_pairs)?;

    let base_model = root.join("base");
    fs::create_dir_all(&base_model)
        .with_context(|| format!("cannot make {}", base_model.display()))?;
    tokenizer::write(&base_model, &corpus)?;
    model::write(&base_model, seed)?;

    write_recipes(&root)?;
    let pipeline = root.join(PIPELINE);
    Ok(DemoWorld { root, base_model, chats, preferences, pipeline, questions: corpus.questions })
}

fn write_recipes(root: &Path) -> anyhow::Result<()> {
    let folder = root.to_str().with_context(|| {
        format!("the path {} is not UTF-8; choose another --out", root.display())
    })?;
    for (name, text) in RECIPES {
        let path = root.join(name);
        fs::write(&path, with_folder(text, folder))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The recipe with `folder` for the project's own; JSON's escapes are also those of YAML's double quotes.
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
    fn the_sets_have_the_columns_of_the_hub() {
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
        assert_eq!(found.len(), 13);
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
    fn recipes_name_the_folder_even_with_quotes_in_it() {
        for (_, text) in RECIPES {
            assert!(!with_folder(text, "/x").contains(FOLDER_IN_RECIPES));
        }
        assert_eq!(with_folder("a: \"favonius-demo/base\"", "/a\"b"), "a: \"/a\\\"b/base\"");
    }
}
