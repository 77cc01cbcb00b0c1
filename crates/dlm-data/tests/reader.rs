//! The reader: every row once an epoch, windows that resume, documents that are counted.

mod support;

use dlm_data::{Batch, Cursor, DataError, Part, PreparedData, Reader, ReaderConfig, Split, Window};
use proptest::prelude::*;
use std::{collections::BTreeSet, fs, sync::OnceLock};
use support::{prepare, text_pipeline, texts, write_jsonl};
use tempfile::TempDir;

/// Some rows in several shards, made once.
fn data() -> PreparedData {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        write_jsonl(&folder.path().join("rows.jsonl"), texts(150));
        let pipeline = text_pipeline(folder.path(), 24).with_override("output.shard_tokens", "500").unwrap();
        assert!(prepare(&pipeline).unwrap().manifest.train.shards.len() > 2);
        folder
    });
    PreparedData::open(folder.path().join("prepared"), Split::Train).unwrap()
}

fn config(micro_batch_size: usize, micro_batches_per_window: usize, shuffle: bool) -> ReaderConfig {
    ReaderConfig { micro_batch_size, micro_batches_per_window, seed: 11, shuffle }
}

fn row_ids(batch: &Batch) -> impl Iterator<Item = Vec<i32>> {
    batch.ids.chunks(batch.seq_len).map(<[i32]>::to_vec)
}

