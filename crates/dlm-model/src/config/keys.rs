//! A JSON object read key by key, so that none is overlooked.

use crate::error::{ModelError, Result};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, ops::RangeInclusive, path::Path};

/// Reads the keys of one object and remembers which; null counts as absent.
pub(super) struct Keys<'a> {
    path: &'a Path,
    /// What stands before each key in messages: empty, or `outer.`.
    prefix: String,
    object: &'a Map<String, Value>,
    read: BTreeSet<String>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), object, read: BTreeSet::new() }
    }

    /// The keys of an inner object.
    pub(super) fn object(&mut self, key: &str) -> Result<Option<Self>> {
        let path = self.path;
        let prefix = format!("{}{key}.", self.prefix);
        let object = self.get(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Self { path, prefix, object, read: BTreeSet::new() }))
    }

    pub(super) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let accepted = format!("an integer from {} to {}", range.start(), range.end());
        self.get(key, &accepted, |value| value.as_i64().filter(|number| range.contains(number)))
    }

    pub(super) fn required_integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<i64> {
        self.integer(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number for which `is_accepted` holds.
    pub(super) fn number(
        &mut self,
        key: &str,
        accepted: &str,
        is_accepted: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        self.get(key, accepted, |value| value.as_f64().filter(|&number| number.is_finite() && is_accepted(number)))
    }

    /// A number above zero.
    pub(super) fn positive(&mut self, key: &str) -> Result<Option<f64>> {
        self.number(key, "a number above 0", |number| number > 0.0)
    }

    pub(super) fn required_positive(&mut self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of so many numbers above zero.
    pub(super) fn required_positives(&mut self, key: &str, len: i64) -> Result<Vec<f64>> {
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        let numbers = |value: &'a Value| {
            let list = value.as_array().filter(|list| list.len() as i64 == len)?;
            list.iter().map(number).collect::<Option<Vec<f64>>>()
        };
        self.get(key, &format!("a list of {len} numbers above 0"), numbers)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    pub(super) fn required_flag(&mut self, key: &str) -> Result<bool> {
        self.flag(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn required_word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<T> {
        self.word(key, words)?.ok_or_else(|| self.missing(key))
    }

    /// One of several words.
    pub(super) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let accepted = listed(words.iter().map(|(word, _)| *word));
        let find =
            |value: &Value| words.iter().find(|(word, _)| value.as_str() == Some(word)).map(|(_, meaning)| *meaning);
        self.get(key, &accepted, find)
    }

    /// Ids: one, a list of them, or none.
    pub(super) fn ids(&mut self, key: &str) -> Result<Vec<i64>> {
        let ids = |value: &'a Value| match value {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|id| vec![id]),
        };
        Ok(self.get(key, "an integer or a list of integers", ids)?.unwrap_or_default())
    }

    /// A list, each item one of several words.
    pub(super) fn each_word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Result<Option<Vec<T>>> {
        let accepted = format!("a list of {}", listed(words.iter().map(|(word, _)| *word)));
        let find =
            |item: &Value| words.iter().find(|(word, _)| item.as_str() == Some(word)).map(|(_, meaning)| *meaning);
        self.get(key, &accepted, |value| value.as_array().and_then(|list| list.iter().map(find).collect()))
    }

    /// A key that must be absent, null, or this: any other value asks for a computation that is not done here.
    pub(super) fn only(&mut self, key: &str, expected: &Value) -> Result<()> {
        let is_expected = |value: &Value| {
            let equal_numbers = value.as_f64().is_some() && value.as_f64() == expected.as_f64();
            (value == expected || equal_numbers).then_some(())
        };
        self.get(key, &format!("{expected} or absent"), is_expected).map(|_| ())
    }

    /// A key that must be there and be this, because the family's own default is another.
    pub(super) fn must(&mut self, key: &str, expected: &Value) -> Result<()> {
        if self.value(key).is_none() {
            return Err(self.missing(key));
        }
        let is_expected = |value: &Value| (value == expected).then_some(());
        self.get(key, &expected.to_string(), is_expected).map(|_| ())
    }

    /// Whether the object has the key, be it null.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Takes a key's value as it is.
    pub(super) fn value(&mut self, key: &str) -> Option<&'a Value> {
        self.read.insert(key.to_owned());
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Refuses the keys that nobody read and that are not in `harmless`.
    pub(super) fn finish(&self, family: &'static str, harmless: &[&str]) -> Result<()> {
        let known = |key: &str| self.read.contains(key) || harmless.contains(&key);
        self.object.keys().find(|key| !known(key)).map_or(Ok(()), |key| {
            let key = format!("{}{key}", self.prefix);
            Err(ModelError::UnknownKey { path: self.path.to_owned(), key, family })
        })
    }

    /// The error of a key whose value is refused.
    pub(super) fn refused(&self, key: &str, found: &Value, accepted: impl Into<String>) -> ModelError {
        let key = format!("{}{key}", self.prefix);
        ModelError::Value { path: self.path.to_owned(), key, found: found.to_string(), accepted: accepted.into() }
    }

    /// The error of a key that is needed and absent.
    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { path: self.path.to_owned(), key: format!("{}{key}", self.prefix) }
    }

    fn get<T>(&mut self, key: &str, accepted: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refused(key, value, accepted))
    }
}

/// "`a`, `b` or `c`".
pub(super) fn listed<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
