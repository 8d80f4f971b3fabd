//! Reads parquet files. Texts may be Utf8, LargeUtf8, views, dictionaries or binary. Chats are
//! lists (of any kind) of structs whose fields may come in any order.

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use ::parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowSelection},
    },
    errors::ParquetError,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData},
};
use arrow_array::{
    Array, ArrayRef, Int64Array, LargeBinaryArray, LargeListArray, RecordBatch, StructArray,
    cast::AsArray, types::Int64Type,
};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType, Field};

use serde_json::Value;

use super::cell::{BATCH, Cell, RawRow, TEMPLATE_COLUMNS, message_of, role_of_from, text_or_chat};
use super::parquet_file::ParquetFile;
use super::parquet_json::json_of;
use crate::data::DataError;
use crate::data::Message;
use crate::data::report::BadRow;
use crate::files::caught::caught;

pub(super) fn broken(path: &Path, error: impl ToString) -> DataError {
    DataError::Parquet { path: path.to_owned(), message: error.to_string() }
}

pub(super) fn open(path: &Path) -> Result<(ParquetFile, ArrowReaderMetadata), DataError> {
    let file = File::open(path).map(ParquetFile);
    let file = file.map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    file.check_footer().map_err(|error| broken(path, error))?;
    let metadata = caught(|| ArrowReaderMetadata::load(&file, Default::default()))
        .map_err(|panic| broken(path, panic))?
        .map_err(|error| broken(path, error))?;
    Ok((file, metadata))
}

/// The number of rows, and the columns.
pub fn describe(path: &Path) -> Result<(usize, Vec<String>), DataError> {
    let (file, metadata) = open(path)?;
    let bytes = file.0.metadata().map_err(|error| broken(path, error))?.len();
    let rows = rows_of(metadata.metadata(), bytes).map_err(|message| broken(path, message))?;
    let columns = metadata.schema().fields().iter().map(|field| field.name().clone()).collect();
    Ok((rows, columns))
}

/// The number of rows, if the counts of a file of `bytes` bytes agree.
///
/// # Errors
/// An error about the counts.
fn rows_of(metadata: &ParquetMetaData, bytes: u64) -> Result<usize, String> {
    /// Equal rows take almost no room, but rows to train on differ.
    const ROWS_A_BYTE: u64 = 1000;
    let said = metadata.file_metadata().num_rows();
    let mut rows = 0_i64;
    for (index, group) in metadata.row_groups().iter().enumerate() {
        let here = group.num_rows();
        let values = group.columns().iter().map(ColumnChunkMetaData::num_values).min();
        // Each row has a value, or a mark for a missing one, in each column.
        if here < 0 || values.is_some_and(|values| values < here) {
            let values = values.unwrap_or(0);
            return Err(format!("row group {index} says {here} rows, but has {values} values"));
        }
        rows = rows.checked_add(here).ok_or("its row groups have more than 2^63 rows")?;
    }
    if rows != said {
        return Err(format!("its footer says {said} rows, but its row groups have {rows}"));
    }
    match u64::try_from(rows) {
        Ok(rows) if rows <= bytes.saturating_mul(ROWS_A_BYTE) => Ok(rows as usize),
        _ => Err(format!("its footer says {said} rows, but the file has only {bytes} bytes")),
    }
}

/// See [`crate::data::source::SourceFile::read`].
///
/// If a batch contains text that is not UTF-8, the parquet reader fails for the whole batch; then
/// its rows are read one by one to find the bad ones.
pub fn read(
    path: &Path,
    columns: &[String],
    wanted: &[usize],
    each: &mut dyn FnMut(Vec<RawRow>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let reader = Reader { path, columns, opened: open(path)? };
    let mut rest = wanted;
    while !rest.is_empty() {
        let mut done = 0;
        let outcome = reader.decode(rest, &mut |rows| {
            done += rows.len();
            each(rows)
        });
        rest = &rest[done..];
        match outcome {
            Ok(()) => break,
            Err(ReadError::NotUtf8) => {
                let (batch, later) = rest.split_at(rest.len().min(BATCH));
                each(reader.one_by_one(batch)?)?;
                rest = later;
            }
            Err(ReadError::Other(error)) => return Err(*error),
        }
    }
    Ok(())
}

struct Reader<'a> {
    path: &'a Path,
    columns: &'a [String],
    opened: (ParquetFile, ArrowReaderMetadata),
}

