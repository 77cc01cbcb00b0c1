//! The options of a `[[source]]` and of the mix of several.

use crate::{
    chat_options::Chat,
    error::{DataError, Result},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Files with rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file, a folder, or a pattern with `*`, `?`, `[...]`, `**`, `{a,b}`, without what lies in the output folder; here, or under `s3://`, `gs://`, `az://`,
    /// `hf://datasets/OWNER/NAME[@REVISION]/`; or one file under `https://`.
    pub path: String,
    /// How the files hold their rows, where their names do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// Of a folder or pattern only the files of this split, as their names say it: `train`, `validation`, `test`, or another. Where
    /// no name says anything, all files are of `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// How often this source is drawn from, relative to the others'. Either all sources have a weight or none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Only this many rows, the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What becomes of rows and files that cannot be read; the pipeline's `on_error` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// What a document is in a text file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<TextDocument>,
    /// How its rows become conversations, where not as the step `chat` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Chat>,
    /// The columns of this source, each a column of the files or an SQL expression over them; all of the files' where it is empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
}

impl Source {
    /// All rows of the files of a path or pattern, as they are.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// How often this source is drawn from, relative to the others'.
    #[must_use]
    pub fn weight(self, weight: f64) -> Self {
        Self { weight: Some(weight), ..self }
    }

    /// How its rows become conversations.
    #[must_use]
    pub fn chat(self, chat: Chat) -> Self {
        Self { chat: Some(chat), ..self }
    }

    /// Only the files whose names say that they are of this split; where none says anything, all are of `train`.
    #[must_use]
    pub fn split(self, split: impl Into<String>) -> Self {
        Self { split: Some(split.into()), ..self }
    }

    /// Only the first `limit` rows.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// Adds a column: one of the files' or an SQL expression over them. Only named columns are read.
    #[must_use]
    pub fn column(mut self, name: impl Into<String>, expression: impl Into<String>) -> Self {
        self.columns.insert(name.into(), expression.into());
        self
    }

    /// What a document is in a text file.
    #[must_use]
    pub fn document(self, document: TextDocument) -> Self {
        Self { document: Some(document), ..self }
    }

    /// How the files hold their rows, whatever their names say.
    #[must_use]
    pub fn format(self, format: FileFormat) -> Self {
        Self { format: Some(format), ..self }
    }

    /// What becomes of rows and files that cannot be read.
    #[must_use]
    pub fn on_error(self, on_error: OnError) -> Self {
        Self { on_error: Some(on_error), ..self }
    }
}

impl<T: Into<String>> From<T> for Source {
    fn from(path: T) -> Self {
        Self::new(path)
    }
}

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, as a file (Feather) or a stream (what `datasets` keeps).
    #[serde(alias = "feather")]
    Arrow,
    /// One JSON object a line, or one list of objects.
    #[serde(alias = "jsonl", alias = "ndjson")]
    Json,
    /// Comma-separated values; the first line names the columns.
    Csv,
    /// The same with tabs.
    Tsv,
    /// Text: columns `text` and `path`.
    #[serde(alias = "txt", alias = "markdown", alias = "md")]
    Text,
}

/// What a document is in a text file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextDocument {
    /// The whole file.
    #[default]
    File,
    /// Each line that is not blank.
    Line,
    /// What stands between two of these, where it is not blank.
    Separator(String),
}

/// What becomes of rows and files that cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The preparation ends with an error that names the file and the row.
    #[default]
    Fail,
    /// They are left out, counted in the manifest and listed in `quarantine.jsonl`.
    Skip,
}

/// How sources with weights are mixed, as `datasets.interleave_datasets` does it.
///
/// Row after row a source is drawn, with its weight over the sum of weights as probability, and gives its next row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// What the draws depend on.
    pub seed: u64,
    /// When the mix is complete.
    pub stop: MixStop,
}

/// When a mix is complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixStop {
    /// When one source has given its last row: no row comes twice, and the other sources keep rows back.
    #[default]
    FirstExhausted,
    /// When every source has given its last row: those that ran out earlier begin again, so that no row is left out.
    AllExhausted,
}

/// Checks what the types do not.
pub(crate) fn check(sources: &[Source]) -> Result<()> {
    for source in sources {
        let path = crate::remote::redacted(&source.path);
        let wrong = |message: String| Err(DataError::pipeline(format!("the source `{path}`: {message}")));
        match source.weight {
            None if sources.iter().any(|other| other.weight.is_some()) => {
                return wrong("it has no `weight`, and other sources do: give each one, or none".to_owned());
            }
            Some(weight) if !(weight > 0.0 && weight.is_finite()) => {
                return wrong(format!("`weight` is {weight}, and has to be above 0"));
            }
            _ => {}
        }
        if source.limit == Some(0) {
            return wrong("`limit` is 0, and has to be 1 or more".to_owned());
        }
        if source.split.as_ref().is_some_and(String::is_empty) {
            return wrong("`split` is empty".to_owned());
        }
        if source.document == Some(TextDocument::Separator(String::new())) {
            return wrong("`document.separator` is empty".to_owned());
        }
        if source.columns.keys().any(|name| name.starts_with("__") || name.is_empty()) {
            return wrong("names in `columns` are not empty and do not begin with `__`".to_owned());
        }
    }
    Ok(())
}
