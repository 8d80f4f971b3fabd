use ::parquet::{
    arrow::ArrowWriter,
    file::{metadata::FileMetaData, properties::WriterProperties},
};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, LargeListArray,
    LargeStringArray, ListArray, StringArray, StringViewArray, UInt8Array, types::Int32Type,
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::Schema;

use super::*;
use crate::data::source::tests::rows;

fn write(columns: Vec<(&str, ArrayRef)>, group: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
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
            Cell::Json(value) => value.to_string(),
            Cell::Bad(reason) => format!("! {reason}"),
        })
        .collect()
}

#[test]
fn chats_of_any_field_order_and_text_type_are_read() {
    let roles: ArrayRef =
        Arc::new(["user", "assistant", "user"].into_iter().collect::<DictionaryArray<Int32Type>>());
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
    let error = crate::data::source::tests::rows(&path, &["score"]).unwrap_err().to_string();
    assert!(error.contains("column `score` holds Float64, not text or chats"), "{error}");
}

#[test]
fn flags_are_booleans_or_the_numbers_0_and_1() {
    let booleans: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]));
    let numbers: ArrayRef = Arc::new(UInt8Array::from(vec![1, 0, 2]));
    let (_dir, path) = write(vec![("b", booleans), ("n", numbers)], 2);
    let rows = rows(&path, &["b", "n"]).unwrap();
    assert_eq!(texts_of(&rows, 0), ["true", "false", "! `b` is null or contains null"]);
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
            "! `chat.content` is null or contains null",
            "! `chat.role` is null or contains null",
            "! `chat` is null or contains null"
        ]
    );
    assert_eq!(texts_of(&rows, 1), ["x", "! `text` is null or contains null", ""]);
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
        assert!(texts_of(&seen, 0).iter().zip(&wanted).all(|(text, row)| *text == row.to_string()));
    }
}

/// Arrow refuses to write broken UTF-8, so the bytes of a valid file are changed.
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
    let bad: Vec<usize> =
        rows.iter().filter(|row| matches!(row.cells[0], Cell::Bad(_))).map(|row| row.row).collect();
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

#[test]
fn further_fields_of_messages_and_tools_are_read() {
    let text = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let structs = |fields: Vec<(&str, ArrayRef)>| {
        let names: Vec<Field> = fields
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let values = fields.into_iter().map(|(_, array)| array).collect();
        StructArray::new(names.into(), values, None)
    };
    let calls = structs(vec![("name", text(vec![Some("f")]))]);
    let chat = structs(vec![
        ("content", text(vec![Some("q"), None, Some("a")])),
        ("role", text(vec![Some("user"), Some("assistant"), Some("assistant")])),
        ("tool_calls", list(calls, vec![0, 0, 1, 1], Some(vec![false, true, false]))),
        ("reasoning", text(vec![None, None, Some("r")])),
    ]);
    let tools = structs(vec![
        ("name", text(vec![Some("f")])),
        ("strict", Arc::new(BooleanArray::from(vec![true]))),
        ("limit", Arc::new(Float64Array::from(vec![1.0]))),
        ("about", text(vec![None])),
    ]);
    let columns =
        vec![("chat", list(chat, vec![0, 3], None)), ("tools", list(tools, vec![0, 1], None))];
    let (_dir, path) = write(columns, 10);
    let cells = &rows(&path, &["chat", "tools"]).unwrap()[0].cells;
    let Cell::Chat(chat) = &cells[0] else { panic!("{cells:?}") };
    let fields: Vec<String> =
        chat.iter().map(|m| Value::from(m.fields().unwrap().clone()).to_string()).collect();
    assert_eq!(
        fields,
        [
            r#"{"content":"q","role":"user"}"#,
            r#"{"role":"assistant","tool_calls":[{"name":"f"}]}"#,
            r#"{"content":"a","role":"assistant","reasoning":"r"}"#,
        ]
    );
    let tools = r#"[{"name":"f","strict":true,"limit":1.0,"about":null}]"#;
    assert_eq!(cells[1], Cell::Json(serde_json::from_str(tools).unwrap()));
}

#[test]
fn contents_may_be_lists_of_blocks() {
    let text = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let blocks = messages(
        ["type", "text"],
        [
            text(vec![Some("text"), Some("text"), Some("text")]),
            text(vec![Some("a"), Some("b"), Some("c")]),
        ],
    );
    let contents = list(blocks, vec![0, 2, 3], None);
    let roles = text(vec![Some("user"), Some("assistant")]);
    let chat = list(messages(["role", "content"], [roles, contents]), vec![0, 2], None);
    let (_dir, path) = write(vec![("chat", chat)], 10);
    let found = rows(&path, &["chat"]).unwrap();
    assert_eq!(texts_of(&found, 0), ["user:ab assistant:c "]);
    let Cell::Chat(chat) = &found[0].cells[0] else { panic!("{found:?}") };
    let blocks = serde_json::json!([{"type": "text", "text": "c"}]);
    assert_eq!(chat[1].fields().unwrap()["content"], blocks);
}

#[test]
fn counts_of_rows_must_agree() {
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let (_dir, path) = write(vec![("text", texts)], 2);
    let (_, opened) = open(&path).unwrap();
    let metadata = opened.metadata();
    assert_eq!(rows_of(metadata, 1000), Ok(3));
    assert!(rows_of(metadata, 0).unwrap_err().contains("the file has only 0 bytes"));
    let with_rows = |rows: i64| {
        let file = metadata.file_metadata();
        let file =
            FileMetaData::new(file.version(), rows, None, None, file.schema_descr_ptr(), None);
        ParquetMetaData::new(file, metadata.row_groups().to_vec())
    };
    for rows in [2, 4, -1, i64::MAX] {
        let message = rows_of(&with_rows(rows), 1000).unwrap_err();
        assert_eq!(message, format!("its footer says {rows} rows, but its row groups have 3"));
    }
}

/// Page headers announce two billion items, which the library skips one by one: items that need
/// bytes, and truth values, which need none.
#[test]
fn a_list_without_an_end_is_an_error() {
    for name in ["endless-list", "endless-truth-values"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/parquet").join(name);
        let started = std::time::Instant::now();
        let outcome = open(&file).and_then(|(file, metadata)| {
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).build();
            let rows: Result<Vec<_>, _> = reader.map_err(|e| broken(Path::new(""), e))?.collect();
            rows.map_err(|error| broken(Path::new(""), error))
        });
        assert!(outcome.is_err());
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
