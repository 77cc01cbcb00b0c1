//! Files and rows that cannot be read: named, or left out and listed.

use super::inputs::{ROWS, fails, pipeline, read, write_all, write_parquet};
use crate::support::{documents, prepare, rows, texts, write_jsonl};
use dlm_data::{DataError, OnError, Pipeline, QUARANTINE, Resources, Source, Split, TextDocument};
use proptest::prelude::*;
use serde_json::Value;
use std::{fs, path::Path};

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
