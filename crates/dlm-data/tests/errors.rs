//! Bad input: each mistake is reported with what, where and what to do, and leaves nothing behind.

mod support;

use dlm_data::{
    Alpaca, Chat, DataError, Messages, OnError, Pack, Pipeline, Quality, Source, SplitStep, Step, Tokenize, UserDefined,
};
use serde_json::json;
use std::{fs, path::Path};
use support::{prepare, text_pipeline, texts, tokenizer, write_jsonl};

/// What a preparation says that must fail, after checking that it leaves no output.
fn fails(pipeline: &Pipeline) -> DataError {
    let error = prepare(pipeline).unwrap_err();
    assert!(!pipeline.base.join("prepared").exists(), "something was left behind by: {error}");
    error
}

fn end(folder: &Path, pipeline: Pipeline) -> Pipeline {
    pipeline.relative_to(folder).tokenize(Tokenize::new(tokenizer())).pack(Pack::new(32)).output("prepared")
}

#[test]
fn sources_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = fails(&text_pipeline(folder.path(), 32));
    assert!(matches!(&error, DataError::Read { path, .. } if path.ends_with("rows.jsonl")), "{error}");
    let error = fails(&end(folder.path(), Pipeline::new().source("*.jsonl")));
    assert!(matches!(&error, DataError::NoFiles { pattern, .. } if pattern == "*.jsonl"), "{error}");
    assert!(error.help().unwrap().contains("relative to the pipeline file"));
    let error = fails(&end(folder.path(), Pipeline::new()));
    assert!(error.to_string().contains("no `[[source]]`"), "{error}");
}

#[test]
fn a_malformed_line_is_named_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.jsonl"), "{\"text\": \"a\"}\n{\"text\": \"b\"\n{\"text\": \"c\"}\n").unwrap();
    let error = fails(&text_pipeline(folder.path(), 32));
    assert!(matches!(&error, DataError::Json { line: 2, path, .. } if path.ends_with("rows.jsonl")), "{error}");
}

#[test]
fn a_corrupt_parquet_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.parquet"), "PAR1 this is none PAR1").unwrap();
    let error = fails(&end(folder.path(), Pipeline::new().source("rows.parquet")));
    assert!(matches!(&error, DataError::Parquet { path, .. } if path.ends_with("rows.parquet")), "{error}");

    // A good footer over damaged pages is found while reading.
    write_jsonl(&folder.path().join("rows.jsonl"), texts(400));
    let report = prepare(&text_pipeline(folder.path(), 32)).unwrap();
    let shard = report.output.join(&report.manifest.train.shards[0].path);
    let mut bytes = fs::read(shard).unwrap();
    bytes[64..128].fill(0xff);
    fs::write(folder.path().join("damaged.parquet"), bytes).unwrap();
    fs::remove_dir_all(&report.output).unwrap();
    let pipeline = Pipeline::new().source("damaged.parquet").select(["cast(input_ids as text) as text", "labels"]);
    let error = fails(&end(folder.path(), pipeline));
    assert!(matches!(&error, DataError::Parquet { path, .. } if path.ends_with("damaged.parquet")), "{error}");
}

#[test]
fn an_unknown_column_lists_the_columns_there_are() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "question": "a", "answer": "b" })]);
    let source = || Pipeline::new().source("rows.jsonl");
    let pipelines = [
        ("tokenize", end(folder.path(), source())),
        ("filter `length(txt) > 0`", end(folder.path(), source().filter("length(txt) > 0"))),
        ("select `text`", end(folder.path(), source().select(["text"]))),
        ("dedup", end(folder.path(), source().dedup(["text"]))),
        ("chat", end(folder.path(), source().chat(Chat::Alpaca(Alpaca::default())))),
        ("chat", end(folder.path(), source().chat(Chat::Messages(Messages::default())))),
    ];
    for (place, pipeline) in pipelines {
        let error = fails(&pipeline);
        let DataError::UnknownColumn { step, columns, .. } = &error else { panic!("{place}: {error}") };
        assert_eq!((step.as_str(), columns.as_slice()), (place, &["question".to_owned(), "answer".to_owned()][..]));
    }
}

#[test]
fn expressions_that_are_no_sql_or_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(2));
    let source = || Pipeline::new().source("rows.jsonl");
    let error = fails(&end(folder.path(), source().filter("length(text >")));
    assert!(matches!(&error, DataError::Sql { step, .. } if step == "filter `length(text >`"), "{error}");
    let error = fails(&end(folder.path(), source().filter("lenght(text) > 1")));
    assert!(error.to_string().contains("lenght"), "{error}");
    let error = fails(&end(folder.path(), source().filter("text + 1")));
    assert!(error.to_string().starts_with("filter `text + 1`"), "{error}");
}

