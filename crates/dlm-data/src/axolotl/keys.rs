//! The keys of a block of an Axolotl file, taken out one after the other.

use super::IgnoredKey;
use crate::{
    error::{DataError, Result},
    row::kind,
    suggest::nearest,
};
use serde_json::{Map, Value};

/// A block with its place in the file.
pub(crate) struct Keys {
    place: String,
    values: Map<String, Value>,
}

impl Keys {
    pub(crate) fn new(place: impl Into<String>, values: Map<String, Value>) -> Self {
        Self { place: place.into(), values }
    }

    /// Takes out a value; null is none.
    pub(crate) fn value(&mut self, key: &str) -> Option<Value> {
        self.values.shift_remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.unfit(key, &other, "text")),
        }
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.unfit(key, &other, "true or false")),
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<u64>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| self.unfit(key, &value, "a whole number, 0 or more")),
        }
    }

    pub(crate) fn decimal(&mut self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.unfit(key, &value, "a number")),
        }
    }

    /// A list; any other value is a list of one.
    pub(crate) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        Ok(self.value(key).map(|value| match value {
            Value::Array(list) => list,
            other => vec![other],
        }))
    }

    /// A list of texts; a text is a list of one.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(list) = self.list(key)? else { return Ok(None) };
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(self.unfit(key, &other, "text, or a list of texts")),
        };
        list.into_iter().map(text).collect::<Result<_>>().map(Some)
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.unfit(key, &other, "a mapping")),
        }
    }

    /// Takes out the keys of a table of ignored ones.
    pub(crate) fn take_ignored(&mut self, table: &[(&'static str, &[&str])]) -> Vec<IgnoredKey> {
        let mut ignored = Vec::new();
        for (reason, keys) in table {
            for key in *keys {
                // Switched off, nothing is asked for.
                let given = self.values.shift_remove(*key);
                if given.is_some_and(|value| !value.is_null() && value != false) {
                    ignored.push(IgnoredKey { key: format!("{}{key}", self.prefix()), reason });
                }
            }
        }
        ignored
    }

    /// Refuses the keys of a table that have no equivalent, unless they are null or false.
    pub(crate) fn refuse(&mut self, table: &[(&str, &str)]) -> Result<()> {
        for (key, reason) in table {
            if self.value(key).is_some_and(|value| value != false) {
                return Err(self.wrong(&format!("`{}{key}`: {reason}", self.prefix())));
            }
        }
        Ok(())
    }

    /// The keys that are left.
    pub(crate) fn rest(self) -> Vec<String> {
        self.values.into_iter().map(|(key, _)| key).collect()
    }

    /// Refuses the keys that are left.
    pub(crate) fn finish(self, known: &[&str]) -> Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(DataError::Pipeline {
                path: None,
                line: None,
                message: format!("`{}{key}` is no key that is known", self.prefix()),
                nearest: nearest(key, known.iter().copied()).map(str::to_owned),
            }),
        }
    }

    pub(crate) fn wrong(&self, message: &str) -> DataError {
        DataError::pipeline(message)
    }

    fn unfit(&self, key: &str, found: &Value, expected: &str) -> DataError {
        self.wrong(&format!("`{}{key}` is {}, and has to be {expected}", self.prefix(), kind(found)))
    }

    fn prefix(&self) -> String {
        if self.place.is_empty() { String::new() } else { format!("{}.", self.place) }
    }
}
