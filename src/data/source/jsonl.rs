//! Reads files with one JSON object per line. Empty lines are skipped.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde_json::{Map, Value};

use super::cell::{BATCH, Cell, RawRow, role_of_from};
use crate::data::DataError;
use crate::data::Message;
use crate::data::report::BadRow;

/// The number of objects whose keys make up the file's columns.
const LOOKED_AT: usize = 100;

/// The number of rows, and the keys of the first hundred objects.
pub fn describe(path: &Path) -> Result<(usize, Vec<String>), DataError> {
    let mut rows = 0;
    let mut columns: Vec<String> = Vec::new();
    let mut not_text = None;
    for_each_line(path, |number, line| {
        rows += 1;
        if rows > LOOKED_AT {
            return Ok(true);
        }
        if std::str::from_utf8(line).is_err() {
            not_text.get_or_insert(number);
        } else {
            for key in object(path, number, line)?.into_iter().map(|(key, _)| key) {
                if !columns.contains(&key) {
                    columns.push(key);
                }
            }
        }
        Ok(true)
    })?;
    // A few bad rows are counted later, but a file without any text is not a .jsonl file.
    match not_text.filter(|_| columns.is_empty()) {
        Some(line) => Err(DataError::Jsonl {
            path: path.to_owned(),
            line,
            message: "the line is not UTF-8".to_owned(),
            text: "(no text; is the file compressed?)".to_owned(),
        }),
        None => Ok((rows, columns)),
    }
}

/// See [`crate::data::source::SourceFile::read`].
pub fn read(
    path: &Path,
    columns: &[String],
    wanted: &[usize],
    each: &mut dyn FnMut(Vec<RawRow>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut wanted = wanted.iter().copied().peekable();
    let mut batch = Vec::new();
    let mut row = 0;
    for_each_line(path, |number, line| {
        if wanted.next_if_eq(&row).is_some() {
            batch.push(RawRow { row, cells: cells(path, number, line, columns)? });
            if batch.len() == BATCH {
                each(std::mem::take(&mut batch))?;
            }
        }
        row += 1;
        Ok(wanted.peek().is_some())
    })?;
    if batch.is_empty() { Ok(()) } else { each(batch) }
}

/// Calls `use_line` with the number (from 1) and the bytes of each line that is not blank, until it
/// returns false.
fn for_each_line(
    path: &Path,
    mut use_line: impl FnMut(usize, &[u8]) -> Result<bool, DataError>,
) -> Result<(), DataError> {
    let failed = |source| DataError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    let mut number = 0;
    while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        number += 1;
        let text = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line).trim_ascii();
        if !text.is_empty() && !use_line(number, text)? {
            break;
        }
        line.clear();
    }
    Ok(())
}

fn object(path: &Path, line: usize, bytes: &[u8]) -> Result<Map<String, Value>, DataError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = String::from_utf8_lossy(bytes);
        let short: String = text.chars().take(100).collect();
        let text = if short.len() < text.len() { format!("{short}…") } else { short };
        DataError::Jsonl { path: path.to_owned(), line, message: error.to_string(), text }
    })
}

fn cells(
    path: &Path,
    number: usize,
    line: &[u8],
    columns: &[String],
) -> Result<Vec<Cell>, DataError> {
    if std::str::from_utf8(line).is_err() {
        return Ok(columns
            .iter()
            .map(|column| Cell::Bad(BadRow::BrokenUtf8(column.clone())))
            .collect());
    }
    let mut object = object(path, number, line)?;
    Ok(columns
        .iter()
        .map(|column| match object.remove(column) {
            Some(value) => cell(value, column).unwrap_or_else(Cell::Bad),
            None => Cell::Bad(BadRow::MissingField(column.clone())),
        })
        .collect())
}

