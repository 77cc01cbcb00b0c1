//! JSON with the three floats that JSON lacks: `NaN`, `Infinity`, `-Infinity`.
//!
//! Rows, summaries and configs are written with these bare words, which the server understands and JSON writers refuse.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, Serializer};

/// A value to log.
///
/// Made from numbers, texts, lists, `serde_json` values and [`Object`]s by [`From`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number, finite or not.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Named values.
    Object(Object),
}

/// Values by name: a history row, a summary, a config.
///
/// A slash in a name makes a section on the run's page (`train/loss`); nested objects stay nested.
///
/// ```
/// let row = dlm_wandb::Object::new().with("train/loss", 2.5).with("grad_norm", f64::NAN).with("tokens", 1024);
/// assert_eq!(row.to_string(), r#"{"grad_norm":NaN,"tokens":1024,"train/loss":2.5}"#);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(BTreeMap<String, Value>);

impl Object {
    /// An object without values.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The object with one more value.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.insert(name, value);
        self
    }

    /// Sets a value, whatever stood there.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// The value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes over the values of `newer`; nested objects are joined, anything else is replaced.
    ///
    /// An object with a `_type` (a table's reference) is one value and is replaced as a whole.
    pub fn merge(&mut self, newer: Self) {
        for (name, value) in newer.0 {
            match (self.0.get_mut(&name), value) {
                (Some(Value::Object(old)), Value::Object(new)) if !old.is_media() && !new.is_media() => old.merge(new),
                (_, value) => {
                    self.0.insert(name, value);
                }
            }
        }
    }

    fn is_media(&self) -> bool {
        self.0.contains_key("_type")
    }
}

impl Value {
    /// Reads JSON in which the bare words `NaN`, `Infinity` and `-Infinity` may stand for numbers.
    ///
    /// # Errors
    /// What `serde_json` says of a text that is not such JSON.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        unmark(serde_json::from_str::<serde_json::Value>(&mark(text))?.into())
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The object, if it is one.
    #[must_use]
    pub fn into_object(self) -> Option<Object> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }
}

/// Begins the string that stands for a number while `serde_json` reads; no text of ours begins with NUL.
const MARK: char = '\0';

/// Puts each number and bare word, outside of strings, between quotes and marks it.
///
/// `serde_json` refuses the words, and without a feature of its own rounds the last digit of some numbers.
fn mark(text: &str) -> String {
    let mut marked = String::with_capacity(text.len() * 2);
    let (mut in_string, mut escaped, mut in_word) = (false, false, false);
    for letter in text.chars() {
        let is_word = !in_string && (letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.'));
        match (in_word, is_word) {
            (false, true) => marked.push_str("\"\\u0000"),
            (true, false) => marked.push('"'),
            _ => {}
        }
        in_word = is_word;
        marked.push(letter);
        (in_string, escaped) = match (in_string, escaped, letter) {
            (true, false, '\\') => (true, true),
            (_, false, '"') => (!in_string, false),
            _ => (in_string, false),
        };
    }
    if in_word {
        marked.push('"');
    }
    marked
}

/// Turns marked strings into what they stand for.
fn unmark(value: Value) -> serde_json::Result<Value> {
    Ok(match value {
        Value::Text(text) => match text.strip_prefix(MARK) {
            Some(word) => read_word(word)?,
            None => Value::Text(text),
        },
        Value::List(items) => Value::List(items.into_iter().map(unmark).collect::<serde_json::Result<_>>()?),
        Value::Object(object) => {
            let items = object.into_iter().map(|(name, value)| Ok((name, unmark(value)?)));
            Value::Object(items.collect::<serde_json::Result<_>>()?)
        }
        other => other,
    })
}

fn read_word(word: &str) -> serde_json::Result<Value> {
    Ok(match word {
        "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        word => match (word.parse(), word.parse()) {
            (Ok(whole), _) => Value::Integer(whole),
            (_, Ok(number)) => Value::Float(number), // the three words as well
            _ => return Err(serde::de::Error::custom(format!("`{word}` is no value"))),
        },
    })
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write_float(f, *number),
            Self::Text(text) => write_text(f, text),
            Self::List(items) => {
                f.write_str("[")?;
                for (idx, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if idx == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Self::Object(object) => write!(f, "{object}"),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (idx, (name, value)) in self.0.iter().enumerate() {
            f.write_str(if idx == 0 { "" } else { "," })?;
            write_text(f, name)?;
            write!(f, ":{value}")?;
        }
        f.write_str("}")
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

fn write_float(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: below it each whole float is that integer
    match serde_json::Number::from_f64(number) {
        None if number.is_nan() => f.write_str("NaN"),
        None => f.write_str(if number > 0.0 { "Infinity" } else { "-Infinity" }),
        // The official client writes 4, not 4.0.
        Some(_) if number.fract() == 0.0 && number.abs() < EXACT => write!(f, "{}", number as i64),
        Some(finite) => write!(f, "{finite}"),
    }
}

/// For YAML, which has its own words for the three floats.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(number) => match i64::try_from(*number) {
                Ok(number) => serializer.serialize_i64(number),
                Err(_) => serializer.serialize_i128(*number),
            },
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(object) => object.serialize(serializer),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i128() {
                Some(whole) => Self::Integer(whole),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            serde_json::Value::Object(map) => Self::Object(map.into()),
        }
    }
}

