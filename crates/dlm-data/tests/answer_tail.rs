//! The `answer_tail` step in whole preparations.

mod support;

use dlm_data::{AnswerTail, Chat, Pack, Pipeline, PromptCompletion, Split, Tokenize};
use serde_json::json;
use std::{collections::BTreeMap, path::Path};
use support::{documents, options, prepare, rows, tokenizer, write_jsonl};

const EOS: &str = "<|end_of_text|>";

fn pipeline(folder: &Path, tail: AnswerTail) -> Pipeline {
    Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .split(0.3)
        .chat(Chat::PromptCompletion(PromptCompletion::default()))
        .tokenize(Tokenize::new(tokenizer()))
        .answer_tail(tail)
        .pack(Pack::new(64))
        .output("prepared")
}

fn write(folder: &Path, count: usize) {
    let row =
        |i: usize| json!({ "prompt": format!("question {i}"), "completion": format!("answer {}", "x".repeat(i % 7)) });
    write_jsonl(&folder.join("rows.jsonl"), (0..count).map(row));
}

/// Lengths of the documents of both sides.
fn lengths(folder: &Path) -> BTreeMap<i64, usize> {
    let both = [Split::Train, Split::Validation].into_iter().flat_map(|split| documents(&rows(folder, split)));
    both.map(|(document, ids)| (document, ids.len())).collect()
}

#[test]
fn the_tail_counts_as_answer_and_the_account_and_the_manifest_have_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 12);
    let plain = prepare(&pipeline(folder.path(), AnswerTail::None)).unwrap();
    let before = lengths(&plain.output);
    assert_eq!(plain.manifest.answer_tail, None);
    assert!(plain.manifest.account.added_tokens.is_empty());
    std::fs::remove_dir_all(&plain.output).unwrap();

    let tail = AnswerTail::Fixed { length: 5 };
    let report = prepare(&pipeline(folder.path(), tail.clone())).unwrap();
    let manifest = &report.manifest;
    assert_eq!(manifest.answer_tail, Some(tail));
    assert_eq!(manifest.account.added_tokens["answer_tail"], 60);
    assert_eq!(manifest.account.tokens, plain.manifest.account.tokens);
    let validation = manifest.validation.as_ref().unwrap();
    assert_eq!(manifest.train.tokens + validation.tokens, manifest.account.tokens + 60);
    let labels = |manifest: &dlm_data::Manifest| {
        manifest.train.label_tokens + manifest.validation.as_ref().unwrap().label_tokens
    };
    assert_eq!(labels(manifest), labels(&plain.manifest) + 60);
    assert_eq!(lengths(&report.output), before.into_iter().map(|(document, len)| (document, len + 5)).collect());
    assert_eq!(
        validation.segments,
        plain.manifest.validation.unwrap().segments,
        "the tail does not decide about the side"
    );
}

#[test]
fn random_tails_follow_the_document_and_not_its_place() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 20);
    let tail = AnswerTail::Random { max: 9, seed: 3 };
    let report = prepare(&pipeline(folder.path(), tail.clone())).unwrap();
    let expected = lengths(&report.output);
    for (name, other) in
        [("shuffled", pipeline(folder.path(), tail.clone()).shuffle(1)), ("one thread", pipeline(folder.path(), tail))]
    {
        // A shuffle behind `pack` would be none: it goes first.
        let mut other = other.output(name);
        if matches!(other.step.last(), Some(dlm_data::Step::Shuffle(_))) {
            let shuffle = other.step.pop().unwrap();
            other.step.insert(0, shuffle);
        }
        let report = other.prepare(&options(1), |_| ()).unwrap();
        assert_eq!(lengths(&report.output), expected, "{name}");
    }
}

#[test]
fn a_rainbow_needs_tokens_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 3);
    let rainbow = |tokens: [&str; 2]| AnswerTail::Rainbow { tokens: tokens.map(str::to_owned).into(), length: 4 };
    let error = prepare(&pipeline(folder.path(), rainbow([EOS, "<|absent|>"]))).unwrap_err();
    assert!(error.to_string().contains("`<|absent|>`"), "{error}");
    let report = prepare(&pipeline(folder.path(), rainbow(["<|start_header_id|>", "<|end_header_id|>"]))).unwrap();
    assert_eq!(report.manifest.account.added_tokens["answer_tail"], 12);
}

#[test]
fn the_step_has_its_place_and_its_options_in_toml() {
    let text = |steps: &str| format!("source = [{{ path = \"x\" }}]\nstep = [{steps}]\noutput = {{ path = \"y\" }}");
    let read = |steps: &str| Pipeline::from_toml(&text(steps), "");
    let tokenize = "{ tokenize = { tokenizer = \"t\" } }";
    let good = read(&format!("{tokenize}, {{ answer_tail = {{ kind = \"block\", block_length = 32 }} }}")).unwrap();
    assert_eq!(good.step[1], dlm_data::Step::AnswerTail(AnswerTail::Block { block_length: 32 }));
    let error = read("{ answer_tail = { kind = \"blok\", block_length = 32 } }").unwrap_err();
    assert!(error.to_string().contains("did you mean `block`"), "{error}");
    let error = read("{ answer_tail = { kind = \"fixed\", len = 32 } }").unwrap_err();
    assert!(error.to_string().contains("`len`"), "{error}");
    let early = read(&format!("{{ answer_tail = {{ kind = \"fixed\", length = 3 }} }}, {tokenize}")).unwrap();
    let error = prepare(&early).unwrap_err();
    assert!(error.to_string().contains("`answer_tail` comes after `tokenize`"), "{error}");
}
