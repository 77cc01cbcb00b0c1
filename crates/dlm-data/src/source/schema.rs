//! One type per column out of the several that files have for it.

use super::json_shape;
use crate::error::{DataError, Result};
use datafusion::arrow::datatypes::{DataType, Field, Fields, Schema};
use std::{path::PathBuf, sync::Arc};

/// The columns of several files or sources together: in order of appearance, one type each; text where types were guessed and
/// do not fit.
pub(crate) fn common_schema<'a>(
    parts: impl Iterator<Item = (&'a Schema, PathBuf)>,
    is_guessed: bool,
) -> Result<Schema> {
    let mut fields: Vec<(Field, PathBuf)> = Vec::new();
    for (schema, path) in parts {
        for field in schema.fields() {
            let data_type = plain(field.data_type());
            match fields.iter_mut().find(|(known, _)| known.name() == field.name()) {
                None => fields.push((Field::new(field.name(), data_type, true), path.clone())),
                Some((known, first)) => {
                    let common = common_type(known.data_type(), &data_type).or(is_guessed.then_some(DataType::Utf8));
                    let common = common.ok_or_else(|| DataError::ColumnTypes {
                        column: field.name().clone(),
                        path: path.clone(),
                        found: data_type.to_string(),
                        other: first.clone(),
                        expected: known.data_type().to_string(),
                    })?;
                    *known = Field::new(field.name(), common, true);
                }
            }
        }
    }
    Ok(Schema::new(fields.into_iter().map(|(field, _)| field).collect::<Vec<_>>()))
}

/// A schema with a type for what was null everywhere.
pub(crate) fn settled(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| settled_field(field)).collect::<Vec<_>>())
}

fn settled_field(field: &Field) -> Field {
    Field::new(field.name(), settled_type(field.data_type()), true)
}

fn settled_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(Arc::new(settled_field(item))),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|inner| settled_field(inner)).collect()),
        other => other.clone(),
    }
}

/// One type for the several that Arrow has for text and for lists.
fn plain(data_type: &DataType) -> DataType {
    let field = |field: &Field| Arc::new(Field::new(field.name(), plain(field.data_type()), true));
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Dictionary(_, values) => plain(values),
        DataType::List(item) | DataType::LargeList(item) => DataType::List(field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|inner| field(inner)).collect::<Fields>()),
        other => other.clone(),
    }
}

fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    if a == b {
        return Some(a.clone());
    }
    match (a, b) {
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (a, b) if a.is_integer() && b.is_integer() => Some(DataType::Int64),
        (a, b) if a.is_numeric() && b.is_numeric() => Some(DataType::Float64),
        _ => json_shape::common(a, b),
    }
}
