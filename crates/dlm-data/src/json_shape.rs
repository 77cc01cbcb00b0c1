//! The columns of a JSON file, found by reading all of it.
//!
//! A column that first appears in the last row counts, and a malformed line is named before any work is done.

use crate::error::{DataError, Result, reading};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::Arc,
};

/// What has been seen of a value so far.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Null,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Shape>),
    Object(Vec<(String, Shape)>),
}

/// The columns and the number of rows of a JSON file, and whether it is one list instead of an object a line.
pub(crate) fn infer(path: &Path) -> Result<((SchemaRef, u64), bool)> {
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(reading(path))?);
    let is_list = begins_with_bracket(&mut reader).map_err(reading(path))?;
    let mut shape = Shape::Object(Vec::new());
    let rows = if is_list { observe_list(path, reader, &mut shape)? } else { observe_lines(path, reader, &mut shape)? };
    let Shape::Object(columns) = shape else { unreachable!("an object stays an object") };
    let fields: Vec<Field> = columns.iter().map(|(name, shape)| Field::new(name, data_type(shape), true)).collect();
    Ok(((Arc::new(Schema::new(fields)), rows), is_list))
}

/// The type that holds values of both, where both came from JSON: fields are joined, empty lists fit every list.
pub(crate) fn common(a: &DataType, b: &DataType) -> Option<DataType> {
    match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (DataType::List(a), DataType::List(b)) => {
            let item = common(a.data_type(), b.data_type())?;
            Some(DataType::List(Arc::new(Field::new(a.name(), item, true))))
        }
        (DataType::Struct(a), DataType::Struct(b)) => {
            let mut fields: Vec<Field> = Vec::with_capacity(a.len());
            for field in a {
                let other = b.iter().find(|other| other.name() == field.name());
                let joined =
                    other.map_or(Some(field.data_type().clone()), |b| common(field.data_type(), b.data_type()));
                fields.push(Field::new(field.name(), joined?, true));
            }
            fields.extend(b.iter().filter(|b| a.iter().all(|a| a.name() != b.name())).map(|b| b.as_ref().clone()));
            Some(DataType::Struct(fields.into()))
        }
        _ => None,
    }
}

fn begins_with_bracket(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let start = reader.fill_buf()?;
    Ok(start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'['))
}

fn observe_lines(path: &Path, mut reader: impl BufRead, shape: &mut Shape) -> Result<u64> {
    let (mut line, mut number, mut rows) = (Vec::new(), 0, 0);
    while reader.read_until(b'\n', &mut line).map_err(reading(path))? > 0 {
        number += 1;
        if !line.trim_ascii().is_empty() {
            let mut json = serde_json::Deserializer::from_slice(&line);
            let observed = Observe { shape, column: "" }.deserialize(&mut json).and_then(|()| json.end());
            observed.map_err(|error| malformed(path, number, &error))?;
            rows += 1;
        }
        line.clear();
    }
    Ok(rows)
}

fn observe_list(path: &Path, reader: impl BufRead, shape: &mut Shape) -> Result<u64> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut rows = Rows { shape, count: 0 };
    let observed = (&mut json).deserialize_seq(&mut rows).and_then(|()| json.end());
    observed.map_err(|error| malformed(path, error.line(), &error))?;
    Ok(rows.count)
}

fn malformed(path: &Path, line: usize, error: &serde_json::Error) -> DataError {
    // serde_json appends its own place, whose line is always 1 when a single line was parsed.
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    DataError::Json { path: path.to_owned(), line, message: format!("{message} (column {})", error.column()) }
}

fn data_type(shape: &Shape) -> DataType {
    match shape {
        Shape::Null => DataType::Null,
        Shape::Bool => DataType::Boolean,
        Shape::Int => DataType::Int64,
        Shape::Float => DataType::Float64,
        Shape::Text => DataType::Utf8,
        Shape::List(item) => DataType::List(Arc::new(Field::new("item", data_type(item), true))),
        Shape::Object(fields) => {
            DataType::Struct(fields.iter().map(|(name, shape)| Field::new(name, data_type(shape), true)).collect())
        }
    }
}

/// The rows of a list.
struct Rows<'a> {
    shape: &'a mut Shape,
    count: u64,
}

impl<'de> Visitor<'de> for &mut Rows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Observe { shape: self.shape, column: "" })?.is_some() {
            self.count += 1;
        }
        Ok(())
    }
}