#[test]
fn rows_that_cannot_be_used_are_named_by_file_and_row() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), texts(5));
    write_jsonl(&folder.path().join("b.jsonl"), [json!({ "text": "x" }), json!({ "text": null })]);
    let error = fails(&end(
        folder.path(),
        Pipeline::new().source("a.jsonl").source("b.jsonl").filter("number <> 1 or number is null"),
    ));
    let DataError::Row { path, row, message } = &error else { panic!("{error}") };
    assert!(path.ends_with("b.jsonl") && *row == 2 && message == "`text` is null", "{error}");

    write_jsonl(
        &folder.path().join("c.jsonl"),
        [json!({ "messages": [{ "role": "user", "content": "a" }] }), json!({ "messages": [{ "role": "assistant" }] })],
    );
    let chat = Chat::Messages(Messages::default());
    let error = fails(&end(folder.path(), Pipeline::new().source("c.jsonl").chat(chat)));
    assert!(matches!(&error, DataError::Row { row: 2, .. }), "{error}");
}

#[test]
fn a_template_that_refuses_a_conversation_names_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let talk = |roles: &[&str]| {
        let messages: Vec<_> = roles.iter().map(|role| json!({ "role": role, "content": "words" })).collect();
        json!({ "messages": messages })
    };
    write_jsonl(&folder.path().join("rows.jsonl"), [talk(&["user", "assistant"]), talk(&["assistant", "user"])]);
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .chat(Chat::Messages(Messages::default()))
        .tokenize(Tokenize::new(dlm_golden::model("mistral")))
        .pack(Pack::new(64))
        .output("prepared");
    let error = fails(&pipeline);
    assert!(matches!(&error, DataError::Row { row: 2, message, .. } if message.contains("alternate")), "{error}");
}

#[test]
fn tokenizers_that_lack_something() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "messages": [{ "role": "user", "content": "a" }] })]);
    let chat = Pipeline::new().relative_to(folder.path()).source("rows.jsonl");
    let missing =
        chat.clone().select(["'a' as text"]).tokenize(Tokenize::new("absent")).pack(Pack::new(8)).output("prepared");
    assert!(matches!(fails(&missing), DataError::Tokenizer(_)));

    // The golden tokenizer without its template and its named tokens.
    fs::create_dir(folder.path().join("bare")).unwrap();
    fs::copy(tokenizer().join("tokenizer.json"), folder.path().join("bare/tokenizer.json")).unwrap();
    fs::write(folder.path().join("bare/tokenizer_config.json"), "{}").unwrap();
    let bare = |pipeline: Pipeline, add_eos| {
        let tokenize = Tokenize { add_eos, ..Tokenize::new("bare") };
        pipeline.tokenize(tokenize).pack(Pack::new(8)).output("prepared")
    };
    let error = fails(&bare(chat.clone().chat(Chat::Messages(Messages::default())), None));
    assert!(matches!(error, DataError::NoTemplate { .. }), "{error}");
    let text = chat.select(["'a' as text"]);
    let error = fails(&bare(text.clone(), None));
    assert!(matches!(error, DataError::NoEnd { .. }), "{error}");
    let error = fails(&bare(text, Some(false)));
    assert!(matches!(error, DataError::NoPadding { .. }), "{error}");
}

#[test]
fn steps_out_of_order_and_values_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(2));
    let source = || Pipeline::new().relative_to(folder.path()).source("rows.jsonl").output("prepared");
    let tokenize = || Tokenize::new(tokenizer());
    let cases = [
        (source().tokenize(tokenize()), "needs the steps `tokenize` and `pack`"),
        (source().pack(Pack::new(8)), "needs the steps `tokenize` and `pack`"),
        (source().pack(Pack::new(8)).tokenize(tokenize()), "`pack` comes after `tokenize`"),
        (source().tokenize(tokenize()).pack(Pack::new(8)).filter("true"), "`pack` is the last one"),
        (source().tokenize(tokenize()).tokenize(tokenize()).pack(Pack::new(8)), "can stand only once"),
        (
            source().tokenize(tokenize()).chat(Chat::Alpaca(Alpaca::default())).pack(Pack::new(8)),
            "`chat` comes before `tokenize`",
        ),
        (source().tokenize(tokenize()).pack(Pack::new(1)), "`pack.sequence_len` is 1"),
        (
            source().step(Step::Split(SplitStep { validation: 1.5, seed: 0 })).tokenize(tokenize()).pack(Pack::new(8)),
            "`split.validation` is 1.5",
        ),
    ];
    for (pipeline, expected) in cases {
        let error = fails(&pipeline).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = fails(&Pipeline { output: None, ..text_pipeline(folder.path(), 8) });
    assert!(error.to_string().contains("no `[output]`"), "{error}");
}