fn epoch(reader: &mut Reader) -> Vec<Window> {
    (0..reader.windows_per_epoch()).map(|_| reader.next_window().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_epoch_has_every_row_once_and_counts_every_document(size in 1usize..9, accumulation in 1usize..5, shuffle: bool) {
        let data = data();
        let mut reader = Reader::new(&data, config(size, accumulation, shuffle), Cursor::default()).unwrap();
        let mut stored: Vec<Vec<i32>> = (0..data.rows()).map(|i| data.read_row(i).unwrap().input_ids).collect();
        stored.sort();
        for number in 0..2 {
            let windows = epoch(&mut reader);
            prop_assert!(windows.iter().all(|window| window.epoch == number));
            let batches: Vec<&Batch> = windows.iter().flat_map(|window| &window.micro_batches).collect();
            let mut found: Vec<Vec<i32>> = batches.iter().flat_map(|batch| row_ids(batch)).collect();
            found.sort();
            prop_assert_eq!(&found, &stored);
            let ordinals: Vec<u64> = batches.iter().flat_map(|batch| &batch.documents).map(|d| d.ordinal).collect();
            prop_assert_eq!(ordinals, (0..data.document_count().unwrap()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reader_resumed_at_any_cursor_goes_on_alike(steps in 0usize..60, size in 1usize..6, shuffle: bool) {
        let data = data();
        let mut unbroken = Reader::new(&data, config(size, 2, shuffle), Cursor::default()).unwrap();
        for _ in 0..steps {
            unbroken.next_window().unwrap();
        }
        let cursor = unbroken.cursor();
        let stored = serde_json::to_string(&cursor).unwrap();
        let mut resumed = Reader::new(&data, config(size, 2, shuffle), serde_json::from_str(&stored).unwrap()).unwrap();
        for _ in 0..3 {
            prop_assert_eq!(unbroken.next_window().unwrap(), resumed.next_window().unwrap());
        }
    }
}

#[test]
fn batches_describe_their_documents() {
    let data = data();
    let mut reader = Reader::new(&data, config(3, 2, true), Cursor::default()).unwrap();
    for window in epoch(&mut reader) {
        for batch in &window.micro_batches {
            assert_eq!(batch.ids.len(), batch.rows * batch.seq_len);
            for document in &batch.documents {
                let start = document.row * batch.seq_len + document.start;
                let place = start..start + document.len;
                assert!(batch.segment_ids[place.clone()].iter().all(|segment| *segment == document.segment));
                assert_eq!(batch.position_ids[place], (0..document.len as i32).collect::<Vec<_>>());
                assert_eq!(document.occurrence, 0);
            }
            let tokens: usize = batch.documents.iter().map(|document| document.len).sum();
            assert_eq!(tokens, batch.segment_ids.iter().filter(|segment| **segment > 0).count());
        }
    }
}

#[test]
fn epochs_come_in_other_orders_unless_shuffling_is_off() {
    let order = |shuffle: bool| {
        let mut reader = Reader::new(&data(), config(4, 1, shuffle), Cursor::default()).unwrap();
        [epoch(&mut reader), epoch(&mut reader)].map(|windows| {
            let batches = windows.iter().flat_map(|window| &window.micro_batches);
            batches.flat_map(row_ids).collect::<Vec<_>>()
        })
    };
    let [first, second] = order(true);
    assert_ne!(first, second);
    let [first, second] = order(false);
    assert_eq!(first, second);
}

#[test]
fn the_last_window_is_smaller_and_loses_nothing() {
    let data = data();
    let mut reader = Reader::new(&data, config(4, 3, false), Cursor::default()).unwrap();
    let windows = epoch(&mut reader);
    let rows = |window: &Window| window.micro_batches.iter().map(|batch| batch.rows as u64).sum::<u64>();
    assert!(windows[..windows.len() - 1].iter().all(|window| rows(window) == 12));
    assert_eq!(windows.iter().map(rows).sum::<u64>(), data.rows());
    assert_eq!(reader.cursor(), Cursor { epoch: 0, position: data.rows() });
    assert_eq!(reader.next_window().unwrap().epoch, 1);
}

#[test]
fn a_part_split_off_and_the_rest_are_all_rows_and_share_none() {
    let data = data();
    let ids = |part: &PreparedData| -> Vec<Vec<i32>> {
        (0..part.rows()).map(|i| part.read_row(i).unwrap().input_ids).collect()
    };
    let (train, validation) = data.split_off(Part::Share(0.2), 5).unwrap();
    assert_eq!(validation.rows(), (data.rows() as f64 * 0.2).round() as u64);
    let mut together = [ids(&train), ids(&validation)].concat();
    together.sort();
    let mut all = ids(&data);
    all.sort();
    assert_eq!(together, all);
    assert_eq!(train.document_count().unwrap() + validation.document_count().unwrap(), data.document_count().unwrap());

    let (_, seven) = data.split_off(Part::Rows(7), 5).unwrap();
    assert_eq!(seven.rows(), 7);
    assert_eq!(ids(&seven), ids(&data.split_off(Part::Rows(7), 5).unwrap().1));
    assert_ne!(ids(&seven), ids(&data.split_off(Part::Rows(7), 6).unwrap().1));
    let found: BTreeSet<_> = ids(&seven).into_iter().collect();
    assert!(found.is_subset(&ids(&data).into_iter().collect()));
    let mut reader = Reader::new(&seven, config(3, 1, true), Cursor::default()).unwrap();
    assert_eq!(epoch(&mut reader).len(), 3);

    for part in [Part::Share(0.0), Part::Share(1.0), Part::Rows(0), Part::Rows(data.rows())] {
        assert!(matches!(data.split_off(part, 0), Err(DataError::Invalid(_))));
    }
}

#[test]
fn impossible_sizes_and_cursors_are_refused() {
    let data = data();
    let beyond = Cursor { epoch: 0, position: data.rows() + 1 };
    assert!(matches!(Reader::new(&data, config(1, 1, true), beyond), Err(DataError::Invalid(_))));
    assert!(matches!(Reader::new(&data, config(0, 1, true), Cursor::default()), Err(DataError::Invalid(_))));
    assert!(matches!(data.read_row(data.rows()), Err(DataError::Invalid(_))));
}

#[test]
fn damage_is_reported_with_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(150));
    let pipeline = text_pipeline(folder.path(), 24).with_override("output.shard_tokens", "500").unwrap();
    let report = prepare(&pipeline).unwrap();
    let path = report.output.join(&report.manifest.train.shards[1].path);
    let whole = fs::read(&path).unwrap();
    let says = |error: DataError| {
        assert!(matches!(&error, DataError::Shard { path: found, .. } if *found == path), "{error}");
        error.to_string()
    };
    let open = || PreparedData::open(&report.output, Split::Train);

    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    assert!(says(open().unwrap_err()).contains("the manifest says"));

    let mut changed = whole.clone();
    changed[whole.len() / 3] ^= 1;
    fs::write(&path, &changed).unwrap();
    let data = open().unwrap();
    says(data.verify().unwrap_err());
    let first = report.manifest.train.shards[0].rows;
    assert!(data.read_row(0).is_ok());
    assert!(says(data.read_row(first).unwrap_err()).contains("checksum"));

    let mut no_footer = whole.clone();
    let end = whole.len() - 4;
    no_footer[end..].copy_from_slice(b"XXXX");
    fs::write(&path, &no_footer).unwrap();
    says(open().unwrap_err());

    fs::remove_file(&path).unwrap();
    assert!(says(open().unwrap_err()).contains("not there"));
}

#[test]
fn folders_without_prepared_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let says = |text: Option<&str>| {
        if let Some(text) = text {
            fs::write(folder.path().join("manifest.json"), text).unwrap();
        }
        PreparedData::open(folder.path(), Split::Train).unwrap_err().to_string()
    };
    assert!(says(None).contains("there is no `manifest.json`"));
    assert!(says(Some("{")).contains("`manifest.json`: EOF"));
    assert!(says(Some("{\"format_version\": 99}")).contains("version 99"));
    assert!(says(Some("{\"format_version\": 1}")).contains("missing field"));
    assert!(matches!(PreparedData::open(data().folder(), Split::Validation), Err(DataError::NotPrepared { .. })));
    assert!(!PreparedData::has(data().folder(), Split::Validation).unwrap());
}
