//! Sources: every format and compression, weights, limits, columns, and what cannot be read.

use crate::support::{documents, options, prepare, rows, texts, tokenizer, tree, write_jsonl};
use datafusion::{
    arrow::{
        array::{ArrayRef, DictionaryArray, Int64Array, LargeStringArray, RecordBatch},
        datatypes::Int32Type,
        ipc::writer::{FileWriter, StreamWriter},
    },
    parquet::arrow::ArrowWriter,
};
use dlm_data::{
    DataError, FileFormat, Mix, MixStop, OnError, Pack, Pipeline, QUARANTINE, Resources, Source, Split, TextDocument,
    Tokenize,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::Path,
    sync::Arc,
};

const ROWS: usize = 300;

fn pipeline(folder: &Path, source: impl Into<Source>) -> Pipeline {
    Pipeline::new()
        .relative_to(folder)
        .source(source)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(64))
        .output("prepared")
}

/// The ids of every document that a pipeline makes.
fn made(pipeline: &Pipeline) -> BTreeMap<i64, Vec<i32>> {
    let report = prepare(pipeline).unwrap_or_else(|error| panic!("{error}"));
    let made = documents(&rows(&report.output, Split::Train));
    fs::remove_dir_all(report.output).unwrap();
    made
}

/// The texts of a pipeline, before they are tokenized.
fn read(folder: &Path, source: impl Into<Source>) -> Vec<String> {
    let pipeline = Pipeline::new().relative_to(folder).source(source);
    pipeline.texts(&Resources::default()).unwrap().collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}"))
}

fn fails(folder: &Path, source: impl Into<Source>) -> DataError {
    let error = prepare(&pipeline(folder, source)).unwrap_err();
    assert!(!folder.join("prepared").exists(), "something was left behind by: {error}");
    error
}

/// The rows of `texts`, as Arrow has them.
fn batches(count: usize) -> Vec<RecordBatch> {
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

fn write_parquet(path: &Path, count: usize) {
    let batches = batches(count);
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
        writer.flush().unwrap(); // a group of rows each
    }
    writer.close().unwrap();
}

fn write_arrow(path: &Path, count: usize, is_stream: bool) {
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

fn compressed(content: &[u8], extension: &str) -> Vec<u8> {
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
fn write_all(folder: &Path) -> Vec<String> {
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

fn two_weighted(folder: &Path, mix: Mix) -> Pipeline {
    for (name, count) in [("a", 400), ("b", 100)] {
        let row = |i| json!({ "text": format!("{name} {i}") });
        write_jsonl(&folder.join(format!("{name}.jsonl")), (0..count).map(row));
    }
    Pipeline::new()
        .relative_to(folder)
        .mix(mix)
        .source(Source::new("a.jsonl").weight(1.0))
        .source(Source::new("b.jsonl").weight(3.0))
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(64))
        .output("prepared")
}

#[test]
fn weights_say_how_often_a_source_is_drawn_and_the_manifest_has_the_shares() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = two_weighted(folder.path(), Mix::default());
    let texts: Vec<String> = pipeline.texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
    let of = |name: &str| texts.iter().filter(|text| text.starts_with(name)).cloned().collect::<Vec<_>>();
    let numbered = |name: &str, count: usize| (0..count).map(|i| format!("{name} {i}")).collect::<Vec<_>>();
    // The first source to run out is the smaller one, which is drawn more often.
    assert_eq!(of("b"), numbered("b", 100));
    assert_eq!(of("a"), numbered("a", of("a").len()));
    assert!((15..60).contains(&of("a").len()), "{}", of("a").len());
    assert_eq!(texts.last().unwrap(), "b 99");

    let report = prepare(&pipeline).unwrap();
    let sources = &report.manifest.sources;
    assert_eq!((sources[0].rows, sources[1].rows), (of("a").len() as u64, 100));
    assert!((sources[1].share - 100.0 / texts.len() as f64).abs() < 1e-9);
    assert_eq!(sources[1].weight, Some(3.0));
    assert_eq!(report.manifest.account.documents, texts.len() as u64);

    let until_all = pipeline.clone().mix(Mix { stop: MixStop::AllExhausted, ..Mix::default() });
    let all: Vec<String> = until_all.texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(all.iter().filter(|text| text.starts_with('a')).count(), 400);
    assert_eq!(
        all.iter().filter(|text| *text == "b 7").count() as u64,
        all.iter().filter(|text| text.starts_with('b')).count() as u64 / 100
            + u64::from(all.iter().filter(|text| text.starts_with('b')).count() % 100 > 7)
    );
    let other: Vec<String> = pipeline
        .with_override("mix.seed", "5")
        .unwrap()
        .texts(&Resources::default())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_ne!(other, texts);
}

#[test]
fn threads_do_not_change_the_bytes_of_a_mix() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = two_weighted(folder.path(), Mix { seed: 3, stop: MixStop::AllExhausted }).shuffle(1);
    let mut steps = pipeline.step.clone();
    steps.rotate_right(1); // the shuffle first
    let pipeline = Pipeline { step: steps, ..pipeline };
    let bytes = |threads| {
        let report = pipeline.prepare(&options(threads), |_| ()).unwrap();
        let tree = tree(&report.output);
        fs::remove_dir_all(report.output).unwrap();
        tree
    };
    assert!(bytes(1) == bytes(4));
}