#[test]
fn nothing_left_to_write_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(7));
    let error = fails(&end(folder.path(), Pipeline::new().source("rows.jsonl").filter("number > 100")));
    assert!(matches!(error, DataError::Empty { rows: 7, .. }), "{error}");
    assert!(error.to_string().contains("0 rows were left behind `step.0.filter`"), "{error}");
}

#[test]
fn sources_without_a_row_are_named_with_what_was_left_out_of_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.jsonl"), "").unwrap();
    let error = fails(&end(folder.path(), Pipeline::new().source("rows.jsonl")));
    assert!(error.to_string().contains("no row to read in `rows.jsonl`"), "{error}");
    fs::write(folder.path().join("rows.jsonl"), "{\n").unwrap();
    let skipping = Pipeline { on_error: OnError::Skip, ..Pipeline::new() };
    let error = fails(&end(folder.path(), skipping.source("rows.jsonl"))).to_string();
    assert!(error.contains("no row to read") && error.contains("left out: `rows.jsonl`: "), "{error}");
}

#[test]
fn optional_columns_that_are_named_have_to_exist() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "instruction": "a", "input": "b", "output": "c" })]);
    let misspelt = || "inptu".to_owned();
    for chat in [
        Chat::Alpaca(Alpaca { field_input: misspelt(), ..Alpaca::default() }),
        Chat::Alpaca(Alpaca { field_system: Some(misspelt()), ..Alpaca::default() }),
        Chat::UserDefined(UserDefined { field_input: misspelt(), ..UserDefined::default() }),
        Chat::UserDefined(UserDefined { field_system: misspelt(), ..UserDefined::default() }),
        Chat::Messages(Messages { column: "input".to_owned(), field_system: misspelt(), ..Messages::default() }),
        Chat::Messages(Messages { column: "input".to_owned(), field_tools: misspelt(), ..Messages::default() }),
    ] {
        let error = fails(&end(folder.path(), Pipeline::new().source("rows.jsonl").chat(chat.clone())));
        assert!(matches!(&error, DataError::UnknownColumn { column, .. } if column == "inptu"), "{chat:?}: {error}");
    }
}

#[test]
fn values_that_expressions_cannot_work_on_come_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    for filter in ["cast(text as int) > 5", "1 / (number - number) > 0"] {
        let error = fails(&end(folder.path(), Pipeline::new().source("rows.jsonl").filter(filter)));
        assert!(error.help().is_some_and(|help| help.contains("try_cast")), "{error:?}");
    }
}

#[test]
fn options_without_effect_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "instruction": "a", "output": "c" })]);
    let rows = || Pipeline::new().relative_to(folder.path()).source("rows.jsonl");
    let says = |pipeline: Pipeline| fails(&pipeline).to_string();
    let error = says(end(folder.path(), rows().with_override("mix.seed", "3").unwrap()));
    assert!(error.contains("`[mix]`") && error.contains("`weight`"), "{error}");
    let pipeline = end(folder.path(), rows()).with_override("output.shard_tokens", "0").unwrap();
    assert!(says(pipeline).contains("`output.shard_tokens` is 0"));
    let tokenize = Tokenize { column: "output".to_owned(), ..Tokenize::new(tokenizer()) };
    let pipeline =
        rows().chat(Chat::Alpaca(Alpaca::default())).tokenize(tokenize).pack(Pack::new(16)).output("prepared");
    assert!(says(pipeline).contains("`tokenize.column` is `output`"));

    let packed = |strategy: &str, window: &str| {
        let pipeline = end(folder.path(), rows()).with_override("pack.strategy", strategy).unwrap();
        pipeline.with_override("pack.window", window).unwrap()
    };
    for strategy in ["sequential", "concatenate", "alone"] {
        assert!(says(packed(strategy, "9")).contains("`pack.window` is 9, and has no effect"), "{strategy}");
    }
}

#[test]
fn thresholds_that_no_text_can_meet_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(2));
    for (least, most, expected) in [
        (Some(9.0), Some(8.0), "`quality.min_words`, 9, and `quality.max_words`, 8"),
        (None, Some(8.0), "`quality.min_words`, 50, and `quality.max_words`, 8"),
    ] {
        let quality = Quality { min_words: least, max_words: most, ..Quality::default() };
        let pipeline = Pipeline::new().source("rows.jsonl").step(Step::Quality(quality));
        let error = fails(&end(folder.path(), pipeline)).to_string();
        assert!(error.contains("no text can meet both") && error.contains(expected), "{error}");
    }
}

