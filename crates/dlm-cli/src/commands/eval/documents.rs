//! Documents to score: from prepared rows or from lines of JSON.

use crate::{error::UsageError, inference::Inference};
use anyhow::Context;
use dlm_data::{IGNORE_INDEX, PreparedData, Split};
use dlm_diffusion::evaluate::EvalDocument;
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// The documents of prepared data: of its validation rows where it has some, else of its training rows.
pub(super) fn prepared(folder: &Path, inference: &Inference, limit: usize) -> anyhow::Result<Vec<EvalDocument>> {
    let has_validation = PreparedData::has(folder, Split::Validation)?;
    let split = if has_validation { Split::Validation } else { Split::Train };
    if !has_validation {
        eprintln!("no validation rows in `{}`: its training rows are scored", folder.display());
    }
    let data = PreparedData::open(folder, split)?;
    let mut documents = Vec::new();
    for index in 0..data.rows() {
        let row = data.read_row(index)?;
        let mut begin = 0;
        for end in 1..=row.input_ids.len() {
            if end < row.input_ids.len() && row.segment_ids[end] == row.segment_ids[begin] {
                continue;
            }
            if row.segment_ids[begin] > 0 {
                let ids: Vec<i64> = row.input_ids[begin..end].iter().map(|&id| i64::from(id)).collect();
                let is_target: Vec<bool> = row.labels[begin..end].iter().map(|&label| label != IGNORE_INDEX).collect();
                // Bytes of a text that is scored in part would make the ratio mean nothing.
                let is_whole = is_target.iter().all(|is_target| *is_target);
                let bytes = is_whole.then(|| inference.text(&ids)).transpose()?.map(|text| text.len() as u64);
                documents.push(EvalDocument { id: documents.len() as i64, ids, is_target, bytes });
                if documents.len() == limit {
                    return Ok(documents);
                }
            }
            begin = end;
        }
    }
    Ok(documents)
}

/// The texts in one field of lines of JSON.
pub(super) fn json_lines(
    path: &Path,
    field: &str,
    inference: &Inference,
    limit: usize,
) -> anyhow::Result<Vec<EvalDocument>> {
    let mut documents = Vec::new();
    for_each_line(path, |line, object| {
        let text = text_of(path, line, &object, field)?;
        let ids = inference.encode(text)?;
        let bytes = Some(text.len() as u64);
        documents.push(EvalDocument { is_target: vec![true; ids.len()], id: documents.len() as i64, ids, bytes });
        Ok(documents.len() < limit)
    })?;
    Ok(documents)
}

/// A text field of one line.
pub(super) fn text_of<'a>(path: &Path, line: usize, object: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    object[field].as_str().ok_or_else(|| {
        let found = if object[field].is_null() { "absent".to_owned() } else { object[field].to_string() };
        wrong(path, line, field, &found, "a text")
    })
}

pub(super) fn wrong(path: &Path, line: usize, field: &str, found: &str, expected: &str) -> anyhow::Error {
    let what = format!("`{field}` in line {line} of {}", path.display());
    UsageError::Invalid { what, found: found.to_owned(), expected: expected.to_owned() }.into()
}

/// Reads a file of one JSON object a line, from line 1, until `visit` says that it is enough; empty lines are passed over.
pub(super) fn for_each_line(
    path: &Path,
    mut visit: impl FnMut(usize, Value) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    for (index, text) in BufReader::new(file).lines().enumerate() {
        let text = text.with_context(|| format!("cannot read line {} of `{}`", index + 1, path.display()))?;
        if text.trim().is_empty() {
            continue;
        }
        let object = serde_json::from_str(&text)
            .with_context(|| format!("line {} of `{}` is no JSON", index + 1, path.display()))?;
        if !visit(index + 1, object)? {
            break;
        }
    }
    Ok(())
}