fn cell(value: Value, column: &str) -> Result<Cell, BadRow> {
    match value {
        Value::String(text) => Ok(Cell::Text(text)),
        Value::Array(items) => items
            .into_iter()
            .map(|item| message(item, column))
            .collect::<Result<_, _>>()
            .map(Cell::Chat),
        Value::Bool(flag) => Ok(Cell::Flag(flag)),
        Value::Number(number) if matches!(number.as_u64(), Some(0 | 1)) => {
            Ok(Cell::Flag(number.as_u64() == Some(1)))
        }
        Value::Null => Err(BadRow::Null(column.to_owned())),
        _ => Err(BadRow::WrongType(column.to_owned())),
    }
}

fn message(item: Value, column: &str) -> Result<Message, BadRow> {
    let Value::Object(mut item) = item else { return Err(BadRow::WrongType(column.to_owned())) };
    let mut text = |keys: [&str; 2]| {
        let field = || format!("{column}.{}", keys[0]);
        match keys.into_iter().find_map(|key| item.remove(key).map(|value| (key, value))) {
            Some((key, Value::String(text))) => Ok((key == keys[1], text)),
            Some((_, Value::Null)) => Err(BadRow::Null(field())),
            Some(_) => Err(BadRow::WrongType(field())),
            None => Err(BadRow::MissingField(field())),
        }
    };
    let (from, role) = text(["role", "from"])?;
    let (_, content) = text(["content", "value"])?;
    Ok(Message { role: if from { role_of_from(&role).to_owned() } else { role }, content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::tests::rows;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn texts_and_chats_are_read_and_bad_cells_say_why() {
        let (_dir, path) = file(
            b"{\"a\": [{\"content\": \"x\", \"role\": \"user\"}], \"b\": \"t\"}\n\n\
              {\"b\": 3, \"a\": null}\r\n\
              {\"a\": [{\"from\": \"gpt\", \"value\": \"x\"}]}\n\
              {\"a\": \"\xFF\", \"b\": \"\"}\n\
              {\"a\": [{\"role\": \"user\", \"content\": null}], \"b\": [4]}\n\
              {\"a\": true, \"b\": 0}",
        );
        let name = |name: &str| name.to_owned();
        let expected = [
            [Cell::Chat(vec![Message::new("user", "x")]), Cell::Text(name("t"))],
            [Cell::Bad(BadRow::Null(name("a"))), Cell::Bad(BadRow::WrongType(name("b")))],
            [
                Cell::Chat(vec![Message::new("assistant", "x")]),
                Cell::Bad(BadRow::MissingField(name("b"))),
            ],
            [Cell::Bad(BadRow::BrokenUtf8(name("a"))), Cell::Bad(BadRow::BrokenUtf8(name("b")))],
            [Cell::Bad(BadRow::Null(name("a.content"))), Cell::Bad(BadRow::WrongType(name("b")))],
            [Cell::Flag(true), Cell::Flag(false)],
        ];
        let rows = rows(&path, &["a", "b"]).unwrap();
        assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert!(
            rows.iter().map(|row| &row.cells[..]).eq(expected.iter().map(|cells| &cells[..])),
            "{rows:?}"
        );
    }

    #[test]
    fn only_wanted_rows_are_read() {
        let (_dir, path) = file(b"{\"a\": \"0\"}\n{\"a\": \"1\"}\n{\"a\": \"2\"}\nbroken");
        let mut seen = Vec::new();
        let mut each = |batch: Vec<RawRow>| {
            seen.extend(batch.into_iter().map(|row| row.row));
            Ok(())
        };
        read(&path, &["a".to_owned()], &[0, 2], &mut each).unwrap();
        assert_eq!(seen, [0, 2]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let (_dir, path) = file(b"{\"a\": \"0\"}\n{\"a\": \n");
        let error = describe(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:2: not a JSON object", path.display())), "{error}");
        let (_dir, path) = file(b"[1]\n");
        assert!(describe(&path).unwrap_err().to_string().contains(":1: not a JSON object"));
    }
}
