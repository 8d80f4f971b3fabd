//! Values of parquet columns as JSON: the fields of messages beside role and content, tools, and
//! variables of the chat template.

use arrow_array::types::{Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, cast::AsArray};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType};
use serde_json::{Map, Value};

/// The values of an array as JSON. Null fields of structs stay null, as in `datasets`.
///
/// # Errors
/// The array has a type without a JSON form, or a text that is not UTF-8.
pub fn json_of(array: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let values = |items: &ArrayRef| json_of(items);
    let some = |values: Vec<Value>| {
        values
            .into_iter()
            .enumerate()
            .map(|(row, value)| if array.is_null(row) { Value::Null } else { value })
            .collect()
    };
    Ok(match array.data_type() {
        DataType::Null => vec![Value::Null; array.len()],
        DataType::Boolean => some(array.as_boolean().iter().map(Value::from).collect()),
        kind if kind.is_unsigned_integer() => {
            let numbers = cast(array, &DataType::UInt64)?;
            some(numbers.as_primitive::<UInt64Type>().iter().map(Value::from).collect())
        }
        kind if kind.is_integer() => {
            let numbers = cast(array, &DataType::Int64)?;
            some(numbers.as_primitive::<Int64Type>().iter().map(Value::from).collect())
        }
        kind if kind.is_floating() => {
            let numbers = cast(array, &DataType::Float64)?;
            some(numbers.as_primitive::<Float64Type>().iter().map(Value::from).collect())
        }
        DataType::Struct(fields) => {
            let columns: Vec<Vec<Value>> =
                array.as_struct().columns().iter().map(values).collect::<Result<_, _>>()?;
            let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
            let row = |_| {
                let fields = fields.iter().zip(&mut columns);
                let fields = fields.map(|(field, column)| {
                    (field.name().clone(), column.next().unwrap_or_default())
                });
                Value::Object(fields.collect::<Map<_, _>>())
            };
            some((0..array.len()).map(row).collect())
        }
        DataType::Map(..) => {
            let maps = array.as_map();
            let keys = values(&cast(maps.keys(), &DataType::Utf8)?)?;
            let entries = values(maps.values())?;
            let row = |window: &[i32]| {
                let places = window[0] as usize..window[1] as usize;
                let pairs = places.map(|place| {
                    let key = keys[place].as_str().unwrap_or_default();
                    (key.to_owned(), entries[place].clone())
                });
                Value::Object(pairs.collect::<Map<_, _>>())
            };
            some(maps.value_offsets().windows(2).map(row).collect())
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => {
            let lists = cast(array, &DataType::LargeList(item.clone()))?;
            let lists = lists.as_list::<i64>();
            let items = values(lists.values())?;
            let row = |window: &[i64]| {
                Value::Array(items[window[0] as usize..window[1] as usize].to_vec())
            };
            some(lists.value_offsets().windows(2).map(row).collect())
        }
        // Texts of all kinds, and times and decimals in their usual writing.
        _ => {
            let texts = cast(array, &DataType::Utf8)?;
            some(texts.as_string::<i32>().iter().map(Value::from).collect())
        }
    })
}