impl IntoIterator for Object {
    type Item = (String, Value);
    type IntoIter = std::collections::btree_map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<serde_json::Map<String, serde_json::Value>> for Object {
    fn from(map: serde_json::Map<String, serde_json::Value>) -> Self {
        map.into_iter().collect()
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Object {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        Self(items.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl<K: Into<String>, V: Into<Value>, const N: usize> From<[(K, V); N]> for Object {
    fn from(items: [(K, V); N]) -> Self {
        items.into_iter().collect()
    }
}

macro_rules! value_from {
    ($($source:ty => $variant:ident),* $(,)?) => {
        $(impl From<$source> for Value {
            fn from(value: $source) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}
value_from!(bool => Bool, i32 => Integer, i64 => Integer, u32 => Integer, u64 => Integer, f32 => Float, f64 => Float,
    &str => Text, String => Text, Object => Object);

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Integer(value as i128) // no platform has a wider usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_floats_are_bare_words_and_come_back() {
        let row = Object::from([("a", f64::NAN), ("b", f64::INFINITY), ("c", f64::NEG_INFINITY)]);
        let text = row.to_string();
        assert_eq!(text, r#"{"a":NaN,"b":Infinity,"c":-Infinity}"#);
        let back = Value::from_json(&text).unwrap().into_object().unwrap();
        assert!(back.get("a").unwrap().as_f64().unwrap().is_nan());
        assert_eq!(back.get("b"), Some(&Value::Float(f64::INFINITY)));
        assert_eq!(back.get("c"), Some(&Value::Float(f64::NEG_INFINITY)));
    }

    #[test]
    fn every_row_and_summary_of_the_official_client_is_read_and_written_alike() {
        let recording = include_str!("../../../tests/wandb/official_client.jsonl");
        let requests = recording.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let mut lines = Vec::new();
        for request in requests {
            for (_, chunk) in request["body"]["files"].as_object().into_iter().flatten() {
                lines.extend(chunk["content"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()));
            }
        }
        lines.retain(|line| line.starts_with('{')); // console lines are no JSON
        assert!(lines.len() > 20 && lines.iter().any(|line| line.contains(":-Infinity")), "{}", lines.len());
        for line in lines {
            let written = Value::from_json(&line).unwrap().to_string();
            // The official client's names come in any order, and it writes the time with an exponent.
            let members = |text: &str| {
                let mut members: Vec<_> = text.split([',', '{', '}']).map(str::to_owned).collect();
                members.retain(|member| !member.starts_with("\"_timestamp\""));
                members.sort();
                members
            };
            assert_eq!(members(&written), members(&line));
        }
    }

    #[test]
    fn words_inside_texts_stay_texts() {
        let text = r#"{"NaN":"Infinity \"NaN\" \\","b":["-Infinity",NaN]}"#;
        assert_eq!(Value::from_json(text).unwrap().to_string(), text);
    }

    #[test]
    fn a_text_that_is_not_json_is_an_error() {
        for text in ["", "{", "nonsense", "1 2", "{\"a\":}", "[1,]", "\"open"] {
            assert!(Value::from_json(text).is_err(), "{text}");
        }
        assert_eq!(Value::from_json(" 1 ").unwrap(), Value::Integer(1));
    }

    #[test]
    fn whole_floats_lose_their_point_and_others_keep_every_digit() {
        let list = Value::List([4.0, 0.1, 1e300, -2.0, 1_795_463_382.044_563_5].map(Value::Float).to_vec());
        assert_eq!(list.to_string(), "[4,0.1,1e+300,-2,1795463382.0445635]");
    }

    #[test]
    fn merging_joins_nested_objects_and_replaces_media() {
        let table = |path: &str| Object::new().with("_type", "table-file").with("path", path);
        let mut summary =
            Object::new().with("a", Object::from([("x", 1), ("y", 2)])).with("t", table("old").with("n", 1));
        summary.merge(Object::new().with("a", Object::from([("y", 3)])).with("t", table("new")));
        assert_eq!(summary.to_string(), r#"{"a":{"x":1,"y":3},"t":{"_type":"table-file","path":"new"}}"#);
    }

    proptest! {
        #[test]
        fn any_float_and_text_survives_writing_and_reading(number: f64, text: String) {
            prop_assume!(!text.starts_with('\0'));
            let back = Value::from_json(&Object::new().with("n", number).with(text.clone() + "k", text.clone()).to_string())
                .unwrap().into_object().unwrap();
            let read = back.get("n").unwrap().as_f64().unwrap();
            prop_assert!(read == number || read.is_nan() && number.is_nan());
            prop_assert_eq!(back.get(&(text.clone() + "k")), Some(&Value::Text(text)));
        }
    }
}
