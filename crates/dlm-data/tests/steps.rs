//! The steps on rows and texts: each does what its options say, in the same way for any number of threads.

mod support;

use dlm_data::{
    Chunk, DataError, Decontaminate, Found, IGNORE_INDEX, NearDedup, Normalize, Pack, Pipeline, PrepareReport, Quality,
    QualityRules, Resources, Sample, Side, Split, StepAccount, Tokenize, Truncate, UnicodeForm, WhiteSpace,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use support::{documents, options, prepare, rows, texts, tokenizer, tree, write_jsonl};

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

#[test]
fn rename_is_done_at_once_and_refuses_unknown_and_double_names() {
    let (_folder, pipeline) = over([json!({ "text": "a", "other": "b", "third": "c" })]);
    let swapped = pipeline.clone().rename([("text", "other"), ("other", "text")]);
    assert_eq!(texts_of(&swapped), ["b"]);
    assert!(says(&pipeline.clone().rename([("txt", "x")])).contains("rename: there is no column `txt`"));
    assert!(says(&pipeline.clone().rename([("third", "text")])).contains("two columns would be called `text`"));
    assert!(says(&pipeline.rename([("third", "__row")])).contains("`__row` is taken"));
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
fn normalize_changes_the_named_columns_by_its_options() {
    let (_folder, pipeline) = over([json!({ "text": " e\u{301}\r\n \u{fb01} ", "other": " x ", "null": null })]);
    assert_eq!(texts_of(&pipeline.clone().normalize(Normalize::default())), ["é\n \u{fb01}"]);
    let options = Normalize { unicode: UnicodeForm::Nfkc, white_space: WhiteSpace::Words, ..Normalize::default() };
    assert_eq!(texts_of(&pipeline.clone().normalize(options)), ["é fi"]);
    let columns = vec!["text".to_owned(), "other".to_owned()];
    let both = pipeline.clone().normalize(Normalize { columns, ..Normalize::default() }).map([("text", "other")]);
    assert_eq!(texts_of(&both), ["x"]);
    let absent = Normalize { columns: vec!["txt".to_owned()], ..Normalize::default() };
    assert!(says(&pipeline.normalize(absent)).contains("normalize: there is no column `txt`"));
}

#[test]
fn text_functions_work_in_any_expression_and_keep_null_null() {
    let (_folder, pipeline) = over([json!({ "text": "Ab 1 # the cat\n- the cat", "none": null, "n": 2 })]);
    let value = |expression: &str| {
        let mapped = pipeline.clone().map([("text", format!("cast({expression} as text)"))]);
        texts_of(&mapped).pop()
    };
    for (expression, expected) in [
        ("word_count(text)", "8"),
        ("mean_word_length(text) > 2.1", "true"),
        ("round(symbol_ratio(text), 3)", "0.125"),
        ("round(digit_ratio(text), 3)", "0.059"),
        ("round(uppercase_ratio(text), 3)", "0.071"),
        ("alpha_word_ratio(text)", "0.625"),
        ("bullet_line_ratio(text)", "0.5"),
        ("ellipsis_line_ratio(text || '...')", "0.5"),
        ("terminal_line_ratio(text || '.')", "0.5"),
        ("stop_word_count(text)", "1"),
        ("duplicate_line_ratio('a' || chr(10) || 'a')", "0.5"),
        ("duplicate_line_char_ratio('a' || chr(10) || 'a')", "0.5"),
        ("duplicate_paragraph_ratio('a' || chr(10) || chr(10) || 'a')", "0.5"),
        ("duplicate_paragraph_char_ratio('a' || chr(10) || chr(10) || 'a')", "0.5"),
        ("round(top_ngram_char_ratio(text, 2), 3)", "0.706"),
        ("round(duplicate_ngram_char_ratio(text, n), 3)", "0.706"),
        ("sentence_count('One. Two!')", "2"),
        ("has_curly_bracket('{')", "true"),
        ("has_lorem_ipsum('Lorem ipsum')", "true"),
        ("c4_lines('It is late now.' || chr(10) || 'Menu')", "It is late now."),
        // Functions of DataFusion give other types of text.
        ("word_count(substr(text, 1, 4))", "2"),
    ] {
        assert_eq!(value(expression).as_deref(), Some(expected), "{expression}");
    }
    assert_eq!(value("word_count(none)"), None);
    assert_eq!(value("top_ngram_char_ratio(none, 2)"), None);
    let zero = says(&pipeline.clone().filter("top_ngram_char_ratio(text, n - 2) > 0"));
    assert!(zero.contains("runs of 1 word or more, not 0"), "{zero}");
    assert!(says(&pipeline.filter("word_counts(text) > 1")).contains("word_count"));
}

#[test]
fn quality_drops_what_its_rules_name_and_the_manifest_counts_by_rule() {
    let good = "The lamp was lit and the boats came home to a quiet harbour. ";
    let rows_of = |text: &str| json!({ "text": text });
    let menu = "- Homepage\n- Newspaper\n- The bookshop\n- Terms and of\n";
    let (_folder, pipeline) = over([
        rows_of(good),
        rows_of("Too short."),
        rows_of(menu),
        rows_of("Bad {code} and of the words in here now."),
    ]);
    let quality = Quality {
        min_words: Some(5.0),
        min_sentences: Some(1.0),
        ..Quality::new([QualityRules::Gopher, QualityRules::C4])
    };
    let filtered = pipeline.clone().quality(quality.clone());
    assert_eq!(texts_of(&filtered), [good]);
    let report = prepare(&finish(filtered)).unwrap();
    let expected = [("c4.max_curly_brackets", 1), ("gopher.max_bullet_lines", 1), ("gopher.min_words", 1)];
    let expected: BTreeMap<String, u64> = expected.map(|(rule, rows)| (rule.to_owned(), rows)).into();
    assert_eq!(
        account(&report, "step.0.quality"),
        &StepAccount { step: "step.0.quality".to_owned(), rows: 1, reasons: expected }
    );

    let gopher = Quality { min_words: Some(5.0), ..Quality::new([QualityRules::Gopher]) };
    assert_eq!(texts_of(&pipeline.clone().quality(gopher)).len(), 2);
    let other = pipeline.clone().map([("other", "text"), ("text", "'x'")]);
    let other = other.quality(Quality { column: "other".to_owned(), ..quality.clone() });
    assert_eq!(texts_of(&other), ["x"]);
    let null = pipeline.clone().map([("text", "case when text like 'Too%' then null else text end")]).quality(quality);
    assert!(says(&null).contains("row 2: `text` is null"));
    assert!(says(&pipeline.clone().quality(Quality::new([]))).contains("`quality.rules` is empty"));
    assert!(says(&pipeline.map([("text", "1")]).quality(Quality::default())).contains("has to be text"));
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

fn jaccard(a: &str, b: &str, n: usize) -> f64 {
    let set = |text: &str| {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.windows(n).map(<[String]>::to_vec).collect::<BTreeSet<_>>()
    };
    let (a, b) = (set(a), set(b));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

#[test]
fn near_dedup_agrees_with_brute_force_where_similarity_is_clear() {
    let families = families();
    let (_folder, pipeline) = over(families.iter().map(|(text, _)| json!({ "text": text })));
    let near = NearDedup { permutations: 256, threshold: 0.7, ..NearDedup::default() };
    let kept: BTreeSet<String> = texts_of(&pipeline.clone().near_dedup(near.clone())).into_iter().collect();

    // Exactly: a row goes if it is similar to an earlier one that stays. The estimate may err near the threshold alone.
    let (mut clear_duplicates, mut found, mut clear_others, mut lost) = (0, 0, 0, 0);
    for (i, (text, family)) in families.iter().enumerate() {
        let earlier = families[..i].iter().filter(|(other, of)| of == family && kept.contains(other));
        let most = earlier.map(|(other, _)| jaccard(text, other, 5)).fold(0.0, f64::max);
        if most > 0.8 {
            clear_duplicates += 1;
            found += usize::from(!kept.contains(text));
        } else if most < 0.6 {
            clear_others += 1;
            lost += usize::from(!kept.contains(text));
        }
    }
    assert!(clear_duplicates > 40 && clear_others > 120, "{clear_duplicates} and {clear_others}");
    assert!(found as f64 >= 0.97 * clear_duplicates as f64, "recall: {found} of {clear_duplicates}");
    assert_eq!(lost, 0, "of {clear_others} that are no duplicates");
    // Of rows that stay no two were found similar.
    for (i, (text, family)) in families.iter().enumerate().filter(|(_, (text, _))| kept.contains(text)) {
        for (other, of) in &families[..i] {
            assert!(of != family || !kept.contains(other) || jaccard(text, other, 5) < 0.8);
        }
    }
}

#[test]
fn every_option_of_near_dedup_has_an_effect() {
    let families = families();
    let (_folder, pipeline) = over(families.iter().map(|(text, _)| json!({ "text": text, "same": "a b c d e f" })));
    let default = NearDedup::default();
    let kept = |near: NearDedup| texts_of(&pipeline.clone().near_dedup(near));
    let base = kept(default.clone());
    assert_ne!(kept(NearDedup { threshold: 0.4, ..default.clone() }).len(), base.len());
    assert_ne!(kept(NearDedup { ngram: 1, ..default.clone() }).len(), base.len());
    assert_ne!(kept(NearDedup { permutations: 16, ..default.clone() }), base);
    assert_ne!(
        kept(NearDedup { seed: 9, permutations: 16, ..default.clone() }),
        kept(NearDedup { permutations: 16, ..default.clone() })
    );
    assert!(
        kept(NearDedup { bands: Some(1), ..default.clone() }).len() > base.len(),
        "one long band finds equal sets alone"
    );
    assert_eq!(kept(NearDedup { column: "same".to_owned(), ..default.clone() }), [families[0].0.clone()]);
    assert_eq!(base[0], families[0].0, "the first stays");

    let wrong = |near: NearDedup| says(&pipeline.clone().near_dedup(near));
    assert!(wrong(NearDedup { threshold: 0.0, ..default.clone() }).contains("`dedup.near.threshold` is 0"));
    assert!(wrong(NearDedup { ngram: 0, ..default.clone() }).contains("`dedup.near.ngram` is 0"));
    assert!(wrong(NearDedup { bands: Some(129), ..default.clone() }).contains("`dedup.near.bands` is 129"));
    assert!(wrong(NearDedup { permutations: 0, ..default.clone() }).contains("`dedup.near.permutations` is 0"));
    assert!(wrong(NearDedup { column: "x".to_owned(), ..default }).contains("there is no column `x`"));
    let both =
        Pipeline::from_toml("source = [{path = \"rows.jsonl\"}]\nstep = [{dedup = {on = [\"text\"], near = {}}}]", "");
    assert!(says(&both.unwrap()).contains("either `on` or `near`"));
}

#[test]
fn texts_without_words_stay_and_near_duplicates_are_counted() {
    let (_folder, pipeline) =
        over(["...", "!!!", "One two three.", "one TWO three", "other"].map(|text| json!({ "text": text })));
    let pipeline = pipeline.near_dedup(NearDedup::default());
    assert_eq!(texts_of(&pipeline), ["...", "!!!", "One two three.", "other"]);
    let report = prepare(&finish(pipeline)).unwrap();
    let account = account(&report, "step.0.dedup");
    assert_eq!((account.rows, account.reasons["similar to an earlier row"]), (4, 1));
}

#[test]
fn dedup_in_too_little_memory_is_an_error_and_in_enough_needs_no_room_for_rows() {
    // 6 MB of rows, whose hashes take less than 1 MB.
    let (_folder, pipeline) = over((0..6000).map(|i| json!({ "text": format!("{i} {}", "long ".repeat(200)) })));
    let exact = pipeline.clone().dedup(["text"]);
    let within = |pipeline: &Pipeline, memory_limit: usize| -> Result<usize, DataError> {
        let texts = pipeline
            .texts(&Resources { threads: 2, memory_limit: Some(memory_limit) })?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(texts.len())
    };
    assert_eq!(within(&exact, 1 << 20).unwrap(), 6000);
    let error = within(&exact, 40_000).unwrap_err();
    assert!(matches!(&error, DataError::Memory { message } if message.contains("dedup")), "{error}");
    let near = pipeline.near_dedup(NearDedup { ngram: 1, threshold: 1.0, ..NearDedup::default() });
    let error = within(&near, 1000).unwrap_err();
    assert!(matches!(&error, DataError::Memory { .. }), "{error}");
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

#[test]
fn decontamination_finds_rows_that_hold_pieces_of_evaluation_sets() {
    let (folder, pipeline) = over([
        json!({ "text": words(0, 40), "n": 0 }),
        json!({ "text": format!("{} and then Word100, word101: {}", words(50, 60), words(102, 120)), "n": 1 }),
        json!({ "text": words(200, 211), "n": 2 }),
        json!({ "text": words(300, 305), "n": 3 }),
        json!({ "text": words(100, 108), "n": 4 }),
    ]);
    fs::create_dir(folder.path().join("eval")).unwrap();
    write_jsonl(
        &folder.path().join("eval/a.jsonl"),
        [
            json!({ "question": words(100, 130), "choices": [words(200, 210), "no"], "number": 1 }),
            json!({ "question": words(300, 305), "choices": [], "number": 2 }),
        ],
    );
    let against = || Decontaminate::new(["eval/*.jsonl"]);
    let numbers = |step: Decontaminate| {
        texts_of(&pipeline.clone().decontaminate(step).map([("text", "cast(n as text)")])).concat()
    };
    assert_eq!(numbers(against()), "034");
    assert_eq!(numbers(Decontaminate { min_ngram: 5, ..against() }), "04");
    assert_eq!(numbers(Decontaminate { min_ngram: 5, ngram: 8, ..against() }), "0");
    assert_eq!(numbers(Decontaminate { ngram: 30, ..against() }), "0134");
    assert_eq!(numbers(Decontaminate { fields: vec!["question".to_owned()], ..against() }), "0234");
    assert_eq!(numbers(Decontaminate { min_matches: 2, ..against() }), "0234");
    assert_eq!(numbers(Decontaminate { min_share: 0.7, ..against() }), "0134");
    assert_eq!(numbers(Decontaminate { min_share: 0.95, ..against() }), "01234");

    let report = pipeline.clone().decontaminate(Decontaminate { action: Found::Report, ..against() });
    assert_eq!(texts_of(&report).len(), 5);
    let shares = texts_of(&report.clone().map([("text", "cast(round(contamination, 2) as text)")]));
    assert_eq!(shares, ["0.0", "0.63", "0.91", "0.0", "0.0"]);
    let report = prepare(&finish(report)).unwrap();
    let steps = account(&report, "step.0.decontaminate");
    assert_eq!((steps.rows, steps.reasons["contaminated, kept"]), (5, 2));

    let columns = vec!["text".to_owned(), "other".to_owned()];
    let mapped = pipeline.clone().map([("other", format!("case when n = 0 then '{}' else '' end", words(105, 125)))]);
    assert_eq!(texts_of(&mapped.decontaminate(Decontaminate { columns, ..against() })).len(), 2);
    let wrong = |step: Decontaminate| says(&pipeline.clone().decontaminate(step));
    assert!(wrong(Decontaminate::new(["absent.jsonl"])).contains("absent.jsonl"));
    assert!(wrong(Decontaminate { min_ngram: 14, ..against() }).contains("`decontaminate.min_ngram` is 14"));
    assert!(wrong(Decontaminate { min_matches: 0, ..against() }).contains("`decontaminate.min_matches` is 0"));
    assert!(wrong(Decontaminate { min_share: 1.5, ..against() }).contains("`decontaminate.min_share` is 1.5"));
    assert!(wrong(Decontaminate { fields: vec!["answer".to_owned()], ..against() }).contains("no column `answer`"));
}

#[test]
fn another_evaluation_set_is_another_input() {
    let (folder, pipeline) = over(texts(30));
    let eval = folder.path().join("eval.jsonl");
    write_jsonl(&eval, [json!({ "q": words(0, 20) })]);
    let pipeline = finish(pipeline.decontaminate(Decontaminate::new(["eval.jsonl"])));
    assert!(!prepare(&pipeline).unwrap().already_prepared);
    assert!(prepare(&pipeline).unwrap().already_prepared);
    write_jsonl(&eval, [json!({ "q": words(1, 21) })]);
    assert!(matches!(prepare(&pipeline), Err(DataError::Occupied { .. })));
}

/// Documents of packed rows: id and offset with ids and labels.
fn segments(output: &Path, split: Split) -> BTreeMap<(i64, i64), (Vec<i32>, Vec<i32>)> {
    let mut segments: BTreeMap<(i64, i64), (Vec<i32>, Vec<i32>)> = BTreeMap::new();
    for row in rows(output, split) {
        for (at, segment) in row.segment_ids.iter().enumerate().filter(|(_, segment)| **segment > 0) {
            let which = usize::try_from(segment - 1).unwrap();
            let entry = segments.entry((row.document_ids[which], row.document_offsets[which])).or_default();
            entry.0.push(row.input_ids[at]);
            entry.1.push(row.labels[at]);
        }
    }
    segments
}

#[test]
fn truncation_keeps_an_end_and_its_tokens_are_accounted_for() {
    let (_folder, pipeline) = over(texts(40));
    let whole = prepare(&finish(pipeline.clone())).unwrap();
    let documents = documents(&rows(&whole.output, Split::Train));
    for side in [Side::Left, Side::Right] {
        let cut = pipeline.clone().tokenize(Tokenize::new(tokenizer())).truncate(Truncate { max_tokens: 9, side });
        let report = prepare(&cut.pack(Pack::new(64)).output(format!("{side:?}"))).unwrap();
        let found = segments(&report.output, Split::Train);
        let expected = documents.iter().map(|(id, ids)| {
            let start = if side == Side::Left { ids.len().saturating_sub(9) } else { 0 };
            let kept = ids[start..(start + 9).min(ids.len())].to_vec();
            ((*id, start as i64), (kept.clone(), kept))
        });
        assert_eq!(found, expected.collect::<BTreeMap<_, _>>());
        let account = &report.manifest.account;
        assert_eq!(account.tokens, whole.manifest.account.tokens);
        let dropped = account.dropped_tokens["truncate: beyond max_tokens"];
        assert_eq!(dropped, account.tokens - report.manifest.train.tokens);
        assert!(dropped > 0 && account.dropped_filtered_tokens == 0);
    }
}

#[test]
fn a_prompt_that_leaves_no_room_for_its_answer_is_dropped_and_counted() {
    let (_folder, pipeline) = over([
        json!({ "instruction": words(0, 200), "output": "lost" }),
        json!({ "instruction": "Say a", "output": "kept" }),
    ]);
    let chat = pipeline.chat(dlm_data::Chat::Alpaca(dlm_data::Alpaca::default()));
    let pipeline =
        chat.tokenize(Tokenize::new(tokenizer())).truncate(Truncate::new(300)).pack(Pack::new(512)).output("prepared");
    let report = prepare(&pipeline).unwrap();
    assert_eq!(segments(&report.output, Split::Train).into_keys().collect::<Vec<_>>(), [(1, 0)]);
    let account = &report.manifest.account;
    assert_eq!(account.tokens, report.manifest.train.tokens + account.dropped_tokens["truncate: no target left"]);
}

#[test]
fn chunks_cover_a_document_and_what_they_repeat_is_context() {
    let (_folder, pipeline) = over(texts(40));
    let whole = prepare(&finish(pipeline.clone())).unwrap();
    let documents = documents(&rows(&whole.output, Split::Train));
    let chunked = |overlap: usize| {
        let pipeline = pipeline.clone().tokenize(Tokenize::new(tokenizer())).chunk(Chunk { max_tokens: 10, overlap });
        prepare(&pipeline.pack(Pack::new(64)).output(format!("chunk-{overlap}"))).unwrap()
    };
    for overlap in [0, 4] {
        let report = chunked(overlap);
        let found = segments(&report.output, Split::Train);
        let mut targets: BTreeMap<i64, Vec<i32>> = BTreeMap::new();
        for ((document, offset), (ids, labels)) in &found {
            let offset = usize::try_from(*offset).unwrap();
            assert_eq!(ids, &documents[document][offset..offset + ids.len()]);
            assert!(ids.len() <= 10);
            let context = if offset == 0 { 0 } else { overlap };
            assert!(labels[..context].iter().all(|label| *label == IGNORE_INDEX));
            targets.entry(*document).or_default().extend(&labels[context..]);
        }
        assert_eq!(targets, documents, "every token is a target once");
        let account = &report.manifest.account;
        let repeated = account.added_tokens.get("chunk: overlap").copied().unwrap_or(0);
        assert_eq!(account.tokens + repeated, report.manifest.train.tokens);
        assert_eq!(repeated > 0, overlap > 0);
        assert_eq!(account.dropped_filtered_tokens, 0);
    }
}

#[test]
fn the_split_keeps_pieces_of_a_document_together_and_documents_that_truncation_makes_equal() {
    let (_folder, pipeline) =
        over((0..400).map(|i| json!({ "text": format!("{} end {i}", words(i / 4 * 7, i / 4 * 7 + 9)) })));
    let sides = |pipeline: Pipeline, output: &str| {
        let report = prepare(&pipeline.pack(Pack::new(64)).output(output)).unwrap();
        [Split::Train, Split::Validation].map(|split| segments(&report.output, split))
    };
    let start = || pipeline.clone().split(0.5).tokenize(Tokenize::new(tokenizer()));
    let [train, validation] = sides(start().chunk(Chunk { max_tokens: 8, overlap: 2 }), "chunked");
    let ids = |side: &BTreeMap<(i64, i64), _>| side.keys().map(|(document, _)| *document).collect::<BTreeSet<_>>();
    assert!(ids(&train).is_disjoint(&ids(&validation)));
    assert!((120..280).contains(&ids(&validation).len()));
    let [train, validation] = sides(start().truncate(Truncate::new(12)), "truncated");
    let contents = |side: BTreeMap<(i64, i64), (Vec<i32>, Vec<i32>)>| {
        side.into_values().map(|(ids, _)| ids).collect::<BTreeSet<_>>()
    };
    let (train, validation) = (contents(train), contents(validation));
    assert!(validation.len() > 20 && train.is_disjoint(&validation));
}

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
