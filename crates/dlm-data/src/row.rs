//! A row as JSON, for what looks at it as a whole: the columns it needs, whatever type of Arrow they have.

use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, UInt64Type},
};
use serde_json::{Map, Value};

/// The named columns of row `i`, those that exist.
pub(crate) fn row(batch: &RecordBatch, i: usize, columns: &[&str]) -> Result<Map<String, Value>, String> {
    let mut row = Map::new();
    for name in columns {
        if let Some(column) = batch.column_by_name(name) {
            row.insert((*name).to_owned(), to_json(column, i).map_err(|message| format!("`{name}`: {message}"))?);
        }
    }
    Ok(row)
}

/// A text of a row; `None` where it is missing or null.
pub(crate) fn text<'a>(row: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match row.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{name}` is {}, and has to be text", kind(other))),
    }
}

/// What kind of value it is, for people.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A column as text, whatever type of text it has.
pub(crate) fn strings(column: &ArrayRef) -> Result<StringArray, String> {
    match column.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
            let cast = cast(column, &DataType::Utf8).map_err(|error| error.to_string())?;
            Ok(cast.as_string::<i32>().clone())
        }
        other => Err(format!("a column of type {other} is no text")),
    }
}

/// A value as JSON; fields that are null are left out, as they were before rows with other fields came to the column.
fn to_json(column: &ArrayRef, i: usize) -> Result<Value, String> {
    if column.is_null(i) {
        return Ok(Value::Null);
    }
    let items = |list: &ArrayRef| (0..list.len()).map(|j| to_json(list, j)).collect::<Result<Vec<_>, _>>();
    Ok(match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Utf8 => Value::String(column.as_string::<i32>().value(i).to_owned()),
        DataType::LargeUtf8 => Value::String(column.as_string::<i64>().value(i).to_owned()),
        DataType::Utf8View => Value::String(column.as_string_view().value(i).to_owned()),
        DataType::Boolean => Value::Bool(column.as_boolean().value(i)),
        DataType::List(_) => Value::Array(items(&column.as_list::<i32>().value(i))?),
        DataType::LargeList(_) => Value::Array(items(&column.as_list::<i64>().value(i))?),
        DataType::FixedSizeList(..) => Value::Array(items(&column.as_fixed_size_list().value(i))?),
        DataType::Struct(fields) => {
            let mut object = Map::new();
            for (field, values) in fields.iter().zip(column.as_struct().columns()) {
                let value = to_json(values, i)?;
                if !value.is_null() {
                    object.insert(field.name().clone(), value);
                }
            }
            Value::Object(object)
        }
        DataType::Dictionary(_, values) => {
            let plain = cast(&column.slice(i, 1), values).map_err(|error| error.to_string())?;
            to_json(&plain, 0)?
        }
        DataType::UInt64 => Value::from(column.as_primitive::<UInt64Type>().value(i)),
        other if other.is_integer() => {
            let cast = cast(&column.slice(i, 1), &DataType::Int64).map_err(|error| error.to_string())?;
            Value::from(cast.as_primitive::<Int64Type>().value(0))
        }
        other if other.is_floating() => {
            let cast = cast(&column.slice(i, 1), &DataType::Float64).map_err(|error| error.to_string())?;
            Value::from(cast.as_primitive::<Float64Type>().value(0))
        }
        other => return Err(format!("conversations cannot hold values of type {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Int8Array, UInt64Array};
    use std::sync::Arc;

    #[test]
    fn whole_numbers_stay_what_they_are_to_the_largest() {
        let unsigned: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX, 7]));
        let signed: ArrayRef = Arc::new(Int8Array::from(vec![-3]));
        assert_eq!(to_json(&unsigned, 0), Ok(Value::from(u64::MAX)));
        assert_eq!(to_json(&unsigned, 1), Ok(Value::from(7)));
        assert_eq!(to_json(&signed, 0), Ok(Value::from(-3)));
    }
}
