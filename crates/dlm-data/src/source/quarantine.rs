//! Rows and files that could not be read or used and were left out because the pipeline says so.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// The file in a folder of prepared data that lists what was left out.
pub const QUARANTINE: &str = "quarantine.jsonl";

/// What was left out so far.
#[derive(Debug, Default)]
pub(crate) struct Quarantine(Mutex<BTreeSet<Entry>>);

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The source's number in the pipeline, counted from 0.
    pub(crate) source: usize,
    /// Which file.
    pub(crate) file: String,
    /// The first row in that file, counted from 1; none when nothing of the file could be read.
    pub(crate) row: Option<u64>,
    /// How many rows; none when that cannot be known.
    pub(crate) rows: Option<u64>,
    /// The line it begins at, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    /// What is wrong.
    pub(crate) reason: String,
}

impl Quarantine {
    /// Leaves something out. The same thing twice is once.
    pub(crate) fn add(&self, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(entry);
    }

    /// Rows and files of a source that were left out; where a number of rows is not known, what is missing counts as one.
    pub(crate) fn count(&self, source: usize) -> u64 {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().filter(|entry| entry.source == source).map(|entry| entry.rows.unwrap_or(1)).sum()
    }

    /// The first reason there is.
    pub(crate) fn first_reason(&self) -> Option<String> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().next().map(|entry| format!("`{}`: {}", entry.file, entry.reason))
    }

    /// One JSON object a line, ordered by source, file and row; nothing when nothing was left out.
    pub(crate) fn to_jsonl(&self) -> Option<Vec<u8>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for entry in entries.iter() {
            serde_json::to_writer(&mut lines, entry).expect("an entry is made of texts and numbers");
            lines.push(b'\n');
        }
        Some(lines).filter(|lines| !lines.is_empty())
    }
}
