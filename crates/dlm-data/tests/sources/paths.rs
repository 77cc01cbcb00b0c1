//! Which files a source names, and which of their rows and columns can be taken.

use super::inputs::{batches, fails, pipeline, read};
use crate::support::{prepare, texts, write_jsonl};
use datafusion::{
    arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    parquet::arrow::ArrowWriter,
};
use dlm_data::{DataError, OnError, QUARANTINE, Source};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Write,
    sync::Arc,
};

fn write_parquet(path: &std::path::Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn what_a_run_wrote_is_no_source_of_the_next() {
    let folder = tempfile::tempdir().unwrap();
    for batch in batches(30) {
        write_parquet(&folder.path().join("rows.parquet"), &batch);
    }
    for path in ["**/*.parquet", ""] {
        let covering = pipeline(folder.path(), path);
        let first = prepare(&covering).unwrap();
        let inputs = |report: &dlm_data::PrepareReport| report.manifest.inputs.clone();
        assert_eq!(inputs(&first).iter().map(|input| input.path.as_str()).collect::<Vec<_>>(), ["rows.parquet"]);
        assert!(prepare(&covering).unwrap().already_prepared, "`{path}` took what the first run wrote");
        // Also where the caller says where it goes to.
        let elsewhere = dlm_data::PrepareOptions { output: Some(folder.path().join("other")), ..Default::default() };
        fs::rename(&first.output, folder.path().join("other")).unwrap();
        assert!(covering.prepare(&elsewhere, |_| ()).unwrap().already_prepared);
        fs::remove_dir_all(folder.path().join("other")).unwrap();
    }
    prepare(&pipeline(folder.path(), "rows.parquet")).unwrap();
    let error = prepare(&pipeline(folder.path(), "prepared/**/*.parquet")).unwrap_err();
    assert!(matches!(&error, DataError::Circular { output, .. } if output.ends_with("prepared")), "{error}");
}

#[test]
fn braces_name_several_files_and_one_that_is_missing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b", "a", "c"] {
        write_jsonl(&folder.path().join(format!("{name}.jsonl")), [json!({ "text": name })]);
    }
    assert_eq!(read(folder.path(), "{b,a}.jsonl"), ["a", "b"]);
    assert_eq!(read(folder.path(), "{a,?}.json*"), ["a", "b", "c"]);
    let error = fails(folder.path(), "{a,d}.jsonl");
    assert!(matches!(&error, DataError::Read { path, .. } if path.ends_with("d.jsonl")), "{error}");
    // A file of that very name is meant where there is one.
    write_jsonl(&folder.path().join("{a,b}.jsonl"), [json!({ "text": "braces" })]);
    assert_eq!(read(folder.path(), "{a,b}.jsonl"), ["braces"]);
}

#[test]
fn damaged_compression_is_not_taken_for_bad_json() {
    let folder = tempfile::tempdir().unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    texts(200).for_each(|row| writeln!(packed, "{row}").unwrap());
    let mut bytes = packed.finish().unwrap();
    bytes.truncate(bytes.len() / 2);
    fs::write(folder.path().join("rows.jsonl.gz"), bytes).unwrap();
    let error = fails(folder.path(), "rows.jsonl.gz");
    assert!(matches!(&error, DataError::Damaged { message, .. } if message.contains("gzip")), "{error}");
    let help = error.help().unwrap();
    assert!(help.contains("copy the file again") && !help.contains("JSON"), "{help}");
}

#[test]
fn a_columnar_file_that_is_compressed_as_a_whole_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for (name, format, by) in [("x.parquet.gz", "Parquet", "gzip"), ("x.feather.zst", "Arrow", "zstd")] {
        fs::write(folder.path().join(name), "x").unwrap();
        let error = fails(folder.path(), name);
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(format) && text.contains(by), "{text}");
        assert!(error.help().unwrap().contains("unpack the file first"));
    }
}

#[test]
fn a_column_with_a_name_of_ours_is_refused_and_others_with_underscores_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let column = |name: &'static str| -> (&str, ArrayRef) { (name, Arc::new(Int64Array::from(vec![5, 6]))) };
    let text: (&str, ArrayRef) = ("text", Arc::new(StringArray::from(vec!["a", "b"])));
    let path = folder.path().join("rows.parquet");
    for name in ["__row", "__number", "__offset", "__end_cut", "__validation", "__chat_format", "__order"] {
        write_parquet(&path, &RecordBatch::try_from_iter([text.clone(), column(name)]).unwrap());
        let error = fails(folder.path(), "rows.parquet");
        assert!(matches!(&error, DataError::ReservedColumn { column, .. } if column == name), "{error}");
        assert!(error.help().unwrap().contains("rename the column"));
        assert_eq!(read(folder.path(), Source::new("rows.parquet").column("text", "text")), ["a", "b"]);
    }
    write_parquet(&path, &RecordBatch::try_from_iter([text.clone(), column("__row")]).unwrap());
    let error = fails(folder.path(), Source::new("rows.parquet").column("text", "cast(__row as varchar)"));
    assert!(matches!(&error, DataError::ReservedColumn { .. }), "{error}");
    // The index of pandas.
    write_parquet(&path, &RecordBatch::try_from_iter([text, column("__index_level_0__")]).unwrap());
    assert_eq!(read(folder.path(), "rows.parquet"), ["a", "b"]);
}

#[test]
fn what_lies_beyond_the_limit_is_not_listed_as_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let good = |name: &str| format!("{{\"text\": \"{name}\"}}\n");
    fs::write(folder.path().join("a.jsonl"), format!("{}{{\n{}{{\n", good("1"), good("3"))).unwrap();
    fs::write(folder.path().join("b.jsonl"), "{\n").unwrap();
    fs::write(folder.path().join("c.parquet"), "none").unwrap();
    let left_out = |limit: u64| {
        let source = Source::new("[ab].jsonl").on_error(OnError::Skip).limit(limit);
        let report = prepare(&pipeline(folder.path(), source)).unwrap();
        let list = fs::read_to_string(report.output.join(QUARANTINE)).unwrap_or_default();
        let places = list.lines().map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            (entry["file"].as_str().unwrap().to_owned(), entry["row"].as_u64().unwrap())
        });
        let places = places.collect::<Vec<_>>();
        assert_eq!(report.manifest.sources[0].quarantined, places.len() as u64);
        fs::remove_dir_all(report.output).unwrap();
        places
    };
    let (a, b) = ("a.jsonl".to_owned(), "b.jsonl".to_owned());
    assert_eq!(left_out(1), []);
    assert_eq!(left_out(3), [(a.clone(), 2)]);
    assert_eq!(left_out(4), [(a.clone(), 2), (a.clone(), 4)]);
    assert_eq!(left_out(9), [(a.clone(), 2), (a, 4), (b, 1)]);
}