#[test]
fn weights_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), texts(3));
    fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    let with = |source: Source| {
        prepare(&pipeline(folder.path(), Source::new("a.jsonl").weight(1.0)).source(source)).unwrap_err()
    };
    assert!(with(Source::new("a.jsonl")).to_string().contains("give each one, or none"));
    assert!(with(Source::new("a.jsonl").weight(0.0)).to_string().contains("`weight` is 0"));
    assert!(with(Source::new("a.jsonl").weight(f64::NAN)).to_string().contains("`weight` is NaN"));
    assert!(with(Source::new("empty.jsonl").weight(1.0)).to_string().contains("has a weight and no row"));
    assert!(fails(folder.path(), Source::new("a.jsonl").limit(0)).to_string().contains("`limit` is 0"));
    let empty = Source::new("a.jsonl").document(TextDocument::Separator(String::new()));
    assert!(fails(folder.path(), empty).to_string().contains("`document.separator` is empty"));
}

/// Cuts a file off in the middle.
fn cut(path: &Path) {
    let content = fs::read(path).unwrap();
    fs::write(path, &content[..content.len() * 3 / 5]).unwrap();
}

#[test]
fn a_file_that_is_cut_off_is_named_with_the_row_and_its_good_rows_can_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut names = write_all(folder.path());
    names.push("rows.jsonl".to_owned());
    for name in &names {
        cut(&folder.path().join(name));
        let error = fails(folder.path(), name.as_str());
        let text = error.to_string();
        assert!(text.contains(name.as_str()), "{name}: {text}");
        // Without its end a Parquet or Arrow file tells nothing of its rows; every other one tells where it broke off.
        let has_footer = ["rows.parquet", "rows.feather"].contains(&name.as_str());
        let row = match &error {
            DataError::Json { row, .. } | DataError::Damaged { row, .. } => *row,
            DataError::Parquet { .. } if has_footer => 0,
            other => panic!("{name}: {other}"),
        };
        // Compression that works in large blocks leaves nothing of one that is cut.
        let least = if name.ends_with("bz2") || name.ends_with("zst") { 1 } else { 2 };
        assert!(has_footer || (least..=ROWS as u64).contains(&row), "{name}: {text}");

        write_jsonl(&folder.path().join("good.jsonl"), texts(2));
        let skipping = pipeline(folder.path(), Source::new(name.as_str()).on_error(OnError::Skip)).source("good.jsonl");
        let report = prepare(&skipping).unwrap_or_else(|error| panic!("{name}: {error}"));
        let source = &report.manifest.sources[0];
        assert!(source.quarantined > 0, "{name}");
        if !has_footer {
            let good = if source.rows + 1 == row || source.rows == row {
                row - 1
            } else {
                panic!("{name}: {} {row}", source.rows)
            };
            assert_eq!(report.manifest.account.documents, good + 2, "{name}");
        }
        let list = fs::read_to_string(report.output.join(QUARANTINE)).unwrap();
        let entry: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
        assert_eq!(entry["file"], name.as_str());
        assert!(!entry["reason"].as_str().unwrap().is_empty());
        fs::remove_dir_all(report.output).unwrap();
    }
}

