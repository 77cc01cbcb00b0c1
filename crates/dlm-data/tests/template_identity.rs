//! A chat template in a file is part of what prepared data was made with.

mod support;

use dlm_data::{
    Chat, DataError, Existing, Messages, Pack, Pipeline, PrepareOptions, Tokenize, prepare as prepare_async,
};
use serde_json::json;
use std::{fs, path::Path, time::Duration};
use support::{options, prepare, tokenizer, tree, write_jsonl};

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>{% endfor %}";

fn pipeline(folder: &Path, conversations: usize) -> Pipeline {
    let conversation = |i: usize| {
        let words = "word ".repeat(i % 40);
        json!({ "messages": [{ "role": "user", "content": format!("q{i}") }, { "role": "assistant", "content": words + "a" }] })
    };
    write_jsonl(&folder.join("rows.jsonl"), (0..conversations).map(conversation));
    fs::write(folder.join("own.jinja"), TEMPLATE).unwrap();
    let messages = Messages { template: "own.jinja".to_owned(), ..Messages::default() };
    Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .chat(Chat::Messages(messages))
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(256))
        .output("prepared")
        .with_override("output.shard_tokens", "3000")
        .unwrap()
}

fn edit(folder: &Path) {
    fs::write(folder.join("own.jinja"), TEMPLATE.replace('[', "<<").replace(']', ">>")).unwrap();
}

#[test]
fn data_that_was_made_with_another_content_of_the_template_file_is_other_data() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), 20);
    assert!(!prepare(&pipeline).unwrap().already_prepared);
    assert!(prepare(&pipeline).unwrap().already_prepared);
    edit(folder.path());
    assert!(matches!(prepare(&pipeline), Err(DataError::Occupied { .. })));
    let anew = PrepareOptions { existing: Existing::Overwrite, ..options(2) };
    assert!(!pipeline.prepare(&anew, |_| ()).unwrap().already_prepared);
    assert!(prepare(&pipeline).unwrap().already_prepared);
}

#[test]
fn a_killed_preparation_does_not_go_on_with_another_content_of_the_template_file() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = pipeline(folder.path(), 3000);
    let journal = folder.path().join("prepared/.preparing/journal.json");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut was_stopped, options) = (false, options(2));
    for _ in 0..50 {
        was_stopped = runtime.block_on(async {
            let watch = async {
                while !journal.exists() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                done = prepare_async(&pipeline, &options, |_| ()) => done.map(|_| false).unwrap(),
                () = watch => true,
            }
        });
        if was_stopped {
            break;
        }
        fs::remove_dir_all(folder.path().join("prepared")).unwrap();
    }
    drop(runtime); // waits for the threads
    assert!(was_stopped, "it was never stopped in time");
    edit(folder.path());
    let report = prepare(&pipeline).unwrap();
    assert_eq!(report.resumed_shards, 0);
    let whole = PrepareOptions { output: Some(folder.path().join("whole")), ..options };
    let whole = pipeline.prepare(&whole, |_| ()).unwrap();
    assert!(tree(&report.output) == tree(&whole.output), "rows of both templates are mixed");
}
