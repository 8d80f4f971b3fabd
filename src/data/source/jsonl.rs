//! Reads files with one JSON object per line. Empty lines are skipped.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::cell::{BATCH, Cell, RawRow, TEMPLATE_COLUMNS, chat_of, text_or_chat};
use crate::data::DataError;
use crate::data::report::BadRow;

/// The number of lines that must be JSON objects. A broken line behind them is an error only if its
/// row is read.
const LOOKED_AT: usize = 100;

/// The number of rows, and the keys of all objects in the order in which they first appear.
pub fn describe(path: &Path) -> Result<(usize, Vec<String>), DataError> {
    let mut rows = 0;
    let mut columns: Vec<String> = Vec::new();
    let mut not_text = None;
    for_each_line(path, |number, line| {
        rows += 1;
        if std::str::from_utf8(line).is_err() {
            not_text.get_or_insert(number);
            return Ok(true);
        }
        match parse::<Keys>(line) {
            Ok(Keys(keys)) => {
                for key in keys {
                    if !columns.contains(&key) {
                        columns.push(key);
                    }
                }
            }
            Err(_) if rows == 1 && begins_array(line) => {
                return Err(DataError::JsonArray { path: path.to_owned(), line: number });
            }
            Err(error) if rows <= LOOKED_AT => return Err(broken(path, number, line, &error)),
            Err(_) => {}
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
pub(super) fn for_each_line(
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

/// Whether a line is, or begins, a list of objects: a file of JSON, not of JSON lines.
fn begins_array(line: &[u8]) -> bool {
    line.strip_prefix(b"[").is_some_and(|rest| matches!(rest.trim_ascii(), [] | [b'{' | b']', ..]))
}

pub(super) fn broken(
    path: &Path,
    line: usize,
    bytes: &[u8],
    error: &serde_json::Error,
) -> DataError {
    let text = String::from_utf8_lossy(bytes);
    let short: String = text.chars().take(100).collect();
    let text = if short.len() < text.len() { format!("{short}…") } else { short };
    DataError::Jsonl { path: path.to_owned(), line, message: error.to_string(), text }
}

/// Parses a line. Python's `json` also writes NaN, Infinity and -Infinity, which are not JSON; they
/// are read as null.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(line).or_else(|error| match without_non_finite(line) {
        Some(line) => serde_json::from_slice(&line),
        None => Err(error),
    })
}

/// The line with null for each NaN, Infinity and -Infinity outside of texts; `None` if it has none.
fn without_non_finite(line: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(line.len());
    let (mut in_text, mut found, mut at) = (false, false, 0);
    while at < line.len() {
        let rest = &line[at..];
        let word = [&b"-Infinity"[..], b"Infinity", b"NaN"]
            .into_iter()
            .find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            found = true;
            out.extend_from_slice(b"null");
            at += word.len();
        } else if in_text && rest[0] == b'\\' {
            out.extend_from_slice(&rest[..rest.len().min(2)]);
            at += 2;
        } else {
            in_text ^= rest[0] == b'"';
            out.push(rest[0]);
            at += 1;
        }
    }
    found.then_some(out)
}

/// The keys of a JSON object. Its values are skipped.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(KeysVisitor)
    }
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
    let mut object: Map<String, Value> =
        parse(line).map_err(|error| broken(path, number, line, &error))?;
    Ok(columns
        .iter()
        .map(|column| match object.remove(column) {
            value if TEMPLATE_COLUMNS.contains(&&**column) => Cell::Json(value.unwrap_or_default()),
            Some(value) => cell(value, column).unwrap_or_else(Cell::Bad),
            None => Cell::Bad(BadRow::MissingField(column.clone())),
        })
        .collect())
}

fn cell(value: Value, column: &str) -> Result<Cell, BadRow> {
    match value {
        Value::String(text) => text_or_chat(text, column),
        Value::Array(items) => chat_of(items, column),
        Value::Bool(flag) => Ok(Cell::Flag(flag)),
        Value::Number(number) if matches!(number.as_u64(), Some(0 | 1)) => {
            Ok(Cell::Flag(number.as_u64() == Some(1)))
        }
        Value::Null => Err(BadRow::Null(column.to_owned())),
        _ => Err(BadRow::WrongType(column.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;
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
        for array in [&b"[\n{\"a\": 1},\n{\"a\": 2}\n]"[..], b"[{\"a\": 1}]", b"[ ]"] {
            let (_dir, path) = file(array);
            let error = describe(&path).unwrap_err().to_string();
            assert!(error.contains(":1: not a JSON object: the file holds one JSON array"));
            assert!(error.contains(&format!("< {} > rows.jsonl", path.display())), "{error}");
        }
        let (_dir, path) = file(b"[1]\n");
        assert!(describe(&path).unwrap_err().to_string().contains(":1: not a JSON object"));
    }
}
