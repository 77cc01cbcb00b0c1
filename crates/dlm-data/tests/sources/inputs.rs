//! Rows in every format, and pipelines that read them.

use crate::support::{documents, prepare, rows, texts, tokenizer, write_jsonl};
use datafusion::{
    arrow::array::{ArrayRef, DictionaryArray, Int64Array, LargeStringArray, RecordBatch},
    arrow::datatypes::Int32Type,
    arrow::ipc::writer::{FileWriter, StreamWriter},
    parquet::arrow::ArrowWriter,
};
use dlm_data::{DataError, Pack, Pipeline, Resources, Source, Split, Tokenize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
    sync::Arc,
};

pub(crate) const ROWS: usize = 300;

pub(crate) fn pipeline(folder: &Path, source: impl Into<Source>) -> Pipeline {
    Pipeline::new()
        .relative_to(folder)
        .source(source)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(64))
        .output("prepared")
}

/// The ids of every document that a pipeline makes.
pub(crate) fn made(pipeline: &Pipeline) -> BTreeMap<i64, Vec<i32>> {
    let report = prepare(pipeline).unwrap_or_else(|error| panic!("{error}"));
    let made = documents(&rows(&report.output, Split::Train));
    fs::remove_dir_all(report.output).unwrap();
    made
}

/// The texts of a pipeline, before they are tokenized.
pub(crate) fn read(folder: &Path, source: impl Into<Source>) -> Vec<String> {
    let pipeline = Pipeline::new().relative_to(folder).source(source);
    pipeline.texts(&Resources::default()).unwrap().collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn fails(folder: &Path, source: impl Into<Source>) -> DataError {
    let error = prepare(&pipeline(folder, source)).unwrap_err();
    assert!(!folder.join("prepared").exists(), "something was left behind by: {error}");
    error
}

/// The rows of `texts`, as Arrow has them.
pub(crate) fn batches(count: usize) -> Vec<RecordBatch> {
    let rows: Vec<Value> = texts(count).collect();
    rows.chunks(100)
        .map(|rows| {
            let numbers = Int64Array::from_iter_values(rows.iter().map(|row| row["number"].as_i64().unwrap()));
            let texts = LargeStringArray::from_iter_values(rows.iter().map(|row| row["text"].as_str().unwrap()));
            let kinds: DictionaryArray<Int32Type> = rows.iter().map(|_| "kind").collect();
            let columns: [(&str, ArrayRef); 3] =
                [("number", Arc::new(numbers)), ("text", Arc::new(texts)), ("kind", Arc::new(kinds))];
            RecordBatch::try_from_iter(columns).unwrap()
        })
        .collect()
}

pub(crate) fn write_parquet(path: &Path, count: usize) {
    let batches = batches(count);
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
        writer.flush().unwrap(); // a group of rows each
    }
    writer.close().unwrap();
}

pub(crate) fn write_arrow(path: &Path, count: usize, is_stream: bool) {
    let (batches, file) = (batches(count), File::create(path).unwrap());
    if is_stream {
        let mut writer = StreamWriter::try_new(file, &batches[0].schema()).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
    } else {
        let mut writer = FileWriter::try_new(file, &batches[0].schema()).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
    }
}

pub(crate) fn compressed(content: &[u8], extension: &str) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    match extension {
        "gz" => gzip.write_all(content).and_then(|()| gzip.finish()).unwrap(),
        "bz2" => bzip2.write_all(content).and_then(|()| bzip2.finish()).unwrap(),
        "xz" => xz.write_all(content).and_then(|()| xz.finish()).unwrap(),
        "zst" => zstd::encode_all(content, 1).unwrap(),
        _ => content.to_vec(),
    }
}

/// The same rows in every format, by file name.
pub(crate) fn write_all(folder: &Path) -> Vec<String> {
    write_jsonl(&folder.join("rows.jsonl"), texts(ROWS));
    fs::write(folder.join("rows.json"), Value::from(texts(ROWS).collect::<Vec<_>>()).to_string()).unwrap();
    let record = |separator: char| {
        move |row: Value| format!("{}{separator}\"{}\"\r\n", row["number"], row["text"].as_str().unwrap())
    };
    fs::write(
        folder.join("rows.csv"),
        "\u{feff}number,text\n".to_owned() + &texts(ROWS).map(record(',')).collect::<String>(),
    )
    .unwrap();
    fs::write(
        folder.join("rows.tsv"),
        "number\ttext\n".to_owned() + &texts(ROWS).map(record('\t')).collect::<String>(),
    )
    .unwrap();
    write_parquet(&folder.join("rows.parquet"), ROWS);
    write_arrow(&folder.join("rows.feather"), ROWS, false);
    write_arrow(&folder.join("rows.arrow"), ROWS, true);
    let mut names =
        ["rows.json", "rows.csv", "rows.tsv", "rows.parquet", "rows.feather", "rows.arrow"].map(str::to_owned).to_vec();
    for name in ["rows.jsonl", "rows.json", "rows.csv"] {
        for extension in ["gz", "zst", "bz2", "xz"] {
            let content = compressed(&fs::read(folder.join(name)).unwrap(), extension);
            names.push(format!("{name}.{extension}"));
            fs::write(folder.join(names.last().unwrap()), content).unwrap();
        }
    }
    names
}
