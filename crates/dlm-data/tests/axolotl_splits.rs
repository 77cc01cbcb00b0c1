//! Axolotl files read the split that they name, and `train` where they name none.

mod support;

use dlm_data::{DataError, Pipeline, Remote, Resources, Source, axolotl::translate};
use dlm_servers::Hub;
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};
use support::write_jsonl;

/// A dataset of these files, each with a row that says which file it is.
fn dataset(folder: &Path, files: &[&str]) {
    for file in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_jsonl(&path, [json!({ "text": file })]);
    }
}

fn translated(block: &str, base: &Path) -> Result<Pipeline, DataError> {
    let yaml = format!("base_model: m\ndatasets:\n  - {{type: completion, {block}}}\nshuffle_merged_datasets: false\n");
    translate(&yaml, base).map(|translation| translation.pipeline)
}

/// The rows that a dataset of an Axolotl file gives.
fn read(block: &str, base: &Path) -> Result<Vec<String>, DataError> {
    translated(block, base)?.texts(&Resources::default())?.collect()
}

#[test]
fn of_a_folder_with_several_splits_the_one_that_is_named_is_read_and_otherwise_train() {
    let folder = tempfile::tempdir().unwrap();
    dataset(&folder.path().join("set"), &["train.jsonl", "test.jsonl", "dev.jsonl"]);
    dataset(&folder.path().join("plain"), &["a.jsonl", "b.jsonl"]);
    dataset(&folder.path().join("tested"), &["test.jsonl"]);
    let read = |block: &str| read(block, folder.path());
    assert_eq!(read("path: ./set").unwrap(), ["train.jsonl"]);
    assert_eq!(read("path: ./set, split: train").unwrap(), ["train.jsonl"]);
    assert_eq!(read("path: ./set, split: test").unwrap(), ["test.jsonl"]);
    assert_eq!(read("path: ./set, split: validation").unwrap(), ["dev.jsonl"]);
    // Without a word about splits all is for training.
    assert_eq!(read("path: ./plain").unwrap(), ["a.jsonl", "b.jsonl"]);
    assert_eq!(read("path: ./plain, split: 'train[:1]'").unwrap(), ["a.jsonl"]);
    for (block, message) in [
        ("path: ./plain, split: test", "no file of the split `test`"),
        ("path: ./tested", "no file of the split `train`"),
        ("path: ./tested/test.jsonl, split: test", "a file is of the split `train` alone"),
    ] {
        let error = read(block).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(read("path: ./tested/test.jsonl").unwrap(), ["test.jsonl"]);
}

#[test]
fn of_a_dataset_on_the_hub_test_rows_are_neither_read_nor_brought_here() {
    let hub = Hub::start();
    for (path, text) in [("main/train-00000-of-00001.jsonl", "learn"), ("main/test-00000-of-00001.jsonl", "judge")] {
        hub.put(&format!("datasets/o/gsm/{path}"), format!("{{\"text\": \"{text}\"}}\n"));
    }
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("hf");
    let variables = [("HF_ENDPOINT", hub.address().to_owned()), ("HF_HOME", home.to_string_lossy().into_owned())];
    let variables: BTreeMap<String, String> =
        variables.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let remote = Remote { variables: Some(variables), ..Remote::default() };
    let read = |block: &str| -> Vec<String> {
        let pipeline = Pipeline { remote: remote.clone(), ..translated(block, folder.path()).unwrap() };
        pipeline.texts(&Resources::default()).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(read("path: o/gsm, name: main"), ["learn"]);
    let here: Vec<_> =
        support::tree(&home).into_keys().filter(|path| path.to_string_lossy().contains("test")).collect();
    assert!(here.is_empty(), "{here:?}");
    assert_eq!(read("path: o/gsm, name: main, split: test"), ["judge"]);
    assert_eq!(read("path: o/gsm, split: train"), ["learn"]);
}

#[test]
fn a_pipeline_says_the_split_of_a_source_itself() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path(), &["valid/a.jsonl", "train/a.jsonl"]);
    let texts = |source: Source| -> Vec<String> {
        let pipeline = Pipeline::new().relative_to(folder.path()).source(source);
        pipeline.texts(&Resources::default()).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(texts(Source::new("")), ["train/a.jsonl", "valid/a.jsonl"]);
    assert_eq!(texts(Source::new("").split("validation")), ["valid/a.jsonl"]);
    assert_eq!(texts(Source::new("**/*.jsonl").split("train")), ["train/a.jsonl"]);
}

#[test]
fn a_slice_of_several_files_is_refused_and_one_of_a_single_file_limits_it() {
    let folder = tempfile::tempdir().unwrap();
    dataset(&folder.path().join("set"), &["a.jsonl", "b.jsonl"]);
    let says = |block: &str| translated(block, folder.path()).unwrap_err().to_string();
    for path in ["json", "./set", "owner/name"] {
        let error = says(&format!("path: {path}, data_files: [a.jsonl, b.jsonl], split: 'train[:100]'"));
        assert!(error.contains("the first 100 rows of several `data_files` together"), "{error}");
    }
    let pipeline = translated("path: ./set, data_files: a.jsonl, split: 'train[:100]'", folder.path()).unwrap();
    assert_eq!(pipeline.source, [Source::new("./set/a.jsonl").limit(100)]);
}

#[test]
fn files_are_those_of_their_path_which_has_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    dataset(&folder.path().join("set"), &["a.jsonl"]);
    let places = |block: &str| -> Vec<String> {
        translated(block, folder.path()).unwrap().source.into_iter().map(|source| source.path).collect()
    };
    assert_eq!(
        places("path: s3://bucket/set/, data_files: [a.jsonl, b/c.jsonl]"),
        ["s3://bucket/set/a.jsonl", "s3://bucket/set/b/c.jsonl"]
    );
    assert_eq!(places("path: set, data_files: a.jsonl"), ["set/a.jsonl"]);
    assert_eq!(places("path: set, data_files: 'https://host/a.jsonl'"), ["https://host/a.jsonl"]);
    assert_eq!(places("path: json, data_files: x/a.jsonl"), ["x/a.jsonl"]);
    let says = |block: &str| translated(block, folder.path()).unwrap_err().to_string();
    let error = says("path: ./absent, data_files: a.jsonl");
    assert!(error.contains("`path` is `./absent`, and there is no such folder"), "{error}");
    for path in ["json", "set", "s3://bucket/set", "owner/name"] {
        let error = says(&format!("path: {path}, data_files: a.jsonl, split: test"));
        assert!(error.contains("`data_files` are of the split `train` alone"), "{error}");
    }
}
