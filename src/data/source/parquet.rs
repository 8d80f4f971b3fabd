//! Rows out of a parquet file. Texts may be Utf8, LargeUtf8, views, dictionaries or binary; chats are lists (of any kind) of
//! structs whose fields come in any order.

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use ::parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowSelection},
    },
    errors::ParquetError,
};
use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, LargeBinaryArray, LargeListArray, StructArray},
    compute::cast,
    datatypes::{DataType, Field, Int64Type},
    error::ArrowError,
    record_batch::RecordBatch,
};

use super::{BATCH, Cell, RawRow, role_of_from};
use crate::data::{DataError, Message, report::BadRow};

fn broken(path: &Path, error: impl ToString) -> DataError {
    DataError::Parquet { path: path.to_owned(), message: error.to_string() }
}

fn open(path: &Path) -> Result<(File, ArrowReaderMetadata), DataError> {
    let file =
        File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let metadata = ArrowReaderMetadata::load(&file, Default::default())
        .map_err(|error| broken(path, error))?;
    Ok((file, metadata))
}

/// Number of rows, and the columns.
pub fn describe(path: &Path) -> Result<(usize, Vec<String>), DataError> {
    let (_, metadata) = open(path)?;
    let rows = metadata.metadata().file_metadata().num_rows();
    let columns = metadata.schema().fields().iter().map(|field| field.name().clone()).collect();
    Ok((usize::try_from(rows).map_err(|error| broken(path, error))?, columns))
}

/// See [`super::SourceFile::read`].
///
/// Where the texts of a batch are not all UTF-8, which the parquet reader only says of all together, its rows are read one by
/// one to find the bad ones.
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
    opened: (File, ArrowReaderMetadata),
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

    /// Streams the rows `wanted`, touching only the row groups that have any of them.
    fn decode(
        &self,
        wanted: &[usize],
        each: &mut dyn FnMut(Vec<RawRow>) -> Result<(), DataError>,
    ) -> Result<(), ReadError> {
        let (file, metadata) = &self.opened;
        let file = file.try_clone().map_err(|error| ReadError::other(broken(self.path, error)))?;
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
        let mut done = 0;
        for batch in reader {
            let batch = batch.map_err(|error| self.failed_batch(&error))?;
            let rows = self.rows(&batch, &wanted[done..]).map_err(ReadError::other)?;
            done += rows.len();
            each(rows).map_err(ReadError::other)?;
        }
        if done < wanted.len() {
            return Err(ReadError::other(broken(self.path, "it ends before its last row")));
        }
        Ok(())
    }

    /// The row groups that have rows of `wanted`, the places of these rows in all these groups together, and how many rows
    /// these have.
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
        let array = batch.column_by_name(name).ok_or_else(|| {
            broken(self.path, format!("column `{name}` is not the same in all row groups"))
        })?;
        let column = Column::of(array).map_err(|error| broken(self.path, error))?;
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

/// Ascending rows as ranges of consecutive ones.
fn ranges(rows: &[usize]) -> impl Iterator<Item = Range<usize>> {
    rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..run[run.len() - 1] + 1)
}

enum Column {
    Texts(LargeBinaryArray),
    Chats(Box<Chats>),
    /// 0 and 1.
    Flags(Int64Array),
}

struct Chats {
    lists: LargeListArray,
    messages: StructArray,
    roles: LargeBinaryArray,
    contents: LargeBinaryArray,
    /// Whether they are `from`/`value` objects.
    from: bool,
}

