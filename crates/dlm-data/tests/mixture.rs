//! Several prepared datasets as one, and rows held out of them.

mod support;

use dlm_data::{
    Cursor, DataError, Document, HeldOut, Mixture, Pack, Part, Pipeline, PreparedData, Reader, ReaderConfig, Split,
    Tokenize, Window,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::OnceLock,
};
use support::{prepare, text_pipeline, texts, tokenizer, write_jsonl};
use tempfile::TempDir;

/// A dataset of `count` documents.
fn dataset(folder: &Path, count: usize, sequence_len: usize) -> PreparedData {
    std::fs::create_dir_all(folder).unwrap();
    write_jsonl(&folder.join("rows.jsonl"), texts(count));
    prepare(&text_pipeline(folder, sequence_len)).unwrap();
    PreparedData::open(folder.join("prepared"), Split::Train).unwrap()
}

/// Three datasets of different sizes, made once.
fn datasets() -> [PreparedData; 3] {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for (name, count) in [("a", 60), ("b", 13), ("c", 4)] {
            dataset(&folder.path().join(name), count, 24);
        }
        folder
    });
    ["a", "b", "c"].map(|name| PreparedData::open(folder.path().join(name).join("prepared"), Split::Train).unwrap())
}

fn config() -> ReaderConfig {
    ReaderConfig { micro_batch_size: 3, micro_batches_per_window: 2, seed: 4, ..ReaderConfig::default() }
}

fn epochs(mixture: &Mixture, count: u64) -> Vec<Vec<Window>> {
    let mut reader = Reader::new(mixture, config(), Cursor::default()).unwrap();
    let mut epoch = || (0..reader.windows_per_epoch()).map(|_| reader.next_window().unwrap()).collect();
    (0..count).map(|_| epoch()).collect()
}

/// The dataset a row is from, its first document in it and the occurrence, in order.
fn rows(epoch: &[Window]) -> Vec<(i64, Document)> {
    let documents = epoch.iter().flat_map(|window| &window.micro_batches).flat_map(|batch| &batch.documents);
    documents.filter(|document| document.segment == 1).map(|document| (document.id >> 48, *document)).collect()
}

