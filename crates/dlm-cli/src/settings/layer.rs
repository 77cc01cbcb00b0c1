//! One source of settings: where it comes from, and what it says.

use super::error::SettingsError;
use figment::{
    Error, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};
use std::path::Path;

/// Values with the name of the place that set them, such as `sft.yaml` or `DLM_LEARNING_RATE`.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) origin: String,
    pub(crate) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Variables that begin with `DLM_` and are no settings.
const RESERVED: &[&str] = &["DLM_CUDA", "DLM_GOLDEN", "DLM_LOG"];

impl Layer {
    /// A flat file in TOML or YAML.
    pub(crate) fn file(path: &Path) -> Result<Self, SettingsError> {
        let origin = path.display().to_string();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let parse = match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => toml_values,
            Some("yaml" | "yml") => yaml_values,
            _ => return Err(SettingsError::UnknownFormat { path: path.to_owned() }),
        };
        let text = read(path)?;
        let values = parse(&text, &origin)?;
        Ok(Self { origin, values })
    }

    /// The file `dlm.toml` in the current folder: one layer a profile, in the file's terms.
    pub(crate) fn profiles_file(path: &Path) -> Result<Vec<(String, Self)>, SettingsError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let file = path.display().to_string();
        let tables = toml_values(&read(path)?, &file)?;
        let layer = |(profile, value)| match value {
            Value::Dict(_, values) => {
                let origin = format!("{file} [{profile}]");
                Ok((profile, Self { origin, values }))
            }
            _ => Err(SettingsError::OutsideProfile { key: profile, origin: file.clone() }),
        };
        tables.into_iter().map(layer).collect()
    }

    /// TOML that is part of the program.
    pub(crate) fn built_in(origin: String, text: &str) -> Result<Self, SettingsError> {
        let values = toml_values(text, &origin)?;
        Ok(Self { origin, values })
    }

    /// One layer for each `DLM_*` variable of `variables`, in the order of their names.
    pub(crate) fn environment(variables: impl Iterator<Item = (String, String)>) -> Result<Vec<Self>, SettingsError> {
        let mut ours: Vec<_> =
            variables.filter(|(name, _)| name.starts_with("DLM_") && !RESERVED.contains(&name.as_str())).collect();
        ours.sort();
        let layer = |(name, text): (String, String)| {
            let key = name["DLM_".len()..].to_ascii_lowercase().replace("__", ".");
            Self::assignment(name, &key, &text)
        };
        ours.into_iter().map(layer).collect()
    }

    /// An argument `key=value` of `--set`.
    pub(crate) fn set(argument: &str) -> Result<Self, SettingsError> {
        match argument.split_once('=') {
            Some((key, text)) if !key.trim().is_empty() => {
                Self::assignment("--set".to_owned(), key.trim(), text.trim())
            }
            _ => Err(SettingsError::NoAssignment { argument: argument.to_owned() }),
        }
    }

    /// One value under a dotted key. Lists, tables and quoted texts are TOML; anything else is read as the key asks.
    pub(crate) fn assignment(origin: String, key: &str, text: &str) -> Result<Self, SettingsError> {
        let value = if text.starts_with(['[', '{', '"', '\'']) {
            let values = toml_values(&format!("value = {text}"), &origin)?;
            values.into_values().next().unwrap_or_else(|| Value::from(text))
        } else {
            Value::from(text)
        };
        let nested = key.rsplit('.').fold(value, |value, part| Value::from(Dict::from([(part.to_owned(), value)])));
        let values = nested.into_dict().unwrap_or_default();
        Ok(Self { origin, values })
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

fn toml_values(text: &str, origin: &str) -> Result<Dict, SettingsError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map(|span| &text[..span.start]);
        SettingsError::Malformed {
            origin: origin.to_owned(),
            line: start.map(|start| start.matches('\n').count() + 1),
            column: start.map(|start| start.chars().rev().take_while(|&c| c != '\n').count() + 1),
            message: error.message().to_owned(),
        }
    })
}

fn yaml_values(text: &str, origin: &str) -> Result<Dict, SettingsError> {
    let read = || {
        let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)?;
        value.apply_merge()?; // `<<: *anchor`
        // A key without a value, such as `wandb_project:`, is a blank to fill in: nothing is given.
        let value: Option<Dict> = serde_yaml_ng::from_value(value)?;
        let given = |(_, value): &(String, Value)| !matches!(value, Value::Empty(..));
        Ok(value.unwrap_or_default().into_iter().filter(given).collect())
    };
    read().map_err(|error: serde_yaml_ng::Error| SettingsError::Malformed {
        origin: origin.to_owned(),
        line: error.location().map(|location| location.line()),
        column: error.location().map(|location| location.column()),
        message: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    })
}
