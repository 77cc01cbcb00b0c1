//! What `explain` says of options.

mod support;

use dlm_data::{Pack, Pipeline, Resources, Tokenize};
use support::{texts, tokenizer, write_jsonl};

#[test]
fn the_tokens_that_a_pipeline_gives_roles_to_are_explained_in_words_and_in_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let mut tokenize = Tokenize::new(tokenizer());
    tokenize.special_tokens.insert("pad_token".to_owned(), "<|eot_id|>".to_owned());
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").tokenize(tokenize);
    let explained = pipeline.pack(Pack::new(64)).explain(&Resources::default()).unwrap();
    assert!(explained.contains(", with `<|eot_id|>` as its `pad_token`"), "{explained}");
    assert!(explained.contains("add_eos: None, pad_token: <|eot_id|>"), "{explained}");
}
