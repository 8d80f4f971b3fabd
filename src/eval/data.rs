//! The rows of a task's splits.

use std::path::{Path, PathBuf};

use super::config::DataConfig;
use super::error::EvalError;
use super::row::Row;
use crate::data::records;
use crate::hub::resolve::{SplitName, resolve_dataset};

/// The places in which data sets are searched.
#[derive(Debug, Clone, Default)]
pub struct DataFolder {
    /// A folder that holds data sets under their hub ids, for example
    /// `DIR/cais/mmlu/anatomy/test-00000-of-00001.parquet`. Other sets come from the hub's cache or
    /// the hub.
    pub folder: Option<PathBuf>,
}

/// The rows of a split, from one or several files.
#[derive(Debug, Default)]
pub struct Rows {
    pub rows: Vec<Row>,
    /// Each file with the number of its rows.
    files: Vec<(PathBuf, usize)>,
}

impl Rows {
    /// Rows that are in no file of a data set.
    pub fn written(rows: Vec<Row>, file: &Path) -> Self {
        let files = vec![(file.to_owned(), rows.len())];
        Self { rows, files }
    }

    /// The file of a row, and the row's place in it from 0.
    pub fn place(&self, row: usize) -> (PathBuf, usize) {
        let mut rest = row;
        for (file, rows) in &self.files {
            if rest < *rows {
                return (file.clone(), rest);
            }
            rest -= rows;
        }
        (PathBuf::new(), row)
    }
}

impl DataFolder {
    /// Reads a split.
    ///
    /// # Errors
    /// The data set or the split is not found, or a file cannot be read.
    pub fn read(&self, task: &str, data: &DataConfig, split: &str) -> Result<Rows, EvalError> {
        let files = match data.files.is_empty() {
            true => self.files(data, split)?,
            false => given_files(task, data, split)?,
        };
        let mut rows = Rows::default();
        for file in files {
            let read = records(&file)?;
            rows.files.push((file, read.len()));
            rows.rows.extend(read);
        }
        if rows.rows.is_empty() {
            let message = format!("split `{split}` of {} has no rows", data.path);
            let help = "check the files of the data set".to_owned();
            return Err(EvalError::Task { task: task.to_owned(), message, help });
        }
        Ok(rows)
    }

    fn files(&self, data: &DataConfig, split: &str) -> Result<Vec<PathBuf>, EvalError> {
        let local = self.folder.as_ref().map(|folder| folder.join(&data.path));
        let local = local.filter(|path| path.is_dir());
        let beside = Some(data.folder.join(&data.path)).filter(|path| path.is_dir());
        let id = match local.or(beside) {
            Some(path) => path.display().to_string(),
            None => data.path.clone(),
        };
        let name = SplitName {
            config: data.name.as_deref(),
            revision: data.revision.as_deref(),
            ..SplitName::new(&id, split)
        };
        Ok(resolve_dataset(&name)?)
    }
}

fn given_files(task: &str, data: &DataConfig, split: &str) -> Result<Vec<PathBuf>, EvalError> {
    let failed = |message: String, help: &str| {
        Err(EvalError::Task { task: task.to_owned(), message, help: help.to_owned() })
    };
    let Some((_, names)) = data.files.iter().find(|(name, _)| name == split) else {
        let splits: Vec<String> = data.files.iter().map(|(name, _)| format!("`{name}`")).collect();
        let message = format!("no split `{split}` in data_files, which has {}", splits.join(", "));
        return failed(message, "add the split to data_files, or name one that exists");
    };
    let mut files = Vec::new();
    for name in names {
        let places = [PathBuf::from(name), data.folder.join(name)];
        match places.iter().find(|path| path.is_file()) {
            Some(path) => files.push(path.clone()),
            None => {
                let message = format!("no file {name}, and none in {}", data.folder.display());
                return failed(message, "correct the path in data_files");
            }
        }
    }
    Ok(files)
}
