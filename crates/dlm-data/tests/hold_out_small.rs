//! Rows held out of a large dataset beside a small one.

mod support;

use dlm_data::{DataError, HeldOut, Mixture, Part, PreparedData, Split};
use std::path::Path;
use support::{prepare, text_pipeline, texts, write_jsonl};

fn dataset(folder: &Path, count: usize) -> PreparedData {
    std::fs::create_dir_all(folder).unwrap();
    write_jsonl(&folder.join("rows.jsonl"), texts(count));
    let pipeline = text_pipeline(folder, 32).with_override("pack.strategy", "alone").unwrap();
    PreparedData::open(prepare(&pipeline).unwrap().output, Split::Train).unwrap()
}

#[test]
fn every_dataset_keeps_a_row_to_train_on() {
    let folder = tempfile::tempdir().unwrap();
    let large = dataset(&folder.path().join("large"), 40);
    // Its row stands in the large one, too.
    let small = dataset(&folder.path().join("small"), 1);
    assert_eq!(small.rows(), 1);
    let mixture = Mixture::weighted([(large.clone(), 0.9), (small, 0.1)]).unwrap();
    for seed in 0..20 {
        let HeldOut { rest, part, .. } = mixture.hold_out(Part::Share(0.5), seed).unwrap();
        assert_eq!(rest.datasets().len(), 2, "seed {seed}");
        assert!(part.rows() > 0);
    }
    // Nothing but single rows: there is nothing to hold out.
    let (a, b) = (dataset(&folder.path().join("a"), 1), folder.path().join("b"));
    std::fs::create_dir_all(&b).unwrap();
    write_jsonl(&b.join("rows.jsonl"), [serde_json::json!({ "text": "another row" })]);
    let b = PreparedData::open(prepare(&text_pipeline(&b, 32)).unwrap().output, Split::Train).unwrap();
    let error = Mixture::new([a, b]).unwrap().hold_out(Part::Rows(1), 0).unwrap_err();
    assert!(
        matches!(&error, DataError::Invalid(message) if message.contains("none would be left of a dataset")),
        "{error}"
    );
}