impl Column {
    /// `None` for a type that holds neither texts nor chats nor flags.
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
        let (Some(roles), Some(contents)) =
            (texts(messages.column(role))?, texts(messages.column(content))?)
        else {
            return Ok(None);
        };
        Ok(Some(Self::Chats(Box::new(Chats { lists, messages, roles, contents, from }))))
    }

    fn cell(&self, row: usize, name: &str) -> Result<Cell, BadRow> {
        match self {
            Self::Texts(texts) => text(texts, row, || name.to_owned()).map(Cell::Text),
            Self::Flags(flags) if flags.is_null(row) => Err(BadRow::Null(name.to_owned())),
            Self::Flags(flags) => match flags.value(row) {
                flag @ (0 | 1) => Ok(Cell::Flag(flag == 1)),
                _ => Err(BadRow::WrongType(name.to_owned())),
            },
            Self::Chats(chats) => {
                let Chats { lists, messages, roles, contents, from } = chats.as_ref();
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
                    let role = if *from { role_of_from(&role).to_owned() } else { role };
                    Ok(Message {
                        role,
                        content: text(contents, place, || format!("{name}.content"))?,
                    })
                };
                places.map(message).collect::<Result<_, _>>().map(Cell::Chat)
            }
        }
    }
}

/// Any kind of text array as bytes; `None` for an array of something else.
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
mod tests {
    use ::parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
    use arrow::{
        array::{
            ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, LargeListArray,
            LargeStringArray, ListArray, StringArray, StringViewArray, UInt8Array,
        },
        buffer::{NullBuffer, OffsetBuffer, ScalarBuffer},
        datatypes::{Int32Type, Schema},
    };

    use super::super::tests::rows;
    use super::*;

