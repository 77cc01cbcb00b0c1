//! The steps on rows and texts: each does what its options say, in the same way for any number of threads.

mod doubles;
mod rows;
#[path = "../support/mod.rs"]
mod support;
mod texts;
mod together;
mod tokens;

use dlm_data::{DataError, Pack, Pipeline, PrepareReport, Resources, StepAccount, Tokenize};
use serde_json::Value;
use support::{tokenizer, write_jsonl};

/// A pipeline over these rows, and the folder it stands in.
fn over(rows: impl IntoIterator<Item = Value>) -> (tempfile::TempDir, Pipeline) {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), rows);
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl");
    (folder, pipeline)
}

fn try_texts(pipeline: &Pipeline, threads: usize) -> Result<Vec<String>, DataError> {
    pipeline.texts(&Resources { threads, ..Resources::default() })?.collect()
}

/// What the steps make of the column `text`.
fn texts_of(pipeline: &Pipeline) -> Vec<String> {
    let texts = try_texts(pipeline, 1).unwrap();
    assert_eq!(texts, try_texts(pipeline, 3).unwrap(), "one thread and three differ");
    texts
}

fn says(pipeline: &Pipeline) -> String {
    try_texts(pipeline, 2).unwrap_err().to_string()
}

fn words(from: usize, to: usize) -> String {
    (from..to).map(|i| format!("word{i} ")).collect()
}

fn finish(pipeline: Pipeline) -> Pipeline {
    pipeline.tokenize(Tokenize::new(tokenizer())).pack(Pack::new(64)).output("prepared")
}

fn account<'a>(report: &'a PrepareReport, step: &str) -> &'a StepAccount {
    let steps = &report.manifest.account.steps;
    steps.iter().find(|account| account.step == step).unwrap_or_else(|| panic!("no {step} in {steps:?}"))
}

/// 120 families of texts: one of 200 words, and two copies in which so many words in a hundred are others.
fn families() -> Vec<(String, usize)> {
    let mut texts = Vec::new();
    for family in 0..120 {
        let base = |i: usize| format!("f{family}w{i}");
        texts.push(((0..200).map(|i| base(i) + " ").collect::<String>(), family));
        for copy in 1..3 {
            // Every word that is another breaks five runs of five words.
            let changed = (family % 12 + 1) * copy;
            let word = |i: usize| if i % 17 == 3 && i / 17 < changed { format!("x{copy}y{i}") } else { base(i) };
            texts.push(((0..200).map(|i| word(i) + " ").collect::<String>(), family));
        }
    }
    // Far apart, so that families do not stand together.
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|i| (i * 7919) % 360);
    order.into_iter().map(|i| texts[i].clone()).collect()
}
