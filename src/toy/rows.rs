//! Writes the corpus as parquet files, with the columns of UltraChat and UltraFeedback on the hub.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::corpus::{Chat, Preference};
use super::error::ToyError;

/// Writes chats to `data/<split>-00000-of-00001.parquet` in `folder`, with the columns of
/// `HuggingFaceH4/ultrachat_200k`.
///
/// # Errors
/// The file cannot be written.
pub fn write_chats(folder: &Path, split: &str, chats: &[Chat]) -> Result<(), ToyError> {
    let prompts: Vec<&str> =
        chats.iter().map(|chat| chat.first().map_or("", |t| t.content.as_str())).collect();
    let columns = [
        ("prompt", strings(prompts.iter().copied())),
        ("prompt_id", prompt_ids(&prompts)),
        ("messages", conversations(chats.iter())),
    ];
    write_split(folder, split, RecordBatch::try_from_iter(columns)?)
}

/// Writes pairs to `data/<split>-00000-of-00001.parquet` in `folder`, with the columns of
/// `HuggingFaceH4/ultrafeedback_binarized`.
///
/// # Errors
/// The file cannot be written.
pub fn write_preferences(folder: &Path, split: &str, pairs: &[Preference]) -> Result<(), ToyError> {
    let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt.as_str()).collect();
    let chosen = conversations(pairs.iter().map(|pair| &pair.chosen));
    let columns = [
        ("prompt", strings(prompts.iter().copied())),
        ("prompt_id", prompt_ids(&prompts)),
        ("chosen", Arc::clone(&chosen)),
        ("rejected", conversations(pairs.iter().map(|pair| &pair.rejected))),
        ("messages", chosen),
        ("score_chosen", numbers(pairs.iter().map(|pair| pair.score_chosen))),
        ("score_rejected", numbers(pairs.iter().map(|pair| pair.score_rejected))),
    ];
    write_split(folder, split, RecordBatch::try_from_iter(columns)?)
}

fn write_split(folder: &Path, split: &str, rows: RecordBatch) -> Result<(), ToyError> {
    let data = folder.join("data");
    fs::create_dir_all(&data).map_err(ToyError::folder(&data))?;
    let path = data.join(format!("{split}-00000-of-00001.parquet"));
    let file = File::create(&path).map_err(ToyError::write(&path))?;
    write_parquet(file, &rows).map_err(|source| ToyError::Parquet { path, source })
}

fn write_parquet(file: File, rows: &RecordBatch) -> Result<(), ParquetError> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties))?;
    writer.write(rows)?;
    writer.close()?;
    Ok(())
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn numbers(values: impl Iterator<Item = f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values))
}

/// A hash of each prompt, 64 hexadecimal digits as in the hub's data sets.
fn prompt_ids(prompts: &[&str]) -> ArrayRef {
    let ids = prompts.iter().map(|prompt| blake3::hash(prompt.as_bytes()).to_hex());
    Arc::new(StringArray::from_iter_values(ids))
}

/// Chats as a column of the type `list<element: struct<content: string, role: string>>`.
fn conversations<'a>(chats: impl Iterator<Item = &'a Chat>) -> ArrayRef {
    let fields = Fields::from(vec![
        Field::new("content", DataType::Utf8, true),
        Field::new("role", DataType::Utf8, true),
    ]);
    let element = Field::new("element", DataType::Struct(fields.clone()), true);
    let messages = StructBuilder::from_fields(fields, 0);
    let mut lists = ListBuilder::new(messages).with_field(element);
    for chat in chats {
        for turn in chat {
            let message = lists.values();
            for (column, text) in [turn.content.as_str(), turn.role].into_iter().enumerate() {
                let strings: &mut StringBuilder =
                    message.field_builder(column).expect("both fields are strings");
                strings.append_value(text);
            }
            message.append(true);
        }
        lists.append(true);
    }
    Arc::new(lists.finish())
}
