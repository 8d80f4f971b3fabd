//! Errors between a recipe and its token ids, with messages for the user.

use std::path::PathBuf;

use super::report::{BadRowAt, RowReport};
use super::template::TemplateError;
use super::tokenizer::TokenizerError;
use crate::hub::HubError;

/// A data set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{}: not a readable parquet file: {message}\nhelp: if it was downloaded or \
         copied, fetch it again; it may have been cut off", path.display()
    )]
    Parquet { path: PathBuf, message: String },
    #[error(
        "{}:{line}: not a JSON object: {message}\n  {text}\nhelp: a .jsonl file has one JSON \
         object per line",
        path.display()
    )]
    Jsonl { path: PathBuf, line: usize, message: String, text: String },
    #[error(
        "{}:{line}: not a JSON object: the file holds one JSON array\nhelp: a .jsonl file has one \
         JSON object per line; convert it: python3 -c \"import json, sys; [print(json.dumps(row)) \
         for row in json.load(sys.stdin)]\" < {0} > rows.jsonl",
        path.display()
    )]
    JsonArray { path: PathBuf, line: usize },
    #[error(
        "{}: `{file_name}` is neither a .parquet nor a .jsonl file\nhelp: convert it to one of \
         these{}",
        path.display(), conversion(file_name)
    )]
    FileKind { path: PathBuf, file_name: String },
    #[error(
        "{}: no column {wanted}; the columns are {}\nhelp: {help}",
        path.display(), list(columns)
    )]
    Column { path: PathBuf, wanted: String, columns: Vec<String>, help: String },
    #[error(
        "{}: column `{column}` holds {found}, not {wanted}\nhelp: a chat is a list of objects with \
         `role` and `content`",
        path.display()
    )]
    ColumnType { path: PathBuf, column: String, found: String, wanted: String },
    #[error("data set `{id}`, split `{split}`: {message}")]
    Mixture { id: String, split: String, message: String },
    #[error("the {split} rows cannot be labelled: {message}\nhelp: {help}")]
    Labels { split: &'static str, message: String, help: String },
    #[error("{}", too_many(split, report, *allowed))]
    TooManyBadRows { split: &'static str, report: Box<RowReport>, allowed: f64 },
    #[error(
        "none of the {} {split} rows that were read is usable\n{report}\nhelp: check the rows \
         above, or raise max_length",
        report.read
    )]
    NothingLeft { split: &'static str, report: Box<RowReport> },
    #[error(
        "no {split} rows in {places}\nhelp: check the files, and fractions and max_train_samples \
         in the recipe"
    )]
    NoRows { split: &'static str, places: String },
    #[error(
        "the data has only {rows} rows to train on, but `max_steps` takes {needed}\n\
         help: with `streaming: true` each row is read once; lower `max_steps`, or train without \
         `streaming`"
    )]
    StreamEnds { rows: usize, needed: usize },
    #[error("`streaming` reads rows in the order of the files, but this mixture has another order")]
    StreamOrder,
    #[error("training row {row} of those that can be used: {message}")]
    StreamedRow { row: usize, message: String },
    #[error("dataset_num_proc: cannot start {threads} threads: {message}")]
    Threads { threads: usize, message: String },
}

/// How to convert a file of a format that datasets reads.
fn conversion(file_name: &str) -> String {
    let Some((stem, format)) = file_name.rsplit_once('.') else { return String::new() };
    match format {
        "json" | "csv" | "arrow" => format!(
            ", in Python: datasets.load_dataset({format:?}, data_files={file_name:?}, \
             split=\"train\").to_parquet({:?})",
            format!("{stem}.parquet")
        ),
        _ => String::new(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn too_many(split: &str, report: &RowReport, allowed: f64) -> String {
    let bad: usize = report.bad.values().sum();
    let mut text = format!(
        "{bad} of {} {split} rows cannot be used: {:.2} %, and max_bad_rows allows {} %\n",
        report.read,
        100.0 * bad as f64 / report.read as f64,
        100.0 * allowed,
    );
    for (reason, count) in &report.bad {
        text.push_str(&format!("  {count} × {reason}\n"));
    }
    text.push_str("the first of these (rows counted from 0):\n");
    for BadRowAt { file, row, reason } in &report.first_bad {
        text.push_str(&format!("  {}, row {row}: {reason}\n", file.display()));
    }
    text.push_str(
        "help: correct or remove these rows, or set max_bad_rows to the share that may be skipped",
    );
    text
}
