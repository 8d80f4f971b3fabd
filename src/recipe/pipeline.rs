//! The file of `favonius run`: a list of stages.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::RecipeErrors;
use super::reader::Reader;
use super::stage::Stage;
use super::yaml::{Entry, Node, Sources, Value, read_text};

/// `stages: [{kind, recipe, overrides}]`, in the order of their runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pipeline {
    /// The file it was read from.
    pub file: PathBuf,
    /// At least one stage.
    pub stages: Vec<PipelineStage>,
}

/// One recipe to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStage {
    pub kind: Stage,
    /// The path of the recipe; the pipeline's folder is already joined.
    pub recipe: PathBuf,
    /// `--key=value`, as [`crate::recipe::Recipe::load`] takes them.
    pub overrides: Vec<String>,
    /// The line of the stage in the file, from 1.
    pub line: usize,
}

impl Pipeline {
    /// Reads the pipeline at `path`. Does not read the recipes, but a missing recipe is an error.
    ///
    /// # Errors
    /// All errors of the file at once.
    pub fn load(path: &Path) -> Result<Pipeline, RecipeErrors> {
        Self::parse(&read_text(path)?, path)
    }

    /// Like [`Pipeline::load`], for text that is already in memory; recipe paths are relative to
    /// the folder of `file`.
    ///
    /// # Errors
    /// All errors of the file at once.
    pub fn parse(text: &str, file: &Path) -> Result<Pipeline, RecipeErrors> {
        let sources = Sources::new(file, text);
        let root = sources.parse_file()?;
        let mut r = Reader::new(root, &sources, "");
        let stages = match r.take("stages") {
            Some(entry) => stages(&mut r, entry),
            None => {
                let error = sources.whole_file_error("`stages` is missing".to_owned());
                r.report.errors.push(error.with_help(
                    "write stages: [{kind: sft, recipe: sft.yaml}, {kind: dpo, recipe: dpo.yaml}]",
                ));
                Vec::new()
            }
        };
        r.refuse_leftovers();
        match r.report.errors.is_empty() {
            true => Ok(Pipeline { file: file.to_owned(), stages }),
            false => Err(RecipeErrors::in_order(r.report.errors)),
        }
    }
}

fn stages(r: &mut Reader, entry: Entry) -> Vec<PipelineStage> {
    let (at, kind) = (entry.value.at, entry.value.kind());
    match entry.value.value {
        Value::List(items) if !items.is_empty() => {
            let stage = |(index, item)| stage(r, index, item);
            items.into_iter().enumerate().map(stage).collect()
        }
        _ => {
            r.error(at, format!("`stages` needs a list of stages, not {kind}"));
            Vec::new()
        }
    }
}

fn stage(r: &mut Reader, index: usize, item: Node) -> PipelineStage {
    let at = item.at;
    r.within(&format!("stages.{index}"), item, |r| {
        let kind = match r.take("kind") {
            Some(entry) => r.as_choice("kind", &entry.value),
            None => {
                r.error(at, "this stage has no `kind`".to_owned());
                r.help("write kind: sft or kind: dpo");
                None
            }
        };
        PipelineStage {
            kind: kind.unwrap_or(Stage::Sft),
            recipe: recipe(r, at),
            overrides: overrides(r),
            line: at.line(),
        }
    })
}

fn recipe(r: &mut Reader, at: crate::recipe::yaml::Place) -> PathBuf {
    let Some(entry) = r.take("recipe") else {
        r.error(at, "this stage has no `recipe`".to_owned());
        r.help("write the recipe's path, relative to this file's folder");
        return PathBuf::new();
    };
    r.recipe_path(&entry.value)
}

fn overrides(r: &mut Reader) -> Vec<String> {
    let Some(entry) = r.take("overrides") else {
        return Vec::new();
    };
    let entries = r.mapping("overrides", entry.value);
    entries.iter().map(|e| format!("--{}={}", e.key, e.value)).collect()
}
