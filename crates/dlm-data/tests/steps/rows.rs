//! The steps that pick, change and order rows.

use super::{account, finish, over, says, texts_of};
use crate::support::{documents, options, prepare, rows, texts, write_jsonl};
use dlm_data::{DataError, Pipeline, Resources, Sample, Split};
use serde_json::json;
use std::{collections::BTreeSet, fs};

#[test]
fn rename_is_done_at_once_and_refuses_unknown_and_double_names() {
    let (_folder, pipeline) = over([json!({ "text": "a", "other": "b", "third": "c" })]);
    let swapped = pipeline.clone().rename([("text", "other"), ("other", "text")]);
    assert_eq!(texts_of(&swapped), ["b"]);
    assert!(says(&pipeline.clone().rename([("txt", "x")])).contains("rename: there is no column `txt`"));
    assert!(says(&pipeline.clone().rename([("third", "text")])).contains("two columns would be called `text`"));
    for names in [("third", "__row"), ("__row", "id")] {
        assert!(says(&pipeline.clone().rename([names])).contains("`__row` is taken"));
    }
}

#[test]
fn map_adds_and_replaces_columns_from_the_columns_as_they_were() {
    let (_folder, pipeline) = over([json!({ "text": "a", "other": "b" })]);
    let mapped = pipeline.clone().map([("other", "text || '!'"), ("text", "other || text"), ("new", "upper(other)")]);
    assert_eq!(texts_of(&mapped), ["ba"]);
    assert_eq!(texts_of(&mapped.clone().map([("text", "text || other || new")])), ["baa!B"]);
    assert!(says(&pipeline.clone().map([("text", "txt")])).contains("map `text` = `txt`"));
    assert!(says(&pipeline.clone().map([("__row", "1")])).contains("`__row` is taken"));
    let random = says(&pipeline.map([("text", "cast(random() as text)")]));
    assert!(random.contains("`random()` gives something else each time"), "{random}");
}

#[test]
fn a_query_keeps_the_rows_it_picks_and_their_order() {
    let (folder, pipeline) = over((0..9).map(|i| json!({ "text": format!("t{i}"), "i": i })));
    let picked = pipeline.clone().sql("select text, i + 1 as i from rows where i % 2 = 0 order by i desc");
    assert_eq!(texts_of(&picked), ["t8", "t6", "t4", "t2", "t0"]);
    assert_eq!(texts_of(&picked.clone().filter("i > 3").dedup(["text"])), ["t8", "t6", "t4"]);
    // An error behind the query still names file and row.
    let nulls =
        pipeline.clone().sql("select case when i = 5 then null else text end as text from rows order by i desc");
    let report = finish(nulls.clone()).prepare(&options(2), |_| ());
    let error = report.unwrap_err();
    assert!(matches!(&error, DataError::Row { row: 6, path, .. } if path.ends_with("rows.jsonl")), "{error}");
    let stars = pipeline.clone().sql("select *, 'x' as y from rows as r where r.i < 3").map([("text", "text || y")]);
    assert_eq!(texts_of(&stars), ["t0x", "t1x", "t2x"]);
    drop(folder);
}

#[test]
fn a_query_that_groups_joins_or_unnests_makes_numbered_rows() {
    let list = |i: usize| json!({ "text": format!("t{}", i % 3), "list": ["a", format!("b{i}")], "i": i });
    let (folder, pipeline) = over((0..6).map(list));
    let grouped = "select text || count(*) as text from rows group by text order by text desc";
    assert_eq!(texts_of(&pipeline.clone().sql(grouped)), ["t22", "t12", "t02"]);
    assert_eq!(texts_of(&pipeline.clone().sql("select cast(count(*) as text) as text from rows")), ["6"]);
    let joined = "select a.text || b.i as text from rows a join rows b on a.i + 1 = b.i order by b.i";
    assert_eq!(texts_of(&pipeline.clone().sql(joined)), ["t01", "t12", "t23", "t04", "t15"]);
    let unnested = "select unnest(list) as text from rows where i < 2";
    assert_eq!(texts_of(&pipeline.clone().sql(unnested)), ["a", "b0", "a", "b1"]);

    // The new rows are documents of their own.
    let report = prepare(&finish(pipeline.clone().sql("select unnest(list) as text from rows order by text"))).unwrap();
    let ids: Vec<i64> = documents(&rows(&report.output, Split::Train)).into_keys().collect();
    assert_eq!(ids, (0..12).collect::<Vec<_>>());
    assert_eq!(account(&report, "step.0.sql").rows, 12);
    fs::remove_dir_all(&report.output).unwrap();
    let nulls = "select nullif(text, 't1') as text from rows group by text order by text";
    let error = prepare(&finish(pipeline.sql(nulls))).unwrap_err();
    assert!(error.to_string().starts_with("row 3 that `step.0.sql` made"), "{error}");
    drop(folder);
}