    fn write(
        columns: Vec<(&str, ArrayRef)>,
        group: usize,
    ) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let properties =
            WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties))
                .unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        (dir, path)
    }

    fn messages(fields: [&str; 2], values: [ArrayRef; 2]) -> StructArray {
        let fields: Vec<Field> = fields
            .iter()
            .zip(&values)
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        StructArray::new(fields.into(), values.to_vec(), None)
    }

    fn list(messages: StructArray, offsets: Vec<i32>, nulls: Option<Vec<bool>>) -> ArrayRef {
        let item = Arc::new(Field::new("item", messages.data_type().clone(), true));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Arc::new(ListArray::new(item, offsets, Arc::new(messages), nulls.map(NullBuffer::from)))
    }

    fn texts_of(rows: &[RawRow], column: usize) -> Vec<String> {
        rows.iter()
            .map(|row| match &row.cells[column] {
                Cell::Text(text) => text.clone(),
                Cell::Chat(chat) => chat
                    .iter()
                    .map(|message| format!("{}:{} ", message.role, message.content))
                    .collect(),
                Cell::Flag(flag) => flag.to_string(),
                Cell::Bad(reason) => format!("! {reason}"),
            })
            .collect()
    }

    #[test]
    fn chats_of_any_field_order_and_text_type_are_read() {
        let roles: ArrayRef = Arc::new(
            ["user", "assistant", "user"].into_iter().collect::<DictionaryArray<Int32Type>>(),
        );
        let contents: ArrayRef = Arc::new(LargeStringArray::from(vec!["a", "b", "c"]));
        let plain = list(
            messages(["content", "role"], [contents.clone(), roles.clone()]),
            vec![0, 2, 2, 3],
            None,
        );
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["human", "gpt", "system"]));
        let shared = messages(["from", "value"], [views, contents]);
        let item = Arc::new(Field::new("element", shared.data_type().clone(), true));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0i64, 1, 2, 3]));
        let large: ArrayRef = Arc::new(LargeListArray::new(item, offsets, Arc::new(shared), None));
        let score: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]));
        let (_dir, path) = write(vec![("score", score), ("large", large), ("plain", plain)], 2);
        let rows = rows(&path, &["plain", "large"]).unwrap();
        assert_eq!(texts_of(&rows, 0), ["user:a assistant:b ", "", "user:c "]);
        assert_eq!(texts_of(&rows, 1), ["user:a ", "assistant:b ", "system:c "]);
        let error = super::super::tests::rows(&path, &["score"]).unwrap_err().to_string();
        assert!(error.contains("column `score` holds Float64, not text or chats"), "{error}");
    }

    #[test]
    fn flags_are_booleans_or_the_numbers_0_and_1() {
        let booleans: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
        let numbers: ArrayRef = Arc::new(UInt8Array::from(vec![1, 0, 2]));
        let (_dir, path) = write(vec![("b", booleans), ("n", numbers)], 2);
        let rows = rows(&path, &["b", "n"]).unwrap();
        assert_eq!(texts_of(&rows, 0), ["true", "false", "! `b` is null or has a null in it"]);
        assert_eq!(texts_of(&rows, 1)[..2], ["true", "false"]);
        assert!(matches!(rows[2].cells[1], Cell::Bad(BadRow::WrongType(_))));
    }

    #[test]
    fn nulls_are_bad_rows() {
        let roles: ArrayRef = Arc::new(StringArray::from(vec![Some("user"), None]));
        let contents: ArrayRef = Arc::new(StringArray::from(vec![None, Some("b")]));
        let chats = list(
            messages(["role", "content"], [roles, contents]),
            vec![0, 1, 2, 2],
            Some(vec![true, true, false]),
        );
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("")]));
        let (_dir, path) = write(vec![("chat", chats), ("text", texts)], 100);
        let rows = rows(&path, &["chat", "text"]).unwrap();
        assert_eq!(
            texts_of(&rows, 0),
            [
                "! `chat.content` is null or has a null in it",
                "! `chat.role` is null or has a null in it",
                "! `chat` is null or has a null in it"
            ]
        );
        assert_eq!(texts_of(&rows, 1), ["x", "! `text` is null or has a null in it", ""]);
    }

    #[test]
    fn any_selection_of_rows_over_any_row_groups_is_read() {
        let texts: Vec<String> = (0..2000).map(|row| row.to_string()).collect();
        for group in [1, 7, 600, 5000] {
            let column: ArrayRef = Arc::new(StringArray::from(texts.clone()));
            let (_dir, path) = write(vec![("text", column)], group);
            let wanted: Vec<usize> = (0..2000).filter(|row| row % 3 == 1 || *row > 1990).collect();
            let mut seen = Vec::new();
            read(&path, &["text".to_owned()], &wanted, &mut |rows| {
                seen.extend(rows);
                Ok(())
            })
            .unwrap();
            assert!(seen.iter().map(|row| row.row).eq(wanted.iter().copied()));
            assert!(
                texts_of(&seen, 0).iter().zip(&wanted).all(|(text, row)| *text == row.to_string())
            );
        }
    }

    /// A string column can only be broken below arrow, so the bytes of a good file are changed.
    #[test]
    fn rows_that_are_not_utf8_are_found() {
        let texts: Vec<String> = (0..700).map(|row| format!("text-{row:03}")).collect();
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
        let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), schema.clone(), Some(properties))
                .unwrap();
        writer.write(&RecordBatch::try_new(schema, vec![column]).unwrap()).unwrap();
        writer.close().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let place = bytes.windows(8).position(|window| window == b"text-600").unwrap();
        bytes[place] = 0xFF;
        std::fs::write(&path, bytes).unwrap();
        let rows = rows(&path, &["text"]).unwrap();
        assert!(rows.iter().map(|row| row.row).eq(0..700));
        let bad: Vec<usize> = rows
            .iter()
            .filter(|row| matches!(row.cells[0], Cell::Bad(_)))
            .map(|row| row.row)
            .collect();
        assert_eq!(bad, [600]);
    }

    #[test]
    fn binary_columns_are_texts_where_they_are_utf8() {
        let column: ArrayRef = Arc::new(BinaryArray::from(vec![b"ok".as_slice(), b"\xFF"]));
        let (_dir, path) = write(vec![("text", column)], 10);
        assert_eq!(texts_of(&rows(&path, &["text"]).unwrap(), 0), ["ok", "! `text` is not UTF-8"]);
    }

    #[test]
    fn a_file_that_is_cut_off_is_named() {
        let column: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let (_dir, path) = write(vec![("text", column)], 10);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = rows(&path, &["text"]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}: not a readable parquet file", path.display())),
            "{error}"
        );
    }
}