#[test]
fn functions_over_several_rows_are_refused_with_the_step_that_knows_them() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let rows = || Pipeline::new().source("rows.jsonl");
    let map = |column: &str| Step::Map([("n".to_owned(), column.to_owned())].into());
    let mapped = Source::new("rows.jsonl").column("text", "max(text)");
    for (pipeline, name) in [
        (rows().filter("count(*) > 1"), "count"),
        (rows().filter("length(text) > avg(length(text))"), "avg"),
        (rows().filter("row_number() over (order by number) < 3"), "row_number"),
        (rows().select(["text", "sum(number) as n"]), "sum"),
        (rows().step(map("lag(number) over (order by number)")), "lag"),
        (Pipeline::new().source(mapped), "max"),
    ] {
        let error = fails(&end(folder.path(), pipeline));
        assert!(matches!(error, DataError::Sql { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("`{name}` looks at several rows")) && text.contains("step `sql`"), "{text}");
        assert!(!text.contains("Function"), "{text}");
    }
}

#[test]
fn names_that_steps_use_for_themselves_are_no_names_for_columns() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    for select in ["number as __row", "number as __mine", "__row"] {
        let error = fails(&end(folder.path(), Pipeline::new().source("rows.jsonl").select(["text", select])));
        let text = error.to_string();
        assert!(text.contains("is taken: choose one without `__` in front"), "{text}");
    }
}

#[test]
fn answers_without_a_token_to_stop_at_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let turns = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]);
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "messages": turns })]);
    let warnings = |messages: Messages, output: &str| {
        let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").chat(Chat::Messages(messages));
        let pipeline = pipeline.tokenize(Tokenize::new(tokenizer())).pack(Pack::new(128)).output(output);
        prepare(&pipeline).unwrap().warnings
    };
    // This tokenizer ends documents with `<|end_of_text|>`, and its template ends turns with `<|eot_id|>`.
    let [warning] = <[String; 1]>::try_from(warnings(Messages::default(), "one")).unwrap();
    assert!(warning.contains("`<|end_of_text|>`") && warning.contains("\"<|eot_id|>\""), "{warning}");
    let named = Messages { eot_tokens: vec!["<|eot_id|>".to_owned()], ..Messages::default() };
    assert!(warnings(named, "two").is_empty());
    // No such tokens in this vocabulary.
    let foreign = Messages { template: "chatml".to_owned(), ..Messages::default() };
    assert_eq!(warnings(foreign, "three").len(), 1);
    let unasked = Messages { train_on_eos: dlm_data::TrainOnEnd::None, ..Messages::default() };
    assert!(warnings(unasked, "four").is_empty());
}

#[test]
fn what_is_tokenized_has_to_be_text() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let tokenize = Tokenize { column: "number".to_owned(), ..Tokenize::new(tokenizer()) };
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").tokenize(tokenize);
    let error = fails(&pipeline.pack(Pack::new(16)).output("prepared"));
    assert!(error.to_string().contains("the column `number` is Int64, and has to be text"), "{error}");
}

#[test]
fn functions_that_give_something_else_each_time_are_refused_in_columns_too() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    for call in ["random()", "now()"] {
        let source = Source::new("rows.jsonl").column("text", format!("concat(text, cast({call} as varchar))"));
        let error = fails(&end(folder.path(), Pipeline::new().source(source))).to_string();
        assert!(error.contains("something else each time"), "{error}");
    }
}

#[test]
fn columns_of_clashing_types_name_both_files() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), [json!({ "text": "a" })]);
    write_jsonl(&folder.path().join("b.jsonl"), [json!({ "text": 3 })]);
    let error = fails(&end(folder.path(), Pipeline::new().source("*.jsonl"))).to_string();
    assert!(error.contains("a.jsonl") && error.contains("b.jsonl") && error.contains("Int64"), "{error}");
}

#[test]
fn foreign_folders_and_unwritable_ones_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let pipeline = text_pipeline(folder.path(), 32);
    fs::create_dir(folder.path().join("prepared")).unwrap();
    fs::write(folder.path().join("prepared/thesis.txt"), "mine").unwrap();
    let error = prepare(&pipeline).unwrap_err();
    assert!(matches!(error, DataError::Occupied { foreign: true, .. }), "{error}");
    assert!(error.help().is_some_and(|help| help.contains("not overwritten")), "{error:?}");
    assert_eq!(fs::read_to_string(folder.path().join("prepared/thesis.txt")).unwrap(), "mine");

    fs::write(folder.path().join("file"), "").unwrap();
    let error = prepare(&pipeline.clone().output("file/prepared")).unwrap_err();
    assert!(error.to_string().contains("cannot create"), "{error}");
    let error = prepare(&pipeline.output("file")).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn two_preparations_do_not_write_to_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3));
    let aside = folder.path().join("prepared/.preparing");
    fs::create_dir_all(&aside).unwrap();
    let lock = fs::File::create(aside.join("lock")).unwrap();
    lock.lock().unwrap();
    let error = prepare(&text_pipeline(folder.path(), 32)).unwrap_err();
    assert!(matches!(error, DataError::Busy { .. }), "{error}");
    drop(lock);
    assert!(prepare(&text_pipeline(folder.path(), 32)).is_ok());
}
