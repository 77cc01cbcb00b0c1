//! Settings as text: each value with its origin.

use super::resolve::Resolved;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// One setting as it was resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The dotted key.
    pub key: String,
    /// The value; null when it is unset.
    pub value: Value,
    /// What set it.
    pub origin: String,
}

impl Resolved {
    /// Every setting in its documented order.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let Ok(Value::Object(settings)) = serde_json::to_value(&self.settings) else { return Vec::new() };
        let mut entries = Vec::new();
        for (key, value) in settings {
            match value {
                Value::Object(inner) => {
                    entries.extend(inner.into_iter().map(|(leaf, value)| self.entry(format!("{key}.{leaf}"), value)));
                }
                value => entries.push(self.entry(key, value)),
            }
        }
        entries
    }

    fn entry(&self, key: String, value: Value) -> Entry {
        let origin = self.origin(&key);
        Entry { key, value, origin }
    }

    /// The settings as a file for `--config`, with the origin of each value as a comment.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = None;
        for entry in self.entries() {
            let leaf = match entry.key.split_once('.') {
                Some((name, leaf)) => {
                    if table.as_deref() != Some(name) {
                        let _ = writeln!(text, "\n[{name}]"); // writing to a String cannot fail
                        table = Some(name.to_owned());
                    }
                    leaf
                }
                None => &entry.key,
            };
            let set_to_nothing = entry.value.is_null() && entry.origin != super::resolve::DEFAULTS;
            let _ = match toml_text(&entry.value) {
                None if set_to_nothing => writeln!(text, "{leaf} = \"\" # {}", entry.origin),
                Some(value) => writeln!(text, "{leaf} = {value} # {}", entry.origin),
                None => writeln!(text, "# {leaf} is unset"),
            };
        }
        text
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match toml_text(&self.value) {
            Some(value) => write!(formatter, "{} = {value}  from {}", self.key, self.origin),
            None => write!(formatter, "{} is unset  from {}", self.key, self.origin),
        }
    }
}

fn toml_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        // TOML and JSON write these alike.
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        value => toml::Value::try_from(value).ok().map(|value| value.to_string()),
    }
}