#[test]
fn without_weights_every_row_of_every_dataset_comes_once_an_epoch() {
    let mixture = Mixture::new(datasets()).unwrap();
    let all: u64 = datasets().iter().map(PreparedData::rows).sum();
    assert_eq!(mixture.rows(), all);
    for epoch in epochs(&mixture, 2) {
        let rows = rows(&epoch);
        assert_eq!(rows.len() as u64, all);
        assert!(rows.iter().all(|(_, document)| document.occurrence == 0));
        let places: BTreeSet<_> = rows.iter().map(|(_, document)| (document.id, document.offset)).collect();
        assert_eq!(places.len(), rows.len());
        // Shuffled over all of them: not one dataset after the other.
        assert!(rows.windows(2).filter(|pair| pair[0].0 != pair[1].0).count() > 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shares_of_an_epoch_are_exact_and_repeated_rows_are_numbered_in_their_order(
        weights in proptest::array::uniform3(0.05f64..3.0)
    ) {
        let datasets = datasets();
        let mixture = Mixture::weighted(datasets.iter().cloned().zip(weights)).unwrap();
        let shares = mixture.rows_per_epoch();
        let sum: f64 = weights.iter().sum();
        let mut seen = vec![HashMap::<(i64, i64), u64>::new(); 3];
        let epochs = epochs(&mixture, 3);
        for epoch in &epochs {
            let mut counts = [0; 3];
            let mut before: HashMap<(i64, i64), u64> = HashMap::new();
            for (part, document) in rows(epoch) {
                let part = usize::try_from(part).unwrap();
                counts[part] += 1;
                let before = before.entry((document.id, document.offset)).or_default();
                prop_assert_eq!(document.occurrence, *before);
                *before += 1;
                *seen[part].entry((document.id, document.offset)).or_default() += 1;
            }
            prop_assert_eq!(&counts[..], &shares[..]);
        }
        for ((share, weight), (data, seen)) in shares.iter().zip(weights).zip(datasets.iter().zip(&seen)) {
            prop_assert!((*share as f64 - mixture.rows() as f64 * weight / sum).abs() < 1.0);
            // Over epochs no row falls behind: pass after pass has each once.
            let turns = 3 * share;
            let (least, most) = (seen.values().min().unwrap(), seen.values().max().unwrap());
            prop_assert!(most - least <= 1 || seen.len() as u64 == data.rows());
            prop_assert_eq!(seen.values().sum::<u64>(), turns);
            prop_assert!(*most <= turns.div_ceil(data.rows()));
        }
    }

    #[test]
    fn a_mixture_resumed_anywhere_goes_on_alike(steps in 0usize..40, weight in 0.1f64..9.0) {
        let [a, _, c] = datasets();
        let mixture = Mixture::weighted([(a, 1.0), (c, weight)]).unwrap();
        let mut unbroken = Reader::new(&mixture, config(), Cursor::default()).unwrap();
        for _ in 0..steps {
            unbroken.next_window().unwrap();
        }
        let at = unbroken.cursor();
        let mut resumed = Reader::new(&mixture, config(), Cursor::at(at.epoch, at.position)).unwrap();
        for _ in 0..4 {
            prop_assert_eq!(unbroken.next_window().unwrap(), resumed.next_window().unwrap());
        }
    }
}

#[test]
fn weights_decide_and_not_only_sizes() {
    let [a, b, _] = datasets();
    let total = a.rows() + b.rows();
    let shares = |weights: [f64; 2]| {
        Mixture::weighted([(a.clone(), weights[0]), (b.clone(), weights[1])]).unwrap().rows_per_epoch()
    };
    assert_eq!(shares([1.0, 1.0]), [total.div_ceil(2), total / 2]);
    assert_eq!(shares([30.0, 10.0]).iter().sum::<u64>(), total);
    assert!(shares([30.0, 10.0])[0] >= 3 * shares([30.0, 10.0])[1] - 3);
}

#[test]
fn data_that_cannot_be_mixed_is_refused_with_both_folders() {
    let [a, b, _] = datasets();
    let folder = tempfile::tempdir().unwrap();
    let says = |other: &PreparedData| {
        let error = Mixture::new([a.clone(), other.clone()]).unwrap_err();
        assert!(matches!(&error, DataError::Unmixable { paths, .. } if paths.1 == other.folder()), "{error}");
        assert!(error.help().is_some());
        error.to_string()
    };
    assert!(says(&dataset(folder.path(), 5, 32)).contains("their rows have 24 and 32 tokens"));
    assert!(says(&a.clone()).contains("they are the same"));

    let other = folder.path().join("tokenizer");
    std::fs::create_dir_all(&other).unwrap();
    for entry in std::fs::read_dir(tokenizer()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let json = std::fs::read_to_string(other.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["truncation"] =
        serde_json::json!({ "direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0 });
    std::fs::write(other.join("tokenizer.json"), json.to_string()).unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(9));
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").tokenize(Tokenize::new(&other));
    prepare(&pipeline.pack(Pack::new(24)).output("other")).unwrap();
    assert!(
        says(&PreparedData::open(folder.path().join("other"), Split::Train).unwrap()).contains("different tokenizers")
    );

    for weights in [[0.0, 1.0], [f64::NAN, 1.0], [-1.0, 1.0], [1e-9, 1.0], [f64::INFINITY, 1.0]] {
        let mixed = Mixture::weighted([(a.clone(), weights[0]), (b.clone(), weights[1])]);
        assert!(matches!(mixed, Err(DataError::Invalid(message)) if message.contains("the weight")));
    }
    assert!(matches!(Mixture::new([]), Err(DataError::Invalid(_))));
}

#[test]
fn a_side_without_rows_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    // So large a share that no document is left for training.
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").split(0.999_999_999);
    let pipeline = pipeline.tokenize(Tokenize::new(tokenizer())).pack(Pack::new(24)).output("prepared");
    prepare(&pipeline).unwrap();
    let data = PreparedData::open(folder.path().join("prepared"), Split::Train).unwrap();
    assert_eq!(data.rows(), 0);
    let error = Mixture::new([data.clone()]).unwrap_err();
    assert!(error.to_string().starts_with("the `train` side of "), "{error}");
    assert!(matches!(Reader::new(&data, config(), Cursor::default()), Err(DataError::EmptySide { .. })));
}

fn contents(mixture: &Mixture) -> Vec<Vec<i32>> {
    (0..mixture.rows()).map(|i| mixture.read_row(i).unwrap().input_ids).collect()
}

#[test]
fn a_part_held_out_and_the_rest_are_all_rows_and_share_none() {
    let [data, ..] = datasets();
    let data = Mixture::from(data);
    let HeldOut { rest, part, .. } = data.hold_out(Part::Share(0.2), 5).unwrap();
    assert!(part.rows() > 0 && part.rows() <= (data.rows() as f64 * 0.2).round() as u64);
    let mut together = [contents(&rest), contents(&part)].concat();
    together.sort();
    let mut all = contents(&data);
    all.sort();
    assert_eq!(together, all);

    let seven = |seed| contents(&data.hold_out(Part::Rows(7), seed).unwrap().part);
    assert!(seven(5).len() <= 7);
    assert_eq!(seven(5), seven(5));
    assert_ne!(seven(5), seven(6));
    let (_, part) = (rest, part);
    let mut reader = Reader::new(&part, config(), Cursor::default()).unwrap();
    assert_eq!(reader.next_window().unwrap().epoch, 0);

    for part in [Part::Share(0.0), Part::Share(1.0), Part::Rows(0), Part::Rows(data.rows())] {
        assert!(matches!(data.hold_out(part, 0), Err(DataError::Invalid(_))));
    }
}

/// Rows that each hold one document, as long as a row or shorter, with the texts given.
fn prepared(folder: &Path, texts: impl IntoIterator<Item = String>, sequence_len: usize) -> PreparedData {
    std::fs::create_dir_all(folder).unwrap();
    write_jsonl(&folder.join("rows.jsonl"), texts.into_iter().map(|text| serde_json::json!({ "text": text })));
    prepare(&text_pipeline(folder, sequence_len)).unwrap();
    PreparedData::open(folder.join("prepared"), Split::Train).unwrap()
}

#[test]
fn equal_rows_of_all_datasets_never_stand_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    // Of 30 texts each stands twice in the first dataset and once in the second; a row has room for one.
    let text = |i: usize| format!("number {} {}", i % 30, "word ".repeat(9));
    let a = prepared(&folder.path().join("a"), (0..60).map(text), 48);
    let b = prepared(&folder.path().join("b"), (0..30).map(text), 48);
    let mixture = Mixture::new([a, b]).unwrap();
    assert_eq!(mixture.rows(), 90);
    for seed in 0..5 {
        let HeldOut { rest, part, cuts_documents } = mixture.hold_out(Part::Share(0.3), seed).unwrap();
        assert_eq!((part.rows(), cuts_documents), (27, false));
        let rest: BTreeSet<_> = contents(&rest).into_iter().collect();
        assert!(contents(&part).iter().all(|row| !rest.contains(row)));
    }
}

#[test]
fn pieces_of_a_document_stay_together_where_they_can_and_it_is_said_where_they_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let long = |i: usize| (0..60).map(|j| format!("{} ", i * 100 + j)).collect::<String>();
    let apart = folder.path().join("several");
    std::fs::create_dir_all(&apart).unwrap();
    write_jsonl(&apart.join("rows.jsonl"), (0..12).map(|i| serde_json::json!({ "text": long(i) })));
    let report = prepare(&text_pipeline(&apart, 16).with_override("pack.strategy", "alone").unwrap()).unwrap();
    assert!(report.manifest.train.rows > 40);
    let several = PreparedData::open(report.output, Split::Train).unwrap();
    // A piece in each row: the rows of one document hang together, and those of another are apart from them.
    let HeldOut { rest, part, cuts_documents } = Mixture::from(&several).hold_out(Part::Share(0.4), 1).unwrap();
    let documents = |mixture: &Mixture| -> BTreeSet<i64> {
        (0..mixture.rows()).flat_map(|i| mixture.read_row(i).unwrap().document_ids).collect()
    };
    assert!(!cuts_documents && documents(&rest).is_disjoint(&documents(&part)));
    assert!(documents(&rest).len() > 6 && documents(&part).len() > 1);

    let single = prepared(&folder.path().join("single"), [(0..200).map(|j| format!("{j} ")).collect()], 16);
    let HeldOut { rest, part, cuts_documents } = Mixture::from(&single).hold_out(Part::Rows(3), 1).unwrap();
    assert_eq!((part.rows(), rest.rows() + 3, cuts_documents), (3, single.rows(), true));
}

#[test]
fn rows_are_counted_through_the_datasets_of_a_mixture() {
    let datasets = datasets();
    let mixture = Mixture::new(datasets.clone()).unwrap();
    let mut expected = BTreeMap::new();
    for (number, data) in datasets.iter().enumerate() {
        for i in 0..data.rows() {
            expected.insert((number, i), data.read_row(i).unwrap().input_ids);
        }
    }
    assert_eq!(contents(&mixture), expected.into_values().collect::<Vec<_>>());
    assert!(matches!(mixture.read_row(mixture.rows()), Err(DataError::Invalid(_))));
}
