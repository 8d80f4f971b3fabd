//! Whole rows as JSON objects, with all columns and any nesting.

use std::path::Path;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::cell::BATCH;
use super::parquet_json::json_of;
use super::{SourceFile, jsonl, parquet};
use crate::data::DataError;

/// All rows of a .parquet or .jsonl file in their order. Each row has all columns of the file;
/// missing values are null.
///
/// # Errors
/// The file cannot be read, or a value has no JSON form.
pub(crate) fn records(path: &Path) -> Result<Vec<Map<String, Value>>, DataError> {
    let file = SourceFile::open(path)?;
    match path.extension().is_some_and(|extension| extension == "parquet") {
        true => parquet_records(path),
        false => jsonl_records(path, &file.columns),
    }
}

fn parquet_records(path: &Path) -> Result<Vec<Map<String, Value>>, DataError> {
    let (file, metadata) = parquet::open(path)?;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
        .with_batch_size(BATCH)
        .build()
        .map_err(|error| parquet::broken(path, error))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| parquet::broken(path, error))?;
        let names: Vec<String> =
            batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let columns: Result<Vec<_>, _> = batch.columns().iter().map(json_of).collect();
        let columns = columns.map_err(|error| parquet::broken(path, error))?;
        let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
        for _ in 0..batch.num_rows() {
            let values = columns.iter_mut().map(|column| column.next().unwrap_or_default());
            rows.push(names.iter().cloned().zip(values).collect());
        }
    }
    Ok(rows)
}

fn jsonl_records(path: &Path, columns: &[String]) -> Result<Vec<Map<String, Value>>, DataError> {
    let mut rows = Vec::new();
    jsonl::for_each_line(path, |number, line| {
        let mut object: Map<String, Value> =
            jsonl::parse(line).map_err(|error| jsonl::broken(path, number, line, &error))?;
        let field = |name: &String| (name.clone(), object.remove(name).unwrap_or_default());
        rows.push(columns.iter().map(field).collect());
        Ok(true)
    })?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use ::parquet::arrow::ArrowWriter;
    use arrow_array::{
        ArrayRef, Int32Array, ListArray, RecordBatch, StringArray, StructArray, types::Int32Type,
    };
    use arrow_buffer::OffsetBuffer;
    use arrow_schema::Field;
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_columns_of_parquet_are_json() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")]));
        let item = Arc::new(Field::new("item", texts.data_type().clone(), true));
        let offsets = OffsetBuffer::new(vec![0, 2, 3].into());
        let lists: ArrayRef = Arc::new(ListArray::new(item, offsets, texts, None));
        let numbers: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), Some(0)]),
            Some(vec![]),
        ]));
        let fields = [("choices", lists), ("labels", numbers)].map(|(name, array)| {
            (Arc::new(Field::new(name, array.data_type().clone(), true)), array)
        });
        let targets: ArrayRef = Arc::new(StructArray::from(fields.to_vec()));
        let answers: ArrayRef = Arc::new(Int32Array::from(vec![3, 4]));
        let batch = RecordBatch::try_from_iter([("targets", targets), ("answer", answers)]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let batch = batch.unwrap();
        let mut writer =
            ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let rows: Vec<Value> = records(&path).unwrap().into_iter().map(Value::Object).collect();
        let expected = [
            json!({"targets": {"choices": ["a", null], "labels": [1, 0]}, "answer": 3}),
            json!({"targets": {"choices": ["c"], "labels": []}, "answer": 4}),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn rows_of_jsonl_have_all_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"b\": {\"c\": [2.5]}, \"a\": \"x\"}\n").unwrap();
        let rows: Vec<Value> = records(&path).unwrap().into_iter().map(Value::Object).collect();
        assert_eq!(rows, [json!({"a": 1, "b": null}), json!({"a": "x", "b": {"c": [2.5]}})]);
        std::fs::write(&path, "{\"a\": 1}\n{\"a\"\n").unwrap();
        let error = records(&path).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:2: not a JSON object"), "{error}");
    }
}