/// Widens a shape by one more value; `column` is its name, empty for a row.
struct Observe<'a> {
    shape: &'a mut Shape,
    column: &'a str,
}

impl Observe<'_> {
    fn scalar<E: Error>(self, found: Shape) -> Result<(), E> {
        let widened = match (&*self.shape, found) {
            (Shape::Null, found) => found,
            (Shape::Int, Shape::Float) | (Shape::Float, Shape::Int) => Shape::Float,
            (known, found) if *known == found => return Ok(()),
            (_, Shape::Null) if !self.column.is_empty() => return Ok(()),
            (_, found) => return Err(self.clash(&found)),
        };
        *self.shape = widened;
        Ok(())
    }

    fn clash<E: Error>(&self, found: &Shape) -> E {
        if self.column.is_empty() {
            return E::custom(format_args!("found {}, expected an object", name(found)));
        }
        let (column, known) = (self.column, name(self.shape));
        E::custom(format_args!("column `{column}` holds {} here and {known} in an earlier row", name(found)))
    }
}

fn name(shape: &Shape) -> &'static str {
    match shape {
        Shape::Null => "null",
        Shape::Bool => "true or false",
        Shape::Int | Shape::Float => "a number",
        Shape::Text => "text",
        Shape::List(_) => "a list",
        Shape::Object(_) => "an object",
    }
}

impl<'de> DeserializeSeed<'de> for Observe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Observe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar(Shape::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar(Shape::Bool)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar(Shape::Int)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.scalar(if i64::try_from(value).is_ok() { Shape::Int } else { Shape::Float })
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar(Shape::Float)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar(Shape::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if *self.shape == Shape::Null {
            *self.shape = Shape::List(Box::new(Shape::Null));
        }
        let Shape::List(item) = &mut *self.shape else {
            return Err(self.clash(&Shape::List(Box::new(Shape::Null))));
        };
        while items.next_element_seed(Observe { shape: item, column: self.column })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        if *self.shape == Shape::Null {
            *self.shape = Shape::Object(Vec::new());
        }
        let Shape::Object(fields) = &mut *self.shape else {
            return Err(self.clash(&Shape::Object(Vec::new())));
        };
        while let Some(key) = entries.next_key::<String>()? {
            let at = fields.iter().position(|(name, _)| *name == key).unwrap_or_else(|| {
                fields.push((key.clone(), Shape::Null));
                fields.len() - 1
            });
            entries.next_value_seed(Observe { shape: &mut fields[at].1, column: &key })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn inferred(text: &str) -> Result<(SchemaRef, u64, bool)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.json");
        fs::write(&path, text).unwrap();
        infer(&path).map(|((schema, rows), is_list)| (schema, rows, is_list))
    }

    #[test]
    fn a_column_of_the_last_row_counts_and_numbers_widen() {
        let (schema, rows, is_list) = inferred("{\"a\": 1}\n\n{\"a\": 2.5, \"b\": null}\n{\"b\": [\"x\"]}").unwrap();
        assert_eq!((rows, is_list), (3, false));
        assert_eq!(schema.field_with_name("a").unwrap().data_type(), &DataType::Float64);
        assert!(matches!(schema.field_with_name("b").unwrap().data_type(), DataType::List(_)));
    }

    #[test]
    fn one_list_of_objects_gives_the_same_columns_as_one_object_a_line() {
        let (lines, ..) = inferred("{\"a\": {\"b\": true}}\n{\"a\": {\"c\": \"x\"}}\n").unwrap();
        let (list, rows, is_list) = inferred(" [{\"a\": {\"b\": true}},\n {\"a\": {\"c\": \"x\"}}]\n").unwrap();
        assert_eq!((rows, is_list), (2, true));
        assert_eq!(lines, list);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let says = |text: &str| inferred(text).unwrap_err().to_string();
        assert!(
            says("{\"a\": 1}\n{\"a\": }\n").contains("line 2: expected value"),
            "{}",
            says("{\"a\": 1}\n{\"a\": }\n")
        );
        assert!(says("{\"a\": 1}\n\n{\"a\": \"x\"}").contains("line 3: column `a` holds text here and a number"));
        assert!(says("{\"a\": 1}\n3\n").contains("line 2: found a number, expected an object"));
        assert!(says("[{\"a\": 1},\n{\"a\": tru}]").contains("line 2"));
        assert!(says("{\"a\": \"\u{1}").contains("line 1"));
        assert!(says("{\"a\": 1} {\"a\": 2}").contains("line 1: trailing characters"));
    }
}
