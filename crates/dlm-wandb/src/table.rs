//! Tables: a media file, and the reference that a history row holds.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    error::{Result, WandbError},
    value::Object,
};

/// Columns and rows, shown as a table on the run's page.
///
/// ```
/// let table = dlm_wandb::Table::new(["step", "generated"]).row([5.into(), "the cat sat".into()]);
/// assert_eq!(table.rows.len(), 1);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// The columns' names.
    pub columns: Vec<String>,
    /// One cell per column; `serde_json` turns numbers that are not finite into null, as the page wants it.
    #[serde(rename = "data")]
    pub rows: Vec<Vec<serde_json::Value>>,
}

/// A table ready to be sent.
#[derive(Debug)]
pub(crate) struct TableFile {
    /// Its path among the run's files.
    pub(crate) path: String,
    /// Its content.
    pub(crate) content: Vec<u8>,
    /// What the history row says of it.
    pub(crate) reference: Object,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// The table with one more row.
    #[must_use]
    pub fn row(mut self, cells: impl IntoIterator<Item = serde_json::Value>) -> Self {
        self.rows.push(cells.into_iter().collect());
        self
    }

    pub(crate) fn file(&self, key: &str, step: u64) -> Result<TableFile> {
        let columns = self.columns.len();
        if let Some((row_idx, row)) = self.rows.iter().enumerate().find(|(_, row)| row.len() != columns) {
            return Err(WandbError::UnevenTable { key: key.to_owned(), row_idx, cells: row.len(), columns });
        }
        let content = serde_json::to_vec(self).expect("texts, numbers and lists are always JSON");
        let hash = Sha256::digest(&content).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}"); // writing to a String cannot fail
            hex
        });
        let path = format!("media/table/{}_{step}_{}.table.json", clean_name(key), &hash[..20]);
        let reference = Object::new()
            .with("_type", "table-file")
            .with("sha256", hash)
            .with("size", content.len())
            .with("path", path.clone())
            .with("ncols", columns)
            .with("nrows", self.rows.len())
            .with("log_mode", "IMMUTABLE");
        Ok(TableFile { path, content, reference })
    }
}

/// A key as a relative path: its slashes make folders, and none leads out of them.
fn clean_name(key: &str) -> String {
    let parts: Vec<_> = key
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| if part == "." || part == ".." { "_".to_owned() } else { part.replace('\\', "_") })
        .collect();
    if parts.is_empty() { "_".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_leave_the_media_folder() {
        for (key, path) in [("a/b", "a/b"), ("/a//b", "a/b"), ("../x/./y", "_/x/_/y"), ("..\\x", "..\\x"), ("/", "_")] {
            assert_eq!(clean_name(key), path.replace('\\', "_"), "{key}");
        }
    }

    #[test]
    fn the_official_clients_table_is_written_byte_for_byte() {
        let recording = include_str!("../../../tests/wandb/official_client.jsonl");
        let requests = recording.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let upload =
            requests.into_iter().find(|request| request["path"].as_str().unwrap().contains("/media/table/")).unwrap();
        let recorded: serde_json::Value = serde_json::from_str(upload["body_text"].as_str().unwrap()).unwrap();
        let cells = |list: &serde_json::Value| list.as_array().unwrap().clone();
        let columns = cells(&recorded["columns"]).iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        let table = Table { columns, rows: cells(&recorded["data"]).iter().map(cells).collect() };
        let file = table.file("samples", 4).unwrap();
        assert_eq!(file.reference.get("sha256"), Some(&upload["sha256"].clone().into()));
        assert!(upload["path"].as_str().unwrap().ends_with(&file.path), "{}", file.path);
    }

    #[test]
    fn a_row_with_a_cell_too_few_is_named() {
        let error = Table::new(["a", "b"]).row([1.into(), 2.into()]).row([1.into()]).file("t", 0).unwrap_err();
        assert_eq!(error.to_string(), "row 1 of table `t` has 1 cells for 2 columns");
    }

    #[test]
    fn cells_that_are_not_finite_become_null() {
        let file = Table::new(["a"]).row([f64::NAN.into()]).file("t", 0).unwrap();
        assert_eq!(file.content, br#"{"columns":["a"],"data":[[null]]}"#);
    }
}
