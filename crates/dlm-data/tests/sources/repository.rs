//! The pipelines of the repository run: those with data of their own as they are, the remote one against a hub that runs here.

use dlm_data::{Manifest, Pipeline, PrepareOptions, Remote};
use dlm_servers::Hub;
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};

fn pipeline(name: &str) -> Pipeline {
    Pipeline::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines").join(name)).unwrap()
}

fn output(folder: &Path) -> PrepareOptions {
    PrepareOptions { output: Some(folder.join("prepared")), ..PrepareOptions::default() }
}

#[test]
fn the_mix_of_three_sources_draws_from_each_until_all_are_exhausted() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = dlm_golden::model("llama");
    let pipeline = pipeline("mix.toml").with_override("tokenize.tokenizer", tokenizer.to_str().unwrap()).unwrap();
    let manifest = pipeline.prepare(&output(folder.path()), |_| ()).unwrap().manifest;
    let given: Vec<u64> = manifest.sources.iter().map(|source| source.rows).collect();
    let in_files: Vec<u64> = manifest.inputs.iter().map(|input| input.rows).collect();
    assert_eq!(in_files, [6, 5, 4]);
    assert!(given.iter().zip(&in_files).all(|(given, all)| given >= all), "{given:?}");
    assert_eq!(manifest.account.documents, given.iter().sum::<u64>());
    assert!(manifest.sources.iter().all(|source| source.quarantined == 0));
}

/// A pipeline over data of the repository, with a tokenizer of the tests.
fn prepared(name: &str, changes: &[(&str, &str)]) -> Manifest {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = dlm_golden::model("llama");
    let tokenizer = [("tokenize.tokenizer", tokenizer.to_str().unwrap())];
    let change = |pipeline: Pipeline, (key, value): &(&str, &str)| pipeline.with_override(key, value).unwrap();
    let pipeline = tokenizer.iter().chain(changes).fold(pipeline(name), change);
    pipeline.prepare(&output(folder.path()), |_| ()).unwrap().manifest
}

#[test]
fn pretraining_text_is_a_target_as_a_whole_without_doubles_and_short_texts() {
    let manifest = prepared("pretrain.toml", &[("source.path", "data/tides.jsonl"), ("filter", "length(text) >= 100")]);
    let account = &manifest.account;
    assert_eq!((account.rows, account.documents), (6, 4), "{:?}", account.steps);
    assert_eq!(manifest.train.label_tokens, manifest.train.tokens);
}

#[test]
fn alpaca_rows_teach_their_answers_once() {
    let manifest = prepared("sft.toml", &[("source.path", "data/answers.jsonl")]);
    // One row has no answer, and one comes twice.
    assert_eq!((manifest.account.rows, manifest.account.documents), (8, 6));
    let sides = [Some(&manifest.train), manifest.validation.as_ref()];
    let targets: u64 = sides.iter().flatten().map(|side| side.label_tokens).sum();
    let tokens: u64 = sides.iter().flatten().map(|side| side.tokens).sum();
    assert_eq!(tokens, manifest.account.tokens);
    assert!(targets > 0 && targets < tokens / 2, "{targets} of {tokens}");
}

#[test]
fn conversations_of_several_turns_fill_their_last_block_with_end_tokens() {
    let changes = [("source.path", "data/conversations.jsonl"), ("chat.eot_tokens", "['<|eot_id|>']")];
    let manifest = prepared("chat.toml", &changes);
    assert_eq!(manifest.account.documents, 4);
    assert!(manifest.account.added_tokens.values().sum::<u64>() > 0, "{:?}", manifest.account);
    let without = prepared("chat.toml", &[&changes[..], &[("answer_tail.block_length", "1")]].concat());
    assert_eq!(without.account.tokens, manifest.account.tokens);
    assert!(without.account.added_tokens.is_empty());
}

#[test]
fn the_remote_one_takes_data_and_tokenizer_from_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start();
    let rows: Vec<_> =
        (0..40).map(|i| json!({ "instruction": format!("Count to {i}."), "input": "", "output": "1, 2" })).collect();
    hub.put("datasets/yahma/alpaca-cleaned/alpaca_data_cleaned.json", json!(rows).to_string());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        hub.put(
            &format!("HuggingFaceTB/SmolLM2-135M/{name}"),
            fs::read(dlm_golden::model("llama").join(name)).unwrap(),
        );
    }
    let home = folder.path().join("hf").to_string_lossy().into_owned();
    let variables = [("HF_ENDPOINT".to_owned(), hub.address().to_owned()), ("HF_HOME".to_owned(), home)];
    let remote = Remote { variables: Some(BTreeMap::from(variables)), ..Remote::default() };
    let pipeline = Pipeline { remote, ..pipeline("remote.toml") };
    let manifest = pipeline.prepare(&output(folder.path()), |_| ()).unwrap().manifest;
    assert_eq!(manifest.account.documents, 40);
    assert_eq!(manifest.inputs[0].path, "hf://datasets/yahma/alpaca-cleaned/alpaca_data_cleaned.json");
}
