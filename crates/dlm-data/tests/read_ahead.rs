//! Reading ahead after an error: the same windows as without.

mod support;

use dlm_data::{Cursor, DataError, PreparedData, Reader, ReaderConfig, Split};
use std::fs;
use support::{prepare, text_pipeline, texts, write_jsonl};

#[test]
fn after_an_error_in_a_later_epoch_a_reader_that_reads_ahead_goes_on_in_the_order_of_that_epoch() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(150));
    let pipeline = text_pipeline(folder.path(), 24).with_override("output.shard_tokens", "500").unwrap();
    let report = prepare(&pipeline).unwrap();
    let open = || PreparedData::open(&report.output, Split::Train).unwrap();
    let rows = open().rows();
    let config = ReaderConfig { seed: 11, ..ReaderConfig::default() };
    let ahead = ReaderConfig { read_ahead: 3, ..config };
    // The last row of the first epoch, with the number of documents before it: no footer has to be read for that.
    let start = Cursor { documents: Some(7), ..Cursor::at(0, rows - 1) };

    let mut errors = 0;
    for shard in &report.manifest.train.shards {
        let path = report.output.join(&shard.path);
        let whole = fs::read(&path).unwrap();
        let mut reader = Reader::new(open(), ahead, start).unwrap();
        let mut plain = Reader::new(open(), config, start).unwrap();
        fs::write(&path, b"short").unwrap();
        if reader.next_window().is_err() {
            fs::write(&path, &whole).unwrap();
            continue; // the row of the first epoch is in this shard
        }
        let mut read = 1;
        let error = loop {
            match reader.next_window() {
                Ok(window) => {
                    assert_eq!(window.epoch, 1);
                    read += 1;
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, DataError::Shard { path: found, .. } if found == path));
        errors += 1;
        fs::write(&path, &whole).unwrap();
        for _ in 0..read {
            plain.next_window().unwrap();
        }
        assert_eq!(reader.cursor(), plain.cursor());
        // To the end of the epoch, and beyond.
        for _ in 0..rows + 3 {
            assert_eq!(reader.next_window().unwrap(), plain.next_window().unwrap());
        }
    }
    assert!(errors > 1, "{errors} shards were met in the second epoch alone");
}
