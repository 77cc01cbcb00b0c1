//! Queries: the order of what they give, and what the account says of rows that they read twice or not to the end.

mod support;

use dlm_data::{
    Manifest, Normalize, Pack, Pipeline, PrepareOptions, Quality, QualityRules, Resources, Sample, Tokenize,
};
use serde_json::json;
use std::path::Path;
use support::{options, tokenizer, tree, write_jsonl};

/// Enough rows for several batches.
const ROWS: usize = 3000;

fn over(folder: &Path) -> Pipeline {
    let text = |i: usize| json!({ "text": format!("The row {i} and what it says."), "i": i, "twin": i / 2 });
    write_jsonl(&folder.join("rows.jsonl"), (0..ROWS).map(text));
    Pipeline::new().relative_to(folder).source("rows.jsonl")
}

fn numbers(pipeline: &Pipeline, threads: usize) -> Result<Vec<String>, dlm_data::DataError> {
    pipeline.texts(&Resources { threads, ..Resources::default() })?.collect()
}

#[test]
fn rows_that_are_looked_for_in_another_query_need_an_order_and_then_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = over(folder.path());
    let some = "select i from rows where i % 3 <> 1";
    let expected: Vec<String> = (0..ROWS).filter(|i| i % 3 != 1).map(|i| i.to_string()).collect();
    for condition in [
        format!("i in ({some})"),
        format!("exists ({some} and rows.i = r.i)"),
        "i not in (select i from rows where i % 3 = 1)".to_owned(),
    ] {
        let query = format!("select cast(i as text) as text, i from rows as r where {condition}");
        let error = numbers(&pipeline.clone().sql(&query), 2).unwrap_err().to_string();
        assert!(error.contains("it needs an `order by`"), "{condition}: {error}");
        let ordered = pipeline.clone().sql(format!("{query} order by r.i"));
        for threads in [1, 3] {
            assert_eq!(numbers(&ordered, threads).unwrap(), expected, "{condition}");
        }
    }
    // What only picks rows keeps their order by itself.
    let picked = pipeline.clone().sql("select cast(i as text) as text, i from rows where i % 3 <> 1");
    assert_eq!(numbers(&picked, 2).unwrap(), expected);
}

/// What one thread and three write, which has to be the same.
fn prepared(pipeline: Pipeline, folder: &Path) -> Manifest {
    let pipeline = pipeline.tokenize(Tokenize::new(tokenizer())).pack(Pack::new(64));
    let prepare = |threads: usize| {
        let output = folder.join(format!("prepared-{threads}"));
        let _ = std::fs::remove_dir_all(&output); // of the pipeline before
        pipeline.prepare(&PrepareOptions { output: Some(output.clone()), ..options(threads) }, |_| ()).unwrap();
        output
    };
    let (one, three) = (prepare(1), prepare(3));
    assert!(tree(&one) == tree(&three), "the bytes differ");
    Manifest::read(&one).unwrap()
}

fn steps(manifest: &Manifest) -> Vec<(&str, u64)> {
    manifest.account.steps.iter().map(|step| (step.step.as_str(), step.rows)).collect()
}

#[test]
fn without_a_limit_the_rows_behind_every_step_are_the_same_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let quality = Quality { min_words: Some(3.0), min_stop_words: Some(0.0), ..Quality::new([QualityRules::Gopher]) };
    let pipeline = over(folder.path())
        .normalize(Normalize::default())
        .filter("i % 10 <> 0")
        .sql("select text, i, twin from rows where i > 4 order by i desc")
        .quality(quality)
        .dedup(["twin"])
        .sample(Sample::count(500, 1))
        .shuffle(2);
    let manifest = prepared(pipeline, folder.path());
    let filtered = ROWS - ROWS / 10;
    let steps = steps(&manifest);
    assert_eq!(steps[..2], [("step.1.filter", filtered as u64), ("step.2.sql", filtered as u64 - 4)]);
    assert_eq!(steps[2].0, "step.3.quality");
    assert_eq!(steps[3].0, "step.4.dedup");
    assert_eq!(steps[4], ("step.5.sample", 500));
    assert_eq!(steps.len(), 5);
}

#[test]
fn behind_a_limit_in_a_query_the_steps_before_it_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |query: &str| over(folder.path()).filter("i % 10 <> 0").sql(query).filter("i <> 11");
    for query in ["select text, i from rows limit 40", "with some as (select * from rows limit 40) select * from some"]
    {
        let manifest = prepared(limited(query), folder.path());
        assert_eq!(steps(&manifest), [("step.1.sql", 40), ("step.2.filter", 39)], "{query}");
    }
}

#[test]
fn steps_before_a_query_that_reads_the_rows_twice_are_not_counted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = over(folder.path())
        .filter("i % 10 <> 0")
        .sql("select a.text, a.i from rows a join rows b on a.i + 1 = b.i order by a.i")
        .filter("i > 5");
    let manifest = prepared(pipeline, folder.path());
    let pairs = (0..ROWS - 1).filter(|i| i % 10 != 0 && (i + 1) % 10 != 0).count() as u64;
    assert_eq!(steps(&manifest), [("step.1.sql", pairs), ("step.2.filter", pairs - 5)]);
    // A second query that reads once leaves the counts alone.
    let pipeline = over(folder.path()).filter("i % 10 <> 0").sql("select text, i from rows where i < 50");
    assert_eq!(steps(&prepared(pipeline, folder.path())), [("step.0.filter", 2700), ("step.1.sql", 45)]);
}
