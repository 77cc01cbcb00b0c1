//! Looking prepared data through: sound data has no violation, and each way to corrupt it is found and named.

mod support;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, Int32Array, Int64Array, ListArray, RecordBatch},
        compute::concat_batches,
        datatypes::{DataType, Int32Type, Int64Type},
    },
    parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
};
use dlm_data::{Fault, Pack, Pipeline, Tokenize, Validation, Violation, validate};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};
use support::{prepare, texts, tokenizer, write_jsonl};

/// Prepared data of both sides in several shards.
fn prepared(folder: &Path) -> PathBuf {
    write_jsonl(&folder.join("rows.jsonl"), texts(300));
    let pipeline = Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .split(0.3)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack { window: 8, ..Pack::new(50) })
        .output("prepared")
        .with_override("output.shard_tokens", "2000")
        .unwrap();
    prepare(&pipeline).unwrap().output
}

fn change_manifest(data: &Path, change: impl FnOnce(&mut Value)) {
    let path = data.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

/// Makes another shard of the second training shard, and lets the manifest agree with its bytes.
fn change_shard(data: &Path, change: impl FnOnce(RecordBatch) -> RecordBatch) {
    let path = data.join("train/00001.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let footer = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let changed = change(concat_batches(&schema, &batches).unwrap());
    let mut writer = ArrowWriter::try_new(Vec::new(), changed.schema(), None).unwrap();
    writer.write(&changed).unwrap();
    footer
        .into_iter()
        .filter(|entry| entry.key.starts_with("dlm."))
        .for_each(|entry| writer.append_key_value_metadata(entry));
    let bytes = writer.into_inner().unwrap();
    change_manifest(data, |manifest| {
        let shard = &mut manifest["train"]["shards"][1];
        shard["size_bytes"] = json!(bytes.len());
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        shard["sha256"] = json!(hash);
    });
    fs::write(path, bytes).unwrap();
}

/// Changes the values of a column of lists in row 3; `change` may also make them fewer.
fn change_row(batch: &RecordBatch, column: &str, change: impl FnOnce(&mut Vec<i64>)) -> RecordBatch {
    let lists = batch[column].as_list::<i32>();
    let is_long = lists.value_type() == DataType::Int64;
    let mut rows: Vec<Vec<i64>> = (0..lists.len())
        .map(|i| match is_long {
            true => lists.value(i).as_primitive::<Int64Type>().values().to_vec(),
            false => {
                lists.value(i).as_primitive::<Int32Type>().values().iter().map(|value| i64::from(*value)).collect()
            }
        })
        .collect();
    change(&mut rows[3]);
    let DataType::List(item) = lists.data_type() else { panic!("`{column}` is no list") };
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let values: ArrayRef = match is_long {
        true => Arc::new(Int64Array::from(rows.concat())),
        false => Arc::new(Int32Array::from_iter_values(rows.concat().into_iter().map(|value| value as i32))),
    };
    let changed: ArrayRef = Arc::new(ListArray::new(Arc::clone(item), offsets, values, None));
    let schema = batch.schema();
    let columns = schema.fields().iter().map(|field| match field.name() == column {
        true => Arc::clone(&changed),
        false => Arc::clone(&batch[field.name().as_str()]),
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap()
}

/// The violations of data that was corrupted like this.
fn violations(corrupt: impl FnOnce(&Path)) -> Vec<Violation> {
    let folder = tempfile::tempdir().unwrap();
    let data = prepared(folder.path());
    corrupt(&data);
    validate(&data).unwrap().violations
}

#[track_caller]
fn assert_row_fault(column: &str, fault: Fault, change: impl FnOnce(&mut Vec<i64>)) {
    let found = violations(|data| change_shard(data, |batch| change_row(&batch, column, change)));
    let expected = found.iter().find(|violation| violation.fault == fault);
    let expected = expected.unwrap_or_else(|| panic!("no {fault:?} in {found:?}"));
    assert_eq!((expected.path.as_str(), expected.row), ("train/00001.parquet", Some(3)));
}

#[test]
fn sound_data_has_no_violation_and_everything_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let data = prepared(folder.path());
    let found = validate(&data).unwrap();
    assert!(found.is_sound(), "{found:?}");
    let manifest = dlm_data::Manifest::read(&data).unwrap();
    let validation = manifest.validation.unwrap();
    assert!(manifest.train.shards.len() > 1);
    let expected = Validation {
        shards: (manifest.train.shards.len() + validation.shards.len()) as u64,
        rows: manifest.train.rows + validation.rows,
        tokens: manifest.train.tokens + validation.tokens,
        ..Validation::default()
    };
    assert_eq!(found, expected);
}

#[test]
fn a_row_that_does_not_hold_together_is_named() {
    assert_row_fault("input_ids", Fault::Vocabulary, |ids| ids[1] = 1_000_000);
    assert_row_fault("input_ids", Fault::Vocabulary, |ids| ids[1] = -1);
    assert_row_fault("labels", Fault::Labels, |labels| labels[1] += 1);
    assert_row_fault("segment_ids", Fault::Segments, |segments| segments[0] = 2);
    assert_row_fault("position_ids", Fault::Positions, |positions| positions[1] = 7);
    assert_row_fault("document_ids", Fault::Documents, |ids| ids.truncate(ids.len() - 1));
    assert_row_fault("document_offsets", Fault::Documents, |offsets| offsets[0] = -3);
    assert_row_fault("labels", Fault::Length, |labels| labels.truncate(labels.len() - 1));
}

#[test]
fn files_that_are_not_those_of_the_manifest_are_named() {
    type Corrupt = fn(&Path);
    let cases: [(Corrupt, Fault, &str); 8] = [
        (|data| fs::remove_file(data.join("train/00001.parquet")).unwrap(), Fault::Shard, "train/00001.parquet"),
        (
            |data| {
                let path = data.join("validation/00000.parquet");
                let mut bytes = fs::read(&path).unwrap();
                bytes[20] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            Fault::Shard,
            "validation/00000.parquet",
        ),
        (
            |data| {
                let path = data.join("train/00000.parquet");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            },
            Fault::Shard,
            "train/00000.parquet",
        ),
        (
            |data| fs::write(data.join("train/.tmp-00000.parquet-1-0"), "").unwrap(),
            Fault::Leftover,
            "train/.tmp-00000.parquet-1-0",
        ),
        (|data| fs::create_dir(data.join(".preparing")).unwrap(), Fault::Leftover, ".preparing"),
        (|data| fs::write(data.join("validation/notes.txt"), "").unwrap(), Fault::Leftover, "validation/notes.txt"),
        (|data| fs::remove_dir_all(data.join("tokenizer")).unwrap(), Fault::Tokenizer, "tokenizer"),
        (|data| fs::write(data.join("manifest.json"), "{").unwrap(), Fault::Manifest, "manifest.json"),
    ];
    for (corrupt, fault, path) in cases {
        let found = violations(corrupt);
        assert!(found.iter().all(|violation| violation.fault == fault && violation.path == path), "{found:?}");
        assert!(!found.is_empty(), "{fault:?} of `{path}` was not found");
    }
}

#[test]
fn what_cannot_be_compared_for_want_of_a_shard_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let data = prepared(folder.path());
    assert_eq!(validate(&data).unwrap().unchecked, [""; 0]);
    fs::remove_file(data.join("train/00001.parquet")).unwrap();
    let unchecked = validate(&data).unwrap().unchecked;
    let manifest = dlm_data::Manifest::read(&data).unwrap();
    let shards = manifest.train.shards.len() + manifest.validation.unwrap().shards.len();
    let why = format!("1 of {shards} shards cannot be read");
    assert!(unchecked.iter().all(|what| what.ends_with(&why)), "{unchecked:?}");
    assert!(unchecked.iter().any(|what| what.contains("both sides")), "{unchecked:?}");
    assert!(unchecked.iter().any(|what| what.contains("documents of the account")), "{unchecked:?}");
}

#[test]
fn data_of_steps_that_change_the_number_of_documents_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(60).chain([json!({ "number": 60, "text": "" })]));
    let behind = |steps: &str| {
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {:?} }}\n{steps}\n[output]\npath = \"prepared\"",
            tokenizer()
        )
    };
    let pack = "[[step]]\npack = { sequence_len = 20, overlong = \"drop\" }";
    for steps in [
        pack.to_owned(),
        format!("[[step]]\nchunk = {{ max_tokens = 9, overlap = 2 }}\n{pack}"),
        format!("[[step]]\ntruncate = {{ max_tokens = 7, side = \"left\" }}\n{pack}"),
        format!("[[step]]\nfilter = \"array_length(input_ids) > 9\"\n{pack}"),
    ] {
        let pipeline = Pipeline::from_toml(&behind(&steps), folder.path()).unwrap();
        let output = prepare(&pipeline).unwrap().output;
        let found = validate(&output).unwrap();
        assert!(found.is_sound(), "{steps}: {found:?}");
        fs::remove_dir_all(output).unwrap();
    }
    let before = "[[step]]\nsql = \"select unnest(array[text, text]) as text from rows\"";
    let text = behind(pack).replacen("[[step]]", &format!("{before}\n[[step]]"), 1);
    let output = prepare(&Pipeline::from_toml(&text, folder.path()).unwrap()).unwrap().output;
    let found = validate(&output).unwrap();
    assert!(found.is_sound(), "{found:?}");
}