#[test]
fn rows_that_cannot_be_read_are_named_or_skipped_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], u64, &str); 7] = [
        ("a.jsonl", b"{\"text\": \"x\"}\n\n{\"text\": \n{\"text\": \"y\"}\n", 2, "EOF while parsing"),
        (
            "b.jsonl",
            b"{\"text\": \"x\"}\n{\"text\": 3}\n{\"text\": \"y\"}\n",
            2,
            "column `text` holds a number here and text",
        ),
        ("c.jsonl", b"{\"text\": \"x\"}\n{\"text\": \"\xff\"}\n{\"text\": \"y\"}\n", 2, "unicode"),
        ("d.json", b"[{\"text\": \"x\"},\n{\"text\": tru},\n{\"text\": \"y\"}]", 2, "expected"),
        ("e.csv", b"text,n\nx,1\ny\ny,2\n", 2, "it has 1 fields, and the first line names 2"),
        ("f.csv", b"text,n\nx,1\n\xff,1\ny,2\n", 2, "not UTF-8 at byte 1"),
        ("g.txt", b"x\n\xff\ny\n", 2, "not UTF-8 at byte 1"),
    ];
    for (name, content, row, reason) in cases {
        fs::write(folder.path().join(name), content).unwrap();
        let source = Source::new(name);
        let source = if name.ends_with("txt") { source.document(TextDocument::Line) } else { source };
        let error = fails(folder.path(), source.clone());
        let (DataError::Json { row: found, .. } | DataError::Damaged { row: found, .. }) = &error else {
            panic!("{name}: {error}")
        };
        assert_eq!(*found, row, "{name}: {error}");
        assert!(error.to_string().contains(name) && error.to_string().contains(reason), "{name}: {error}");
        assert!(error.help().unwrap().contains("on_error"));

        // The pipeline's own choice counts where the source has none.
        let skipping = pipeline(folder.path(), source).on_error(OnError::Skip);
        let report = prepare(&skipping).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report.manifest.account.documents, 2, "{name}");
        assert_eq!((report.manifest.sources[0].rows, report.manifest.sources[0].quarantined), (3, 1), "{name}");
        let entry: Value = serde_json::from_slice(&fs::read(report.output.join(QUARANTINE)).unwrap()).unwrap();
        assert_eq!(
            (entry["file"].as_str(), entry["row"].as_u64(), entry["rows"].as_u64()),
            (Some(name), Some(row), Some(1))
        );
        // Rows behind the one that was left out keep their number.
        assert_eq!(documents(&rows(&report.output, Split::Train)).keys().copied().collect::<Vec<_>>(), [0, 2]);
        fs::remove_dir_all(report.output).unwrap();
    }
}

#[test]
fn a_whole_text_that_is_not_utf8_is_named_or_skipped() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "good").unwrap();
    fs::write(folder.path().join("b.txt"), b"bad \xff").unwrap();
    let error = fails(folder.path(), "*.txt");
    assert!(
        matches!(&error, DataError::Damaged { path, row: 1, message } if path.ends_with("b.txt") && message.contains("byte 5")),
        "{error}"
    );
    assert_eq!(read(folder.path(), Source::new("*.txt").on_error(OnError::Skip)), ["good"]);
}

#[test]
fn the_other_groups_of_a_parquet_file_are_kept_when_one_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_parquet(&path, ROWS);
    let whole = read(folder.path(), "rows.parquet");
    let mut content = fs::read(&path).unwrap();
    let damaged = content.windows(6).position(|bytes| bytes == b"row 10").unwrap_or(content.len() / 3);
    content[damaged.saturating_sub(40)..damaged + 40].fill(0xff);
    fs::write(&path, content).unwrap();
    let error = fails(folder.path(), "rows.parquet");
    assert!(matches!(&error, DataError::Parquet { message, .. } if message.contains("from row ")), "{error}");
    let kept = read(folder.path(), Source::new("rows.parquet").on_error(OnError::Skip));
    assert!(kept.len() >= 200 && kept.len() < ROWS && kept.iter().all(|text| whole.contains(text)), "{}", kept.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_file_with_any_damage_is_an_error_or_skipped_and_never_a_panic(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let names = write_all(folder.path());
        let name = which.get(&names).as_str();
        let path = folder.path().join(name);
        let mut content = fs::read(&path).unwrap();
        for (at, byte) in edits {
            let at = at.index(content.len());
            content[at] = byte;
        }
        if is_cut {
            content.truncate(length.index(content.len()));
        }
        fs::write(&path, content).unwrap();
        for on_error in [OnError::Fail, OnError::Skip] {
            let pipeline = Pipeline::new().relative_to(folder.path()).source(Source::new(name).on_error(on_error));
            let read = pipeline.texts(&Resources::default()).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            if let Err(error) = read {
                prop_assert!(!format!("{error:?}").contains("panic"), "{}: {:?}", name, error);
            }
        }
    }
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

#[test]
fn rows_in_error_messages_are_those_of_the_file_in_a_mix_too() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), texts(50));
    write_jsonl(&folder.path().join("b.jsonl"), (0..50).map(|i| json!({ "text": (i != 7).then_some("x") })));
    let mix = Pipeline::new()
        .relative_to(folder.path())
        .source(Source::new("a.jsonl").weight(1.0))
        .source(Source::new("b.jsonl").weight(1.0))
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(64))
        .output("prepared");
    let error = prepare(&mix).unwrap_err();
    assert!(matches!(&error, DataError::Row { path, row: 8, .. } if path.ends_with("b.jsonl")), "{error}");
}
