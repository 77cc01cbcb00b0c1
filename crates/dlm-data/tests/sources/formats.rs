//! Every format and compression, columns and limits.

use super::inputs::{ROWS, fails, made, pipeline, read, write_all};
use crate::support::{prepare, texts, write_jsonl};
use dlm_data::{DataError, FileFormat, Pipeline, Resources, Source, TextDocument};
use serde_json::json;
use std::fs;

#[test]
fn every_format_and_compression_gives_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let names = write_all(folder.path());
    let expected = made(&pipeline(folder.path(), "rows.jsonl"));
    assert_eq!(expected.len(), ROWS);
    for name in names {
        assert!(made(&pipeline(folder.path(), name.as_str())) == expected, "{name}");
    }
}

#[test]
fn a_format_that_is_given_overrides_the_name() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.txt"), texts(3));
    assert_eq!(read(folder.path(), Source::new("rows.txt").format(FileFormat::Json))[1], "row 1 word ");
    assert!(read(folder.path(), "rows.txt")[0].starts_with("{\"number\":0"));
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::rename(folder.path().join("rows.txt"), folder.path().join("sub/rows.data")).unwrap();
    assert_eq!(read(folder.path(), Source::new("sub").format(FileFormat::Json)).len(), 3);
    assert!(matches!(fails(folder.path(), "sub"), DataError::NoFiles { .. }));
    let error = Pipeline::from_toml("source = [{ path = \"a\", format = \"jason\" }]", "").unwrap_err().to_string();
    assert!(error.contains("did you mean `json`?"), "{error}");
}

#[test]
fn a_text_file_is_one_document_or_one_per_line_or_per_separator() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.md"), "\u{feff}one\n\ntwo\r\n<|end|>three").unwrap();
    let by = |document| read(folder.path(), Source::new("a.md").document(document));
    assert_eq!(by(TextDocument::File), ["one\n\ntwo\r\n<|end|>three"]);
    assert_eq!(by(TextDocument::Line), ["one", "two", "<|end|>three"]);
    assert_eq!(by(TextDocument::Separator("<|end|>".to_owned())), ["one\n\ntwo\r\n", "three"]);
    let written =
        r#"source = [{ path = "a.md", document = { separator = "<|end|>" } }, { path = "b.md", document = "line" }]"#;
    let read = Pipeline::from_toml(written, "").unwrap();
    assert_eq!(read.source[0].document, Some(TextDocument::Separator("<|end|>".to_owned())));
    assert_eq!(Pipeline::from_toml(&read.to_toml().unwrap(), "").unwrap(), read);

    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let error = fails(folder.path(), Source::new("rows.jsonl").document(TextDocument::Line));
    assert!(error.to_string().contains("`document` is for text files"), "{error}");
}

#[test]
fn csv_columns_have_types_and_differ_between_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.csv"), "text,n,code\nx,1,007\n\"y,\nz\",2.5,008\n").unwrap();
    fs::write(folder.path().join("b.csv"), "n,text\nmany,\"\"\n,w\n").unwrap();
    let source = Source::new("a.csv").column("text", "concat(text, ':', cast(n + 1 as text), ':', code)");
    assert_eq!(read(folder.path(), source), ["x:2.0:007", "y,\nz:3.5:008"]);
    let source = Source::new("*.csv").column("text", "coalesce(n, 'none')");
    assert_eq!(read(folder.path(), source), ["1", "2.5", "many", "none"]);
    fs::write(folder.path().join("c.csv"), "text,text\nx,y\n").unwrap();
    assert!(fails(folder.path(), "c.csv").to_string().contains("two columns are called `text`"));
}

#[test]
fn sources_share_columns_through_their_maps() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), [json!({ "Question": "q", "Answer": 4 })]);
    write_jsonl(&folder.path().join("b.jsonl"), [json!({ "prompt": "p", "odd name": "o" })]);
    let mapped = Pipeline::new()
        .relative_to(folder.path())
        .source(Source::new("a.jsonl").column("ask", "Question").column("say", "cast(Answer * 2 as text)"))
        .source(Source::new("b.jsonl").column("ask", "upper(prompt)").column("say", "odd name"))
        .select(["concat(ask, '=', say) as text"]);
    let texts: Vec<String> = mapped.texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(texts, ["q=8", "P=o"]);
    let error = fails(folder.path(), Source::new("a.jsonl").column("text", "question"));
    let DataError::UnknownColumn { step, column, columns } = &error else { panic!("{error}") };
    assert_eq!((step.as_str(), column.as_str()), ("`columns` of the source `a.jsonl`", "question"));
    assert_eq!(columns, &["Question", "Answer"]);
}

#[test]
fn a_limit_takes_the_first_rows_of_a_source() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    for name in ["rows.jsonl", "rows.parquet", "rows.arrow", "rows.csv"] {
        let read = read(folder.path(), Source::new(name).limit(150));
        assert_eq!(read.len(), 150, "{name}");
        assert_eq!(read[149], texts(150).last().unwrap()["text"].as_str().unwrap());
    }
    assert_eq!(read(folder.path(), Source::new("rows.jsonl").limit(10_000)).len(), ROWS);
    let report = prepare(&pipeline(folder.path(), Source::new("rows.jsonl").limit(7))).unwrap();
    assert_eq!((report.manifest.account.rows, report.manifest.sources[0].rows), (7, 7));
}

#[test]
fn a_document_of_100_mb_is_read_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let long = "word ".repeat(20 << 20);
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [json!({ "text": "short" }), json!({ "text": long }), json!({ "text": "end" })],
    );
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source(Source::new("rows.jsonl").column("length", "length(text)").column("text", "substr(text, 1, 5)"))
        .select(["concat(text, cast(length as text)) as text"]);
    let resources = Resources { memory_limit: Some(256 << 20), ..Resources::default() };
    let texts: Vec<String> = pipeline.texts(&resources).unwrap().map(Result::unwrap).collect();
    assert_eq!(texts, ["short5", &format!("word {}", 100 << 20), "end3"]);
}