impl Reader<'_> {
    fn one_by_one(&self, wanted: &[usize]) -> Result<Vec<RawRow>, DataError> {
        let mut found = Vec::with_capacity(wanted.len());
        for &row in wanted {
            let outcome = self.decode(&[row], &mut |rows| {
                found.extend(rows);
                Ok(())
            });
            match outcome {
                Ok(()) => {}
                Err(ReadError::NotUtf8) => {
                    let bad = |column: &String| Cell::Bad(BadRow::BrokenUtf8(column.clone()));
                    found.push(RawRow { row, cells: self.columns.iter().map(bad).collect() });
                }
                Err(ReadError::Other(error)) => return Err(*error),
            }
        }
        Ok(found)
    }

    /// Streams the rows `wanted`, reading only the row groups that contain them.
    fn decode(
        &self,
        wanted: &[usize],
        each: &mut dyn FnMut(Vec<RawRow>) -> Result<(), DataError>,
    ) -> Result<(), ReadError> {
        let (file, metadata) = &self.opened;
        let file = file
            .0
            .try_clone()
            .map(ParquetFile)
            .map_err(|error| ReadError::other(broken(self.path, error)))?;
        let (groups, places, total) = self.places(wanted);
        let mask = ProjectionMask::columns(
            metadata.parquet_schema(),
            self.columns.iter().map(String::as_str),
        );
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_projection(mask)
            .with_batch_size(BATCH)
            .with_row_groups(groups)
            .with_row_selection(RowSelection::from_consecutive_ranges(ranges(&places), total))
            .build()
            .map_err(|error| self.failed(&error))?;
        let panicked = |panic| ReadError::other(broken(self.path, panic));
        let mut reader = reader.into_iter();
        let mut done = 0;
        while let Some(batch) = caught(|| reader.next()).map_err(panicked)? {
            let batch = batch.map_err(|error| self.failed_batch(&error))?;
            let rows = caught(|| self.rows(&batch, &wanted[done..])).map_err(panicked)?;
            let rows = rows.map_err(ReadError::other)?;
            done += rows.len();
            each(rows).map_err(ReadError::other)?;
        }
        if done < wanted.len() {
            return Err(ReadError::other(broken(self.path, "the file ends before its last row")));
        }
        Ok(())
    }

    /// The row groups that contain rows of `wanted`, the positions of these rows within the
    /// selected groups, and the total number of rows in these groups.
    fn places(&self, wanted: &[usize]) -> (Vec<usize>, Vec<usize>, usize) {
        let (mut groups, mut places, mut total) = (Vec::new(), Vec::with_capacity(wanted.len()), 0);
        let (mut start, mut rest) = (0, wanted);
        for (index, group) in self.opened.1.metadata().row_groups().iter().enumerate() {
            let rows = group.num_rows() as usize;
            let (here, later) = rest.split_at(rest.partition_point(|row| *row < start + rows));
            if !here.is_empty() {
                groups.push(index);
                places.extend(here.iter().map(|row| total + row - start));
                total += rows;
            }
            start += rows;
            rest = later;
        }
        (groups, places, total)
    }

    fn rows(&self, batch: &RecordBatch, numbers: &[usize]) -> Result<Vec<RawRow>, DataError> {
        let columns: Vec<Column> = self
            .columns
            .iter()
            .map(|column| self.column(batch, column))
            .collect::<Result<_, _>>()?;
        let row = |(index, row): (usize, &usize)| {
            let cell = |(name, column): (&String, &Column)| {
                column.cell(index, name).unwrap_or_else(Cell::Bad)
            };
            RawRow { row: *row, cells: self.columns.iter().zip(&columns).map(cell).collect() }
        };
        Ok((0..batch.num_rows()).zip(numbers).map(row).collect())
    }

    fn failed(&self, error: &ParquetError) -> ReadError {
        self.sort_out(error.to_string())
    }

    fn failed_batch(&self, error: &ArrowError) -> ReadError {
        self.sort_out(error.to_string())
    }

    fn sort_out(&self, message: String) -> ReadError {
        if message.to_lowercase().contains("utf-8") || message.to_lowercase().contains("utf8") {
            ReadError::NotUtf8
        } else {
            ReadError::other(broken(self.path, message))
        }
    }

    fn column(&self, batch: &RecordBatch, name: &str) -> Result<Column, DataError> {
        if self.opened.1.schema().column_with_name(name).is_none() {
            return Ok(Column::Missing);
        }
        let array = batch.column_by_name(name).ok_or_else(|| {
            broken(
                self.path,
                format!("column `{name}` has different types in different row groups"),
            )
        })?;
        let column = if TEMPLATE_COLUMNS.contains(&name) {
            json_of(array).map(|values| Some(Column::Json(values)))
        } else {
            Column::of(array)
        };
        let column = column.map_err(|error| broken(self.path, error))?;
        column.ok_or_else(|| DataError::ColumnType {
            path: self.path.to_owned(),
            column: name.to_owned(),
            found: array.data_type().to_string(),
            wanted: "text or chats".to_owned(),
        })
    }
}

enum ReadError {
    NotUtf8,
    Other(Box<DataError>),
}

impl ReadError {
    fn other(error: DataError) -> Self {
        Self::Other(Box::new(error))
    }
}

/// Groups ascending rows into ranges of consecutive rows.
fn ranges(rows: &[usize]) -> impl Iterator<Item = Range<usize>> {
    rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1)
}

enum Column {
    Texts(LargeBinaryArray),
    Chats(Box<Chats>),
    /// Numbers that are 0 or 1.
    Flags(Int64Array),
    /// A column of [`TEMPLATE_COLUMNS`].
    Json(Vec<Value>),
    /// The file lacks the column, which other files of the split have.
    Missing,
}