#[test]
fn a_query_that_is_none_or_not_repeatable_is_refused() {
    let (_folder, pipeline) = over(texts(3));
    let says = |query: &str| says(&pipeline.clone().sql(query));
    assert!(says("select txt from rows").contains("txt"));
    assert!(says("select text from row").contains("row"));
    assert!(says("select text frm rows").starts_with("sql `select text frm rows`"));
    for statement in ["drop table rows", "copy rows to 'x.csv'", "insert into rows values (1)", "set a = 1"] {
        assert!(says(statement).contains("a query begins with `select` or `with`"), "{}", says(statement));
    }
    assert!(says("select text, random() as r from rows").contains("`random()`"));
    assert!(says("select text from rows order by uuid()").contains("`uuid()`"));
    assert!(says("select text, cast(now() as text) as n from rows").contains("`now()`"));
    for query in ["select distinct text from rows", "select text from rows union all select text from rows"] {
        assert!(says(query).contains("it needs an `order by`"), "{}", says(query));
    }
    let twice = "select text from rows union all select text from rows order by text";
    assert_eq!(texts_of(&pipeline.clone().sql(twice)).len(), 6);
    assert!(says("select 1 as __row, text from rows").contains("`__row` is taken"));
    assert!(says("select a.text, b.text from rows a join rows b on a.number = b.number").contains("text"));
}

#[test]
fn limit_keeps_the_first_rows_also_behind_a_shuffle() {
    let (_folder, pipeline) = over(texts(3000));
    let all = texts_of(&pipeline);
    assert_eq!(texts_of(&pipeline.clone().limit(1500)), all[..1500]);
    let shuffled = texts_of(&pipeline.clone().shuffle(1));
    assert_eq!(texts_of(&pipeline.clone().shuffle(1).limit(7)), shuffled[..7]);
    assert_eq!(texts_of(&pipeline.clone().limit(9000)).len(), 3000);
    // A later order does not undo the one that the limit saw.
    let twice: BTreeSet<String> = texts_of(&pipeline.clone().shuffle(1).limit(700).shuffle(2)).into_iter().collect();
    assert_eq!(twice, shuffled[..700].iter().cloned().collect());
    let ordered = pipeline.clone().sql("select text from rows order by number desc").limit(2).shuffle(3);
    let last: BTreeSet<String> = texts_of(&ordered).into_iter().collect();
    assert_eq!(last, all[2998..].iter().cloned().collect());
    assert!(says(&pipeline.limit(0)).contains("`limit` is 0"));
}

#[test]
fn a_sample_depends_on_content_and_seed_and_not_on_the_order_of_rows() {
    let row = |i: usize| json!({ "text": format!("text {i}"), "twin": i / 2, "i": i });
    let (folder, pipeline) = over((0..2000).map(row));
    write_jsonl(&folder.path().join("backwards.jsonl"), (0..2000).rev().map(row));
    let backwards = Pipeline::new().relative_to(folder.path()).source("backwards.jsonl");
    for sample in [Sample::share(0.2, 1), Sample::count(400, 1)] {
        let sampled = texts_of(&pipeline.clone().sample(sample.clone()));
        let mut other_order = texts_of(&backwards.clone().sample(sample.clone()));
        other_order.reverse();
        assert_eq!(sampled, other_order);
        let other_seed = texts_of(&pipeline.clone().sample(Sample { seed: 2, ..sample.clone() }));
        assert_ne!(sampled, other_seed);
        let expected = if sample.count.is_some() { 400..401 } else { 330..470 };
        assert!(expected.contains(&sampled.len()) && expected.contains(&other_seed.len()), "{}", sampled.len());
        let number = |text: &String| text[5..].parse::<usize>().unwrap();
        assert!(sampled.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])), "the order changed");
    }
    // With one column to decide, twins are taken or left together.
    let twins = texts_of(&pipeline.clone().sample(Sample { on: vec!["twin".to_owned()], ..Sample::share(0.5, 0) }));
    let set: BTreeSet<String> = twins.into_iter().collect();
    assert!((800..1200).contains(&set.len()));
    assert!(
        (0..2000).step_by(2).all(|i| set.contains(&format!("text {i}")) == set.contains(&format!("text {}", i + 1)))
    );
    assert!(says(&pipeline.clone().sample(Sample::default())).contains("either a `share` or a `count`"));
    assert!(says(&pipeline.clone().sample(Sample::share(1.0, 0))).contains("`sample.share` is 1"));
    let unknown = Sample { on: vec!["x".to_owned()], ..Sample::share(0.5, 0) };
    assert!(says(&pipeline.sample(unknown)).contains("sample: there is no column `x`"));
}

#[test]
fn a_shuffle_and_a_sample_of_more_than_the_memory_limit_spill() {
    let (_folder, pipeline) = over((0..30_000).map(|i| json!({ "text": format!("{i} {}", "long ".repeat(200)) })));
    let texts = |pipeline: &Pipeline, memory_limit: usize| -> Vec<String> {
        let texts = pipeline.texts(&Resources { threads: 2, memory_limit: Some(memory_limit) }).unwrap();
        texts.collect::<Result<_, _>>().unwrap()
    };
    for pipeline in [
        pipeline.clone().shuffle(3),
        pipeline.clone().sample(Sample::count(20_000, 0)),
        pipeline.shuffle(3).limit(20_000),
    ] {
        // 30 MB of text, and 18 MB for sorts.
        let ample = texts(&pipeline, 1 << 30);
        assert!(ample.len() >= 20_000);
        assert!(ample == texts(&pipeline, 48 << 20), "less memory gives other rows");
    }
}
