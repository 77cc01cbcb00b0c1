//! No pipeline text, however broken, makes a panic: it is read or refused, explained or refused.

mod support;

use dlm_data::{Pipeline, Resources};
use proptest::prelude::*;
use std::{fs, path::Path};
use support::{texts, write_jsonl};

/// A text with every step, of which mutations are made.
fn whole() -> String {
    let tokenizer = support::tokenizer();
    format!(
        r#"
[[source]]
path = "rows.jsonl"
[[step]]
filter = "length(text) > 0"
[[step]]
select = ["text", "number"]
[[step]]
rename = {{ number = "n" }}
[[step]]
map = {{ words = "word_count(text)" }}
[[step]]
sql = "select text, n from rows where words > 1 order by n"
[[step]]
limit = 9
[[step]]
sample = {{ share = 0.5, seed = 1, on = ["text"] }}
[[step]]
normalize = {{ columns = ["text"], unicode = "nfkc", white_space = "words", control = false }}
[[step]]
quality = {{ rules = ["gopher", "c4"], column = "text", min_words = 2, stop_words = ["the"] }}
[[step]]
dedup = {{ near = {{ column = "text", ngram = 3, permutations = 32, bands = 4, threshold = 0.7, seed = 2 }} }}
[[step]]
decontaminate = {{ against = ["rows.jsonl"], ngram = 5, min_ngram = 4, min_matches = 2, min_share = 0.1, action = "report" }}
[[step]]
shuffle = {{ seed = 7 }}
[[step]]
split = {{ validation = 0.1, seed = 3 }}
[[step]]
tokenize = {{ tokenizer = "{}", add_eos = true }}
[[step]]
truncate = {{ max_tokens = 50, side = "left" }}
[[step]]
chunk = {{ max_tokens = 20, overlap = 3 }}
[[step]]
pack = {{ sequence_len = 32, strategy = "first_fit", window = 9, overlong = "drop" }}
[output]
path = "out"
"#,
        tokenizer.display()
    )
}

/// Text with some bytes replaced, taken out or put in.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0..4u8, "[ -~]{0,3}|[0-9]{1,20}|\\PC{1,2}");
    prop::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut text: Vec<char> = whole().chars().collect();
        for (at, kind, new) in edits {
            let at = at.index(text.len());
            let end = (at + usize::from(kind)).min(text.len());
            text.splice(at..end, new.chars());
        }
        text.into_iter().collect()
    })
}

#[test]
fn the_text_that_is_mutated_is_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(20));
    let pipeline = Pipeline::from_toml(&whole(), folder.path()).unwrap();
    // Every step but those that need conversations, and each is a node or an expression of the plan.
    let names: std::collections::BTreeSet<&str> = pipeline.step.iter().map(dlm_data::Step::name).collect();
    assert_eq!((pipeline.step.len(), names.len()), (17, 17));
    let plan = pipeline.explain(&Resources::default()).unwrap();
    for (number, step) in pipeline.step.iter().enumerate() {
        let name = step.name();
        assert!(plan.to_lowercase().contains(name), "step {number}, {name}, is not in the plan:\n{plan}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_refused_as_a_pipeline_and_any_override_names_its_key_or_takes_effect(
        text in any::<String>(), key in any::<String>(), value in any::<String>()
    ) {
        match Pipeline::from_toml(&text, "") {
            // A comment or nothing at all.
            Ok(pipeline) => prop_assert_eq!(pipeline, Pipeline::new()),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        let pipeline = Pipeline::from_toml(&whole(), "").unwrap();
        if let Err(error) = pipeline.clone().with_override(&key, &value) {
            prop_assert!(error.to_string().contains(&key), "{}", error);
        }
        let column = |pipeline: &Pipeline| pipeline.step.iter().find_map(|step| match step {
            dlm_data::Step::Tokenize(tokenize) => Some(tokenize.column.clone()),
            _ => None,
        });
        match pipeline.with_override("tokenize.column", &value) {
            // A text in quotes stands for what is in them.
            Ok(changed) => prop_assert!(column(&changed).unwrap() == value || value.contains(['"', '\''])),
            Err(error) => prop_assert!(error.to_string().contains("invalid type"), "{}", error),
        }
    }

    #[test]
    fn a_mutated_pipeline_is_read_or_refused_and_reads_back_as_it_was_written(text in mutated()) {
        if let Ok(pipeline) = Pipeline::from_toml(&text, "")
            && let Ok(written) = pipeline.to_toml()
        {
            let again = Pipeline::from_toml(&written, "").unwrap();
            // NaN is not equal to itself.
            prop_assert!(again == pipeline || written.contains("nan"), "{}", written);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_pipeline_is_explained_or_refused(text in mutated()) {
        let folder = tempfile::tempdir().unwrap();
        write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
        if let Ok(pipeline) = Pipeline::from_toml(&text, folder.path()) {
            let _ = pipeline.explain(&Resources { threads: 1, ..Resources::default() });
        }
        prop_assert!(Path::new(folder.path()).join("rows.jsonl").exists());
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "explaining wrote something");
    }
}