struct Chats {
    lists: LargeListArray,
    messages: StructArray,
    roles: LargeBinaryArray,
    /// `None` if contents are lists of blocks, which are among `fields`.
    contents: Option<LargeBinaryArray>,
    /// Whether the messages are `from`/`value` objects.
    from: bool,
    /// All fields of each message as JSON, if the fields are not just role and content.
    fields: Option<Vec<Value>>,
}

impl Column {
    /// `None` if the type is neither text nor chats nor flags.
    fn of(array: &ArrayRef) -> Result<Option<Self>, ArrowError> {
        if let Some(texts) = texts(array)? {
            return Ok(Some(Self::Texts(texts)));
        }
        if array.data_type() == &DataType::Boolean || array.data_type().is_integer() {
            let numbers = cast(array, &DataType::Int64)?;
            return Ok(Some(Self::Flags(numbers.as_primitive::<Int64Type>().clone())));
        }
        let (DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item)) = array.data_type()
        else {
            return Ok(None);
        };
        let DataType::Struct(fields) = item.data_type() else { return Ok(None) };
        let field = |name: &str| fields.iter().position(|field: &Arc<Field>| field.name() == name);
        let from = field("role").is_none();
        let (Some(role), Some(content)) =
            (field("role").or(field("from")), field("content").or(field("value")))
        else {
            return Ok(None);
        };
        let lists = cast(array, &DataType::LargeList(item.clone()))?.as_list::<i64>().clone();
        let messages = lists.values().as_struct().clone();
        let Some(roles) = texts(messages.column(role))? else { return Ok(None) };
        let contents = texts(messages.column(content))?;
        if contents.is_none()
            && !matches!(fields[content].data_type(), DataType::List(_) | DataType::LargeList(_))
        {
            return Ok(None);
        }
        let plain = fields.len() == 2 && role < content && contents.is_some();
        let all: ArrayRef = Arc::new(messages.clone());
        let fields = if plain { None } else { Some(json_of(&all)?) };
        Ok(Some(Self::Chats(Box::new(Chats { lists, messages, roles, contents, from, fields }))))
    }

    fn cell(&self, row: usize, name: &str) -> Result<Cell, BadRow> {
        match self {
            Self::Texts(texts) => text_or_chat(text(texts, row, || name.to_owned())?, name),
            Self::Missing if TEMPLATE_COLUMNS.contains(&name) => Ok(Cell::Json(Value::Null)),
            Self::Missing => Err(BadRow::MissingField(name.to_owned())),
            Self::Json(values) => Ok(Cell::Json(values[row].clone())),
            Self::Flags(flags) if flags.is_null(row) => Err(BadRow::Null(name.to_owned())),
            Self::Flags(flags) => match flags.value(row) {
                flag @ (0 | 1) => Ok(Cell::Flag(flag == 1)),
                _ => Err(BadRow::WrongType(name.to_owned())),
            },
            Self::Chats(chats) => {
                let Chats { lists, messages, roles, contents, from, fields } = chats.as_ref();
                if lists.is_null(row) {
                    return Err(BadRow::Null(name.to_owned()));
                }
                let offsets = lists.value_offsets();
                let places = offsets[row] as usize..offsets[row + 1] as usize;
                let message = |place: usize| {
                    if messages.is_null(place) {
                        return Err(BadRow::Null(name.to_owned()));
                    }
                    let role = text(roles, place, || format!("{name}.role"))?;
                    let field = || format!("{name}.content");
                    let content = match contents {
                        Some(contents) => text(contents, place, field),
                        None => Err(BadRow::Null(field())),
                    };
                    if let Some(Value::Object(fields)) = fields.as_ref().map(|all| &all[place]) {
                        return match content {
                            Err(BadRow::BrokenUtf8(field)) => Err(BadRow::BrokenUtf8(field)),
                            _ => message_of(fields.clone(), name),
                        };
                    }
                    let role = if *from { role_of_from(&role).to_owned() } else { role };
                    Ok(Message::new(role, content?))
                };
                places.map(message).collect::<Result<_, _>>().map(Cell::Chat)
            }
        }
    }
}

/// A text array of any kind as bytes; `None` for other arrays.
fn texts(array: &ArrayRef) -> Result<Option<LargeBinaryArray>, ArrowError> {
    let value_type = match array.data_type() {
        DataType::Dictionary(_, value) => value.as_ref(),
        other => other,
    };
    let array = match value_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            cast(array, &DataType::LargeUtf8)?
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => array.clone(),
        DataType::Null => cast(array, &DataType::LargeUtf8)?,
        _ => return Ok(None),
    };
    Ok(Some(cast(&array, &DataType::LargeBinary)?.as_binary::<i64>().clone()))
}

fn text(texts: &LargeBinaryArray, row: usize, name: impl Fn() -> String) -> Result<String, BadRow> {
    if texts.is_null(row) {
        return Err(BadRow::Null(name()));
    }
    std::str::from_utf8(texts.value(row)).map(str::to_owned).map_err(|_| BadRow::BrokenUtf8(name()))
}

#[cfg(test)]
mod tests;
