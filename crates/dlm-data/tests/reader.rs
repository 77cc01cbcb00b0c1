//! The reader: every row once an epoch, windows that resume, documents that are counted.

mod support;

use dlm_data::{
    Batch, Cursor, DataError, Manifest, PreparedData, Process, Reader, ReaderConfig, ShardInfo, Split, Window,
};
use proptest::prelude::*;
use std::{fs, sync::OnceLock};
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
    ReaderConfig { micro_batch_size, micro_batches_per_window, seed: 11, shuffle, ..ReaderConfig::default() }
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
        let mut skipped = Reader::new(&data, config(size, 2, shuffle), Cursor::default()).unwrap();
        skipped.skip_to(Cursor::at(cursor.epoch, cursor.position)).unwrap();
        for _ in 0..3 {
            let window = unbroken.next_window().unwrap();
            prop_assert_eq!(&resumed.next_window().unwrap(), &window);
            prop_assert_eq!(&skipped.next_window().unwrap(), &window);
        }
    }

    #[test]
    fn processes_divide_every_window_without_overlap_or_omission(
        world_size in 1usize..6, size in 1usize..6, accumulation in 1usize..8, read_ahead in 0usize..3,
    ) {
        let data = data();
        let alone = config(size, accumulation, true);
        let mut whole = Reader::new(&data, alone, Cursor::default()).unwrap();
        let of_rank = |rank| {
            let config = ReaderConfig { process: Process { rank, world_size }, read_ahead, ..alone };
            Reader::new(&data, config, Cursor::default()).unwrap()
        };
        let mut ranks: Vec<Reader> = (0..world_size).map(of_rank).collect();
        for _ in 0..whole.windows_per_epoch() + 2 {
            let window = whole.next_window().unwrap();
            let mut parts: Vec<_> = ranks.iter_mut().map(|rank| rank.next_window().unwrap()).collect();
            prop_assert!(parts.iter().all(|part| (part.epoch, part.cursor) == (window.epoch, window.cursor)));
            let mut batches: Vec<_> = parts.iter_mut().map(|part| part.micro_batches.drain(..)).collect();
            let together: Vec<Batch> = (0..window.micro_batches.len()).filter_map(|i| batches[i % world_size].next()).collect();
            prop_assert_eq!(&together, &window.micro_batches);
            prop_assert!(batches.iter_mut().all(|rest| rest.next().is_none()));
        }
    }

    #[test]
    fn reading_ahead_changes_nothing_that_is_delivered(read_ahead in 1usize..5, size in 1usize..6, steps in 0u64..40) {
        let data = data();
        let mut plain = Reader::new(&data, config(size, 2, true), Cursor::default()).unwrap();
        let ahead = ReaderConfig { read_ahead, ..config(size, 2, true) };
        let mut ahead = Reader::new(&data, ahead, Cursor::default()).unwrap();
        for _ in 0..steps {
            prop_assert_eq!(ahead.next_window().unwrap(), plain.next_window().unwrap());
            prop_assert_eq!(ahead.cursor(), plain.cursor());
        }
    }
}

#[test]
fn a_reader_that_reads_ahead_stands_still_where_a_shard_is_damaged_and_goes_on_once_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(150));
    let pipeline = text_pipeline(folder.path(), 24).with_override("output.shard_tokens", "500").unwrap();
    let report = prepare(&pipeline).unwrap();
    let second = report.output.join(&report.manifest.train.shards[1].path);
    let data = PreparedData::open(&report.output, Split::Train).unwrap();
    let whole = fs::read(&second).unwrap();
    fs::write(&second, b"short").unwrap();

    let config = ReaderConfig { read_ahead: 3, ..config(1, 1, false) };
    let mut reader = Reader::new(&data, config, Cursor::default()).unwrap();
    let first = report.manifest.train.shards[0].rows;
    for _ in 0..first {
        reader.next_window().unwrap();
    }
    for _ in 0..2 {
        assert!(matches!(reader.next_window(), Err(DataError::Shard { path, .. }) if path == second));
        assert_eq!(reader.cursor().position, first);
    }
    fs::write(&second, &whole).unwrap();
    assert_eq!(reader.next_window().unwrap().cursor.position, first + 1);
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
        let mut reader = Reader::new(data(), config(4, 1, shuffle), Cursor::default()).unwrap();
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
    let documents = Some(data.document_count().unwrap());
    assert_eq!(reader.cursor(), Cursor { epoch: 0, position: data.rows(), documents });
    assert_eq!(reader.next_window().unwrap().epoch, 1);
}

#[test]
fn impossible_sizes_and_cursors_are_refused() {
    let data = data();
    let beyond = Cursor::at(0, data.rows() + 1);
    let stray = ReaderConfig { process: Process { rank: 2, world_size: 2 }, ..config(1, 1, true) };
    assert!(matches!(Reader::new(&data, stray, Cursor::default()), Err(DataError::Invalid(_))));
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
    changed[64] ^= 1;
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
    says(open().unwrap().read_row(first).unwrap_err());

    fs::remove_file(&path).unwrap();
    assert!(says(open().unwrap_err()).contains("not there"));
}

#[test]
fn a_shard_that_changes_while_it_is_read_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(12));
    // Four rows in a group, three groups in the shard: a group that was read once is not read again.
    let pipeline = text_pipeline(folder.path(), 4096).with_override("pack.strategy", "alone").unwrap();
    let report = prepare(&pipeline).unwrap();
    let path = report.output.join(&report.manifest.train.shards[0].path);
    let whole = fs::read(&path).unwrap();
    let data = PreparedData::open(&report.output, Split::Train).unwrap();
    assert!(data.read_row(0).is_ok());
    let says = |row| match data.read_row(row) {
        Err(DataError::Shard { path: found, message }) if found == path => message,
        other => panic!("{other:?}"),
    };

    let mut changed = whole.clone();
    changed[64] ^= 1;
    fs::write(&path, &changed).unwrap();
    // Whatever the clock of the file system can tell apart.
    let later = fs::metadata(&path).unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    assert!(says(5).contains("checksum"));
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    assert!(says(9).contains("the manifest says"));
    fs::remove_file(&path).unwrap();
    assert!(says(9).contains("not there"));
    fs::write(&path, &whole).unwrap();
    assert!(data.read_row(9).is_ok());
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

#[test]
fn a_million_rows_open_and_are_skipped_without_reading_a_byte_of_them() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let output = prepare(&text_pipeline(folder.path(), 24)).unwrap().output;
    // Shards with nothing in them but their size: whoever reads one finds out.
    let mut manifest = Manifest::read(&output).unwrap();
    let shard = manifest.train.shards[0].clone();
    let rows = 4096;
    manifest.train.shards = (0..250)
        .map(|number| ShardInfo { path: format!("train/{number}.parquet"), rows, size_bytes: 1 << 24, ..shard.clone() })
        .collect();
    manifest.train.rows = 250 * rows;
    for shard in &manifest.train.shards {
        fs::File::create(output.join(&shard.path)).unwrap().set_len(1 << 24).unwrap();
    }
    fs::write(output.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();

    let data = PreparedData::open(&output, Split::Train).unwrap();
    assert_eq!(data.rows(), 1_024_000);
    let mut reader = Reader::new(&data, config(8, 4, true), Cursor::default()).unwrap();
    assert_eq!(reader.windows_per_epoch(), 32_000);
    let far = Cursor { documents: Some(7), ..Cursor::at(5, 1_000_000) };
    reader.skip_to(far).unwrap();
    assert_eq!(reader.cursor(), far);
    assert!(matches!(reader.next_window(), Err(DataError::Shard { .. })));
}
