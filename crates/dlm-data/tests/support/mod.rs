//! Small inputs for the tests of whole preparations.
#![allow(dead_code)] // each test file uses its own part

use dlm_data::{Pack, Pipeline, PrepareOptions, PrepareReport, PreparedData, Resources, Result, Row, Split, Tokenize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The tokenizer of a golden model.
pub(crate) fn tokenizer() -> PathBuf {
    dlm_golden::model("llama")
}

/// Writes JSON Lines.
pub(crate) fn write_jsonl(path: &Path, rows: impl IntoIterator<Item = serde_json::Value>) {
    let lines: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
    fs::write(path, lines).unwrap();
}

/// `count` rows with a `text` of growing length and a `number`.
pub(crate) fn texts(count: usize) -> impl Iterator<Item = serde_json::Value> {
    (0..count).map(|i| serde_json::json!({ "number": i, "text": format!("row {i} {}", "word ".repeat(i % 23)) }))
}

/// A pipeline from `rows.jsonl` of a folder to `prepared` in it.
pub(crate) fn text_pipeline(folder: &Path, sequence_len: usize) -> Pipeline {
    Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(sequence_len))
        .output("prepared")
}

pub(crate) fn options(threads: usize) -> PrepareOptions {
    PrepareOptions { resources: Resources { threads, ..Resources::default() }, ..PrepareOptions::default() }
}

pub(crate) fn prepare(pipeline: &Pipeline) -> Result<PrepareReport> {
    pipeline.prepare(&options(2), |_| ())
}

pub(crate) fn rows(folder: &Path, split: Split) -> Vec<Row> {
    let data = PreparedData::open(folder, split).unwrap();
    (0..data.rows()).map(|i| data.read_row(i).unwrap()).collect()
}

/// The documents of packed rows, put together again from their pieces.
pub(crate) fn documents(rows: &[Row]) -> BTreeMap<i64, Vec<i32>> {
    let mut pieces: BTreeMap<(i64, i64), Vec<i32>> = BTreeMap::new();
    for row in rows {
        for (at, segment) in row.segment_ids.iter().enumerate().filter(|(_, segment)| **segment > 0) {
            let which = usize::try_from(segment - 1).unwrap();
            let key = (row.document_ids[which], row.document_offsets[which]);
            pieces.entry(key).or_default().push(row.input_ids[at]);
        }
    }
    let mut documents: BTreeMap<i64, Vec<i32>> = BTreeMap::new();
    for ((document, offset), piece) in pieces {
        let ids = documents.entry(document).or_default();
        assert_eq!(offset, ids.len() as i64, "document {document} has a gap");
        ids.extend(piece);
    }
    documents
}

/// Every file below a folder, with its content.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}
