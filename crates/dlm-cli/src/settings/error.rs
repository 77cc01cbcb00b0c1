//! What can be wrong with settings: always with the key, where it was set, and what to do.

use super::keys::Settings;
use serde_json::Value;
use std::path::PathBuf;

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file's name does not say what it holds.
    #[error("`{}` is neither TOML nor YAML by its name", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file is not well formed.
    #[error("`{origin}` is not well formed{}: {message}", at(*line, *column))]
    Malformed {
        /// The file, or what else was read.
        origin: String,
        /// Line, from 1.
        line: Option<usize>,
        /// Column, from 1.
        column: Option<usize>,
        /// What the parser says.
        message: String,
    },
    /// A key of `dlm.toml` stands outside its profiles.
    #[error("`{key}` in {origin} stands outside every profile")]
    OutsideProfile {
        /// The key.
        key: String,
        /// The file.
        origin: String,
    },
    /// There is no profile of that name.
    #[error("there is no profile `{name}`")]
    UnknownProfile {
        /// The name.
        name: String,
        /// The profiles there are.
        known: Vec<String>,
    },
    /// A key is no setting.
    #[error("`{key}` in {origin} is not a setting")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it was set.
        origin: String,
        /// The setting it comes nearest to.
        nearest: Option<String>,
    },
    /// A value is of the wrong kind or outside its range.
    #[error("`{key}` in {origin} is {found}, but must be {expected}")]
    InvalidValue {
        /// The key.
        key: String,
        /// Where it was set.
        origin: String,
        /// What was found.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// A value asks for another training than the one done here.
    #[error("`{key}` in {origin} is {found}, but {reason}")]
    Refused {
        /// The key.
        key: String,
        /// Where it was set.
        origin: String,
        /// What was found.
        found: String,
        /// What is done instead, and what is accepted.
        reason: &'static str,
    },
    /// Two values do not go together.
    #[error("{} and {} {clash}", pair.0, pair.1)]
    Clash {
        /// The two values.
        pair: Box<(Given, Given)>,
        /// What they do.
        clash: &'static str,
    },
    /// An argument of `--set` is no assignment.
    #[error("`--set {argument}` is no assignment")]
    NoAssignment {
        /// The argument.
        argument: String,
    },
    /// A needed setting is missing.
    #[error("`{key}` is not set, and {need}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What needs it.
        need: &'static str,
    },
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Where it was set.
    pub origin: String,
}

impl std::fmt::Display for Given {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "`{}` ({}, {})", self.key, self.value, self.origin)
    }
}

impl SettingsError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "name a TOML or YAML file that exists and can be read".to_owned(),
            Self::UnknownFormat { .. } => "end its name in `.toml`, `.yaml` or `.yml`".to_owned(),
            Self::Malformed { .. } => return None,
            Self::OutsideProfile { key, .. } => {
                format!("put `{key}` under `[default]`, or under the name of a profile such as `[sft]`")
            }
            Self::UnknownProfile { known, .. } => {
                format!("there are {}; `[NAME]` in `dlm.toml` makes another", join(known))
            }
            Self::UnknownKey { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Self::UnknownKey { .. } => "`dlm config show` lists every setting".to_owned(),
            Self::InvalidValue { key, .. } => format!("without it, the default is `{}`", default_of(key)?),
            Self::Refused { key, .. } => format!("remove `{key}`, or switch it off"),
            Self::Clash { pair, .. } => format!("change `{}` or `{}`", pair.0.key, pair.1.key),
            Self::NoAssignment { .. } => "write `--set key=value`, such as `--set learning_rate=2e-4`".to_owned(),
            Self::Missing { key, .. } => {
                format!("give it in a `--config` file, as `--set {key}=...`, or as `DLM_{}`", key.to_uppercase())
            }
        })
    }
}

/// What a dotted key is where nothing sets it.
fn default_of(key: &str) -> Option<String> {
    let defaults = serde_json::to_value(Settings::default()).ok()?;
    match defaults.pointer(&format!("/{}", key.replace('.', "/")))? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Bool(_) | Value::Number(_)) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn at(line: Option<usize>, column: Option<usize>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(" at line {line}, column {column}"),
        (Some(line), None) => format!(" at line {line}"),
        _ => String::new(),
    }
}

/// `a`, `b` and `c`.
pub(crate) fn join(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "none".to_owned(),
    }
}
