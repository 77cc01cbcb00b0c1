//! Several sources: drawn by weight, and named in errors.

use super::inputs::{fails, pipeline};
use crate::support::{options, prepare, texts, tokenizer, tree, write_jsonl};
use dlm_data::{DataError, Mix, MixStop, Pack, Pipeline, Resources, Source, TextDocument, Tokenize};
use serde_json::json;
use std::{fs, path::Path};

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