#[test]
fn a_manifest_that_contradicts_its_shards_or_itself_is_named() {
    type Change = fn(&mut Value);
    let cases: [(Change, Fault); 11] = [
        (|manifest| manifest["train"]["shards"][0]["tokens"] = json!(1), Fault::Counts),
        (|manifest| manifest["train"]["shards"][0]["label_tokens"] = json!(1), Fault::Counts),
        (|manifest| manifest["train"]["shards"][0]["segments"] = json!(1), Fault::Counts),
        (|manifest| manifest["train"]["rows"] = json!(1), Fault::Manifest),
        (|manifest| manifest["account"]["tokens"] = json!(1), Fault::Account),
        (|manifest| manifest["account"]["rows"] = json!(299), Fault::Account),
        (|manifest| manifest["account"]["rows"] = json!(301), Fault::Account),
        (|manifest| manifest["account"]["documents"] = json!(299), Fault::Account),
        (|manifest| manifest["account"]["documents"] = json!(301), Fault::Account),
        (|manifest| manifest["format_version"] = json!(99), Fault::Manifest),
        (|manifest| manifest["tokenizer"]["hash"] = json!("0"), Fault::Tokenizer),
    ];
    for (change, fault) in cases {
        let found = violations(|data| change_manifest(data, change));
        assert!(found.iter().any(|violation| violation.fault == fault), "no {fault:?} in {found:?}");
    }
}

#[test]
fn other_columns_are_named() {
    let found = violations(|data| {
        change_shard(data, |batch| batch.project(&[0, 1, 2, 3, 4]).unwrap());
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].fault, found[0].path.as_str()), (Fault::Schema, "train/00001.parquet"));
    assert!(found[0].message.contains("document_offsets"), "{}", found[0].message);
}

#[test]
fn a_document_on_both_sides_is_named_with_both_places() {
    let found = violations(|data| {
        // The validation side becomes a copy of a part of the training side.
        fs::copy(data.join("train/00000.parquet"), data.join("validation/00000.parquet")).unwrap();
        change_manifest(data, |manifest| {
            let mut shard = manifest["train"]["shards"][0].clone();
            shard["path"] = json!("validation/00000.parquet");
            manifest["validation"]["shards"][0] = shard;
        });
    });
    let leaks: Vec<&Violation> = found.iter().filter(|violation| violation.fault == Fault::Leak).collect();
    assert!(leaks.len() > 10, "{found:?}");
    assert!(leaks.iter().all(|leak| leak.path == "train/00000.parquet" && leak.row.is_some()));
    assert!(leaks[0].message.contains("in `validation/00000.parquet` row 0"), "{}", leaks[0].message);
}
