//! The columns of a JSON file, found by looking at every row.
//!
//! A column that first appears in the last row counts, and a malformed row is named before any work is done.

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use std::{fmt, sync::Arc};

/// What has been seen of a value so far.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Null,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Shape>),
    Object(Vec<(String, Shape)>),
}

/// The columns of the rows seen so far.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    shape: Shape,
    /// The shape before the row at hand, made anew only when a row changed it.
    before: Shape,
}

impl Default for Columns {
    fn default() -> Self {
        let shape = Shape::Object(Vec::new());
        Self { before: shape.clone(), shape }
    }
}

impl Columns {
    /// Looks at one more row. One that is malformed or does not fit changes nothing.
    pub(crate) fn see(&mut self, row: &[u8]) -> serde_json::Result<()> {
        let mut json = serde_json::Deserializer::from_slice(row);
        let mut is_changed = false;
        let seed = Observe { shape: &mut self.shape, column: "", is_changed: &mut is_changed };
        let seen = seed.deserialize(&mut json).and_then(|()| json.end());
        if is_changed {
            match seen {
                Ok(()) => self.before = self.shape.clone(),
                Err(_) => self.shape = self.before.clone(),
            }
        }
        seen
    }

    /// Adds what was seen of later rows; false when the two do not fit each other.
    pub(crate) fn join(&mut self, later: Self) -> bool {
        let Some(shape) = joined(self.shape.clone(), later.shape) else { return false };
        *self = Self { before: shape.clone(), shape };
        true
    }

    /// The columns as Arrow sees them.
    pub(crate) fn schema(&self) -> Schema {
        let Shape::Object(columns) = &self.shape else { unreachable!("a row is an object") };
        Schema::new(columns.iter().map(|(name, shape)| Field::new(name, data_type(shape), true)).collect::<Vec<_>>())
    }
}

fn joined(a: Shape, b: Shape) -> Option<Shape> {
    Some(match (a, b) {
        (Shape::Null, other) | (other, Shape::Null) => other,
        (Shape::Int, Shape::Float) | (Shape::Float, Shape::Int) => Shape::Float,
        (Shape::List(a), Shape::List(b)) => Shape::List(Box::new(joined(*a, *b)?)),
        (Shape::Object(mut fields), Shape::Object(others)) => {
            for (name, other) in others {
                match fields.iter_mut().find(|(known, _)| *known == name) {
                    None => fields.push((name, other)),
                    Some((_, shape)) => *shape = joined(std::mem::replace(shape, Shape::Null), other)?,
                }
            }
            Shape::Object(fields)
        }
        (a, b) if a == b => a,
        _ => return None,
    })
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

/// Widens a shape by one more value; `column` is its name, empty for a row.
struct Observe<'a> {
    shape: &'a mut Shape,
    column: &'a str,
    is_changed: &'a mut bool,
}

impl Observe<'_> {
    fn scalar<E: Error>(self, found: Shape) -> Result<(), E> {
        let widened = match (&*self.shape, found) {
            (known, found) if *known == found => return Ok(()),
            (Shape::Float, Shape::Int) => return Ok(()),
            (Shape::Null, found) => found,
            (Shape::Int, Shape::Float) => Shape::Float,
            (_, Shape::Null) if !self.column.is_empty() => return Ok(()),
            (_, found) => return Err(self.clash(&found)),
        };
        *self.shape = widened;
        *self.is_changed = true;
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
            *self.is_changed = true;
        }
        let Shape::List(item) = &mut *self.shape else {
            return Err(self.clash(&Shape::List(Box::new(Shape::Null))));
        };
        let (column, is_changed) = (self.column, self.is_changed);
        while items.next_element_seed(Observe { shape: item, column, is_changed: &mut *is_changed })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        if *self.shape == Shape::Null {
            *self.shape = Shape::Object(Vec::new());
            *self.is_changed = true;
        }
        let Shape::Object(fields) = &mut *self.shape else {
            return Err(self.clash(&Shape::Object(Vec::new())));
        };
        while let Some(key) = entries.next_key::<String>()? {
            let at = fields.iter().position(|(name, _)| *name == key).unwrap_or_else(|| {
                fields.push((key.clone(), Shape::Null));
                *self.is_changed = true;
                fields.len() - 1
            });
            let is_changed = &mut *self.is_changed;
            entries.next_value_seed(Observe { shape: &mut fields[at].1, column: &key, is_changed })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rows: &[&str]) -> serde_json::Result<Columns> {
        let mut columns = Columns::default();
        rows.iter().try_for_each(|row| columns.see(row.as_bytes()))?;
        Ok(columns)
    }

    #[test]
    fn a_column_of_the_last_row_counts_and_numbers_widen() {
        let schema = seen(&["{\"a\": 1}", "{\"a\": 2.5, \"b\": null}", "{\"b\": [\"x\"]}"]).unwrap().schema();
        assert_eq!(schema.field_with_name("a").unwrap().data_type(), &DataType::Float64);
        assert!(matches!(schema.field_with_name("b").unwrap().data_type(), DataType::List(_)));
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        let says = |rows: &[&str]| seen(rows).unwrap_err().to_string();
        assert!(says(&["{\"a\": }"]).contains("expected value"));
        assert!(says(&["{\"a\": 1}", "{\"a\": \"x\"}"]).contains("column `a` holds text here and a number"));
        assert!(says(&["3"]).contains("found a number, expected an object"));
        assert!(says(&["{\"a\": 1} {\"a\": 2}"]).contains("trailing characters"));
    }

    #[test]
    fn a_row_that_does_not_fit_leaves_no_trace() {
        let mut columns = seen(&["{\"a\": 1}"]).unwrap();
        let before = columns.schema();
        assert!(columns.see(b"{\"b\": [1], \"a\": \"x\"}").is_err());
        assert_eq!(columns.schema(), before);
        columns.see(b"{\"b\": \"x\"}").unwrap();
    }

    #[test]
    fn rows_seen_in_two_parts_give_what_they_give_together() {
        let rows = [
            "{\"a\": 1, \"m\": [{\"r\": \"x\"}]}",
            "{\"b\": null}",
            "{\"m\": [], \"a\": 0.5}",
            "{\"m\": [{\"s\": true}], \"b\": 1}",
        ];
        for middle in 0..rows.len() {
            let mut columns = seen(&rows[..middle]).unwrap();
            assert!(columns.join(seen(&rows[middle..]).unwrap()));
            assert_eq!(columns.schema(), seen(&rows).unwrap().schema());
        }
        assert!(!seen(&["{\"a\": 1}"]).unwrap().join(seen(&["{\"a\": []}"]).unwrap()));
    }
}
