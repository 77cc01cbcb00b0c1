//! What `dlm data explain` prints, as a person reads it.

use dlm_data::{Pipeline, Resources};
use std::fs;

#[test]
fn a_plan_begins_with_the_steps_in_plain_words_and_the_columns_they_leave() {
    let folder = tempfile::tempdir().unwrap();
    let row =
        r#"{"instruction": "Add.", "input": "1 and 2", "output": "3", "score": 4.5, "tags": ["a"], "meta": {"id": 1}}"#;
    fs::write(folder.path().join("rows.jsonl"), format!("{row}\n")).unwrap();
    let tokenizer = dlm_golden::model("llama").canonicalize().unwrap();
    let pipeline = format!(
        "[[source]]\npath = \"rows.jsonl\"\n[[step]]\nfilter = \"score > 3\"\n\
         [[step]]\nselect = [\"instruction\", \"input\", \"output\"]\n[[step]]\ndedup = {{ on = [\"instruction\", \"output\"] }}\n\
         [[step]]\nsplit = {{ validation = 0.025 }}\n[[step]]\nchat = {{ format = \"alpaca\" }}\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?} }}\n\
         [[step]]\nshuffle = {{ seed = 3 }}\n[[step]]\npack = {{ sequence_len = 128 }}\n[output]\npath = \"prepared\"\n"
    );
    let pipeline = Pipeline::from_toml(&pipeline, folder.path()).unwrap();
    let plan = pipeline.explain(&Resources::default()).unwrap().replace(tokenizer.to_str().unwrap(), "TOKENIZER");
    let (words, plans) = plan.split_once("\nlogical plan\n").unwrap();
    insta::assert_snapshot!(words);
    // The plans are DataFusion's to word.
    assert!(plans.contains("\nphysical plan\n"));
}

#[test]
fn steps_without_a_conversation_name_the_column_they_tokenize() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "One.").unwrap();
    let tokenizer = dlm_golden::model("llama").canonicalize().unwrap();
    let pipeline = format!(
        "[[source]]\npath = \"a.txt\"\n[[step]]\ndedup = {{}}\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?}, add_eos = true }}\n\
         [[step]]\npack = {{ sequence_len = 128, strategy = \"sequential\", overlong = \"drop\" }}\n[output]\npath = \"prepared\"\n"
    );
    let pipeline = Pipeline::from_toml(&pipeline, folder.path()).unwrap();
    let plan = pipeline.explain(&Resources::default()).unwrap().replace(tokenizer.to_str().unwrap(), "TOKENIZER");
    insta::assert_snapshot!(plan.split_once("\nlogical plan\n").unwrap().0);
}
