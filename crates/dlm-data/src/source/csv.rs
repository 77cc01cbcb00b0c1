//! Comma-separated values: records, fields, and what type their columns have (RFC 4180).

use super::bytes::Content;
use datafusion::arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder},
    datatypes::DataType,
};
use std::{
    borrow::Cow,
    io::{self, BufRead},
    sync::Arc,
};

/// Appends the next record with its line end; false at the end of the file.
pub(crate) fn next_record(content: &mut Content, into: &mut Vec<u8>, separator: u8) -> io::Result<bool> {
    let start = into.len();
    let mut quotes = Quotes::default();
    loop {
        let line = into.len();
        if content.read_until(b'\n', into)? == 0 {
            return match quotes {
                Quotes::Within => {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends within a quoted field"))
                }
                _ => Ok(into.len() > start),
            };
        }
        quotes = into[line..].iter().fold(quotes, |quotes, byte| quotes.after(*byte, separator));
        if quotes != Quotes::Within {
            return Ok(true);
        }
    }
}

/// Where a byte stands: only where a field begins does a quote open one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Quotes {
    #[default]
    FieldStart,
    Within,
    /// Behind a closing quote, which a second one opens again.
    Closed,
    Outside,
}

impl Quotes {
    fn after(self, byte: u8, separator: u8) -> Self {
        match self {
            Self::Within if byte == b'"' => Self::Closed,
            Self::Within => Self::Within,
            Self::FieldStart | Self::Closed if byte == b'"' => Self::Within,
            _ if byte == separator => Self::FieldStart,
            _ => Self::Outside,
        }
    }
}

/// The fields of a record. `None` stands for nothing between two separators; an empty quoted field is an empty text.
pub(crate) fn fields(record: &str, separator: char) -> Result<Vec<Option<Cow<'_, str>>>, String> {
    let mut fields = Vec::new();
    let mut rest = record;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (text, after) = unquoted(quoted).ok_or("a quoted field does not end")?;
                (Some(text), after)
            }
            None => {
                let end = rest.find(separator).unwrap_or(rest.len());
                (Some(Cow::Borrowed(&rest[..end])).filter(|text| !text.is_empty()), &rest[end..])
            }
        };
        fields.push(field);
        if after.is_empty() {
            return Ok(fields);
        }
        let number = fields.len();
        rest =
            after.strip_prefix(separator).ok_or_else(|| format!("text follows the closing quote of field {number}"))?;
    }
}

/// The text of a quoted field whose opening quote was taken away, and what follows its closing quote.
fn unquoted(quoted: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut text = Cow::Borrowed("");
    let mut rest = quoted;
    loop {
        let quote = rest.find('"')?;
        let (piece, after) = (&rest[..quote], &rest[quote + 1..]);
        match after.strip_prefix('"') {
            Some(more) => {
                text.to_mut().push_str(&rest[..=quote]);
                rest = more;
            }
            None if text.is_empty() => return Some((Cow::Borrowed(piece), after)),
            None => {
                text.to_mut().push_str(piece);
                return Some((text, after));
            }
        }
    }
}

/// What all values of a column are; a later kind holds those of the earlier ones, but for true and false beside numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    Empty,
    Bool,
    Int,
    Float,
    Text,
}

impl Kind {
    /// The kind of one value.
    pub(crate) fn of(value: &str) -> Self {
        // Only a number's own characters: no `inf`, `NaN` or `1_000`.
        let may_be_number = value.len() < 32 && value.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
        // A leading zero is an article number, not a quantity.
        let digits = value.trim_start_matches('-');
        let is_padded = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
        match value {
            "true" | "false" | "True" | "False" => Self::Bool,
            _ if !may_be_number || is_padded => Self::Text,
            _ if value.parse::<i64>().is_ok() => Self::Int,
            _ if value.parse::<f64>().is_ok_and(f64::is_finite) => Self::Float,
            _ => Self::Text,
        }
    }

    /// The kind that holds both.
    pub(crate) fn join(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Empty, kind) | (kind, Self::Empty) => kind,
            (Self::Int, Self::Float) | (Self::Float, Self::Int) => Self::Float,
            _ => Self::Text,
        }
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::Empty => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text => DataType::Utf8,
        }
    }
}

/// A column under construction.
pub(crate) enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
}

impl Column {
    /// A column of a type that [`Kind::data_type`] gives, or that several files have in common.
    pub(crate) fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            DataType::Int64 => Self::Int(Int64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            _ => Self::Text(StringBuilder::new()),
        }
    }

    /// Adds a value. One that does not fit the column's kind, which the survey excludes, is null.
    pub(crate) fn push(&mut self, value: Option<&str>) {
        match self {
            Self::Bool(column) => column.append_option(value.map(|value| value.eq_ignore_ascii_case("true"))),
            Self::Int(column) => column.append_option(value.and_then(|value| value.parse().ok())),
            Self::Float(column) => column.append_option(value.and_then(|value| value.parse().ok())),
            Self::Text(column) => column.append_option(value),
        }
    }

    pub(crate) fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Int(column) => Arc::new(column.finish()),
            Self::Float(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quoted_fields_hold_separators_quotes_and_nothing() {
        let read = |record: &str| {
            fields(record, ',')
                .map(|fields| fields.into_iter().map(|field| field.map(Cow::into_owned)).collect::<Vec<_>>())
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(read("a,,\"\",\"x,\"\"y\"\"\",").unwrap(), [text("a"), None, text(""), text("x,\"y\""), None]);
        assert_eq!(read("5\" pipe,2").unwrap(), [text("5\" pipe"), text("2")]);
        assert!(read("\"a\"b,c").unwrap_err().contains("field 1"));
    }

    #[test]
    fn a_column_has_the_narrowest_type_that_holds_all_its_values() {
        let kind = |values: &[&str]| values.iter().map(|value| Kind::of(value)).fold(Kind::Empty, Kind::join);
        assert_eq!(kind(&["1", "-20"]), Kind::Int);
        assert_eq!(kind(&["1", "2.5e3"]), Kind::Float);
        assert_eq!(kind(&["true", "False"]), Kind::Bool);
        assert_eq!(kind(&["true", "1"]), Kind::Text);
        assert_eq!(kind(&["007"]), Kind::Text);
        assert_eq!(kind(&["0", "0.5"]), Kind::Float);
        assert_eq!(kind(&["inf"]), Kind::Text);
        assert_eq!(kind(&["99999999999999999999"]), Kind::Float);
        assert_eq!(kind(&[]), Kind::Empty);
    }

    proptest! {
        #[test]
        fn what_was_written_with_quotes_is_read_again(rows in prop::collection::vec(prop::collection::vec("[a\",\n\t]{0,6}", 2), 1..5)) {
            let quote = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let lines = rows.iter().map(|row| row.iter().map(quote).collect::<Vec<_>>().join(",") + "\n");
            let text: String = lines.collect();
            let mut content: Content = Box::new(io::Cursor::new(text.into_bytes()));
            for row in &rows {
                let mut record = Vec::new();
                prop_assert!(next_record(&mut content, &mut record, b',').unwrap());
                let record = String::from_utf8(record).unwrap();
                let read = fields(record.trim_end_matches('\n'), ',').unwrap();
                prop_assert_eq!(read.into_iter().map(|field| field.unwrap().into_owned()).collect::<Vec<_>>(), row.clone());
            }
        }
    }
}
