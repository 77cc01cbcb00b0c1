//! Steps one behind the other: what the manifest counts, what the bytes depend on, which order is refused.

use super::{families, finish, over, words};
use crate::support::{options, prepare, texts, tokenizer, tree, write_jsonl};
use dlm_data::{
    Chunk, Decontaminate, NearDedup, Normalize, Pack, Pipeline, Quality, QualityRules, Resources, Sample, Tokenize,
    Truncate,
};
use serde_json::json;

#[test]
fn the_manifest_counts_what_each_step_left_behind_the_last_limit() {
    let (_folder, pipeline) = over(texts(100).chain(texts(100)));
    let pipeline = pipeline.filter("number < 90").limit(150).dedup(["text"]).filter("number >= 10");
    let report = prepare(&finish(pipeline)).unwrap();
    let steps = report.manifest.account.steps.iter().map(|account| (account.step.as_str(), account.rows));
    let expected = [("step.1.limit", 150), ("step.2.dedup", 90), ("step.3.filter", 80)];
    assert_eq!(steps.collect::<Vec<_>>(), expected);
    assert_eq!(report.manifest.account.documents, 80);
}

#[test]
fn all_steps_together_write_the_same_bytes_with_one_thread_and_three_and_can_be_explained() {
    let (folder, pipeline) = over(families().into_iter().map(|(text, i)| json!({ "body": text, "i": i })).chain(
        (0..3000).map(|i| json!({ "body": format!("The row {i} and its words. {}", words(i, i + 12)), "i": i })),
    ));
    write_jsonl(&folder.path().join("eval.jsonl"), [json!({ "q": words(100, 120) })]);
    let quality = Quality { min_words: Some(3.0), min_stop_words: Some(0.0), ..Quality::new([QualityRules::Gopher]) };
    let pipeline = pipeline
        .rename([("body", "text")])
        .map([("length", "length(text)")])
        .normalize(Normalize::default())
        .sql("select text, i from rows where length > 10 order by i desc, text")
        .quality(quality)
        .dedup(["text"])
        .near_dedup(NearDedup::default())
        .decontaminate(Decontaminate::new(["eval.jsonl"]))
        .sample(Sample::share(0.9, 1))
        .shuffle(4)
        .limit(2000)
        .split(0.1)
        .tokenize(Tokenize::new(tokenizer()))
        .truncate(Truncate::new(60))
        .chunk(Chunk { max_tokens: 25, overlap: 3 })
        .pack(Pack::new(64))
        .output("prepared");
    let prepared = |threads: usize| {
        let output = folder.path().join(format!("prepared-{threads}"));
        let options = dlm_data::PrepareOptions { output: Some(output.clone()), ..options(threads) };
        pipeline.prepare(&options, |_| ()).unwrap();
        tree(&output)
    };
    assert!(prepared(1) == prepared(3), "the bytes differ");
    let plan = pipeline.explain(&Resources::default()).unwrap();
    for node in [
        "Quality:",
        "Dedup: text",
        "NearDedup:",
        "Decontaminate:",
        "Limit: 2000",
        "Truncate:",
        "Chunk:",
        "normalize_nfc_trim",
        "keeps about 90 % of the rows chosen at random by all columns (seed 1)",
        "shares 80 % or more of its runs of 5 words",
        "leaves out rows that quote runs of 13 words of `eval.jsonl`",
        "cuts the end of documents of more than 60 tokens off",
        "cuts documents into pieces of 25 tokens, each with the last 3 of the one before",
    ] {
        assert!(plan.contains(node), "{node} is missing in\n{plan}");
    }
}

#[test]
fn steps_in_the_wrong_place_are_refused() {
    let (_folder, pipeline) = over(texts(3));
    let tokenized = || pipeline.clone().tokenize(Tokenize::new(tokenizer()));
    let says = |pipeline: Pipeline| prepare(&pipeline.pack(Pack::new(8)).output("prepared")).unwrap_err().to_string();
    for (name, pipeline) in [
        ("rename", tokenized().rename([("a", "b")])),
        ("map", tokenized().map([("a", "1")])),
        ("select", tokenized().select(["input_ids"])),
        ("sql", tokenized().sql("select * from rows")),
        ("limit", tokenized().limit(3)),
        ("normalize", tokenized().normalize(Normalize::default())),
        ("quality", tokenized().quality(Quality::default())),
        ("dedup.near", tokenized().near_dedup(NearDedup::default())),
        ("decontaminate", tokenized().decontaminate(Decontaminate::new(["x"]))),
    ] {
        let error = says(pipeline);
        assert!(error.contains(&format!("`{name}` comes before `tokenize`")), "{error}");
    }
    let early = pipeline.clone().truncate(Truncate::new(3)).tokenize(Tokenize::new(tokenizer()));
    assert!(says(early).contains("`truncate` comes after `tokenize`"));
    assert!(says(tokenized().truncate(Truncate::new(0))).contains("`truncate.max_tokens` is 0"));
    assert!(says(tokenized().chunk(Chunk { max_tokens: 3, overlap: 3 })).contains("`chunk.overlap` is 3"));
}
