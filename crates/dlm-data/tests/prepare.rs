//! Whole preparations: what goes in comes out, the same for any number of threads, whole or not at all.

mod support;

use dlm_data::{
    Alpaca, Chat, DataError, Existing, IGNORE_INDEX, InspectOptions, Manifest, Overlong, Pack, Pipeline,
    PrepareOptions, PreparedData, Resources, Split, Tokenize, inspect, unigram_entropy,
};
use dlm_tokenizer::{KeepSpecials, Specials, Tokenizer};
use serde_json::json;
use std::{collections::BTreeSet, fs};
use support::{documents, options, prepare, rows, text_pipeline, texts, tokenizer, tree, write_jsonl};

fn decoded(ids: &[i32]) -> String {
    let ids: Vec<u32> = ids.iter().map(|id| id.unsigned_abs()).collect();
    Tokenizer::load(tokenizer()).unwrap().decode(&ids, KeepSpecials::No).unwrap()
}

#[test]
fn every_text_comes_back_whole_whatever_the_row_length() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(60));
    for sequence_len in [8, 50, 300] {
        let pipeline = text_pipeline(folder.path(), sequence_len).output(format!("prepared-{sequence_len}"));
        let report = prepare(&pipeline).unwrap();
        let found = documents(&rows(&report.output, Split::Train));
        let texts: Vec<String> = texts(60).map(|row| row["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(found.values().map(|ids| decoded(ids)).collect::<Vec<_>>(), texts);
        let eos = report.manifest.tokenizer.eos_token_id.unwrap();
        assert!(found.values().all(|ids| ids.last() == Some(&eos)));

        let account = &report.manifest.account;
        assert_eq!((account.rows, account.documents), (60, 60));
        assert_eq!(account.tokens, report.manifest.train.tokens);
        assert_eq!(account.tokens, report.manifest.train.label_tokens);
        assert_eq!(account.tokens, found.values().map(|ids| ids.len() as u64).sum::<u64>());
    }
}

#[test]
fn one_thread_and_several_write_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for part in 0..3 {
        write_jsonl(&folder.path().join(format!("part-{part}.jsonl")), texts(900 + part));
    }
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("part-*.jsonl")
        .filter("number % 7 <> 3")
        .dedup(["text"])
        .shuffle(5)
        .split(0.2)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack { window: 3, ..Pack::new(64) })
        .output("prepared")
        .with_override("output.shard_tokens", "3000")
        .unwrap();
    let prepared = |threads: usize| {
        let output = folder.path().join(format!("prepared-{threads}"));
        pipeline.prepare(&PrepareOptions { output: Some(output.clone()), ..options(threads) }, |_| ()).unwrap();
        tree(&output)
    };
    let (one, three) = (prepared(1), prepared(3));
    assert!(one.len() > 8, "several shards, a manifest and a tokenizer: {:?}", one.keys());
    assert!(one == three, "the bytes differ");
}

#[test]
fn dedup_keeps_the_first_of_equal_rows_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["b", "a", "b", "c", "a", "d"];
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        words.iter().enumerate().map(|(i, word)| json!({ "text": word, "list": [word], "i": i })),
    );
    for on in ["text", "list"] {
        let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").dedup([on]);
        let texts: Vec<String> = pipeline.texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
        assert_eq!(texts, ["b", "a", "c", "d"]);
    }
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").dedup(Vec::<String>::new());
    assert_eq!(pipeline.texts(&Resources::default()).unwrap().count(), words.len(), "`i` differs everywhere");
}

#[test]
fn a_shuffle_depends_on_its_seed_alone_and_survives_later_steps() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(40).chain(texts(40)));
    let order = |pipeline: Pipeline| -> Vec<String> {
        pipeline.texts(&Resources::default()).unwrap().map(Result::unwrap).collect()
    };
    let source = || Pipeline::new().relative_to(folder.path()).source("rows.jsonl");
    let plain = order(source());
    let shuffled = order(source().shuffle(1));
    assert_ne!(shuffled, plain);
    assert_ne!(shuffled, order(source().shuffle(2)));
    assert_eq!(shuffled, order(source().shuffle(1)));
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts
    };
    assert_eq!(sorted(shuffled.clone()), sorted(plain));
    let mut seen = BTreeSet::new();
    let firsts: Vec<String> = shuffled.into_iter().filter(|text| seen.insert(text.clone())).collect();
    assert_eq!(order(source().shuffle(1).dedup(["text"])), firsts);
}

#[test]
fn equal_documents_never_stand_on_both_sides_of_the_split() {
    let folder = tempfile::tempdir().unwrap();
    let twice = texts(300).chain(texts(300)).enumerate().map(|(i, mut row)| {
        row["number"] = json!(i);
        row
    });
    write_jsonl(&folder.path().join("rows.jsonl"), twice);
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .split(0.3)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(128))
        .output("prepared");
    let report = prepare(&pipeline).unwrap();
    let side = |split| documents(&rows(&report.output, split)).into_values().collect::<Vec<_>>();
    let (train, validation) = (side(Split::Train), side(Split::Validation));
    assert_eq!(train.len() + validation.len(), 600);
    assert!((120..240).contains(&validation.len()), "{}", validation.len());
    let validation: BTreeSet<_> = validation.into_iter().collect();
    assert!(train.iter().all(|document| !validation.contains(document)));
}

#[test]
fn alpaca_answers_are_targets_and_spelled_specials_stay_text() {
    let folder = tempfile::tempdir().unwrap();
    let eos = "<|end_of_text|>";
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [
            json!({ "instruction": format!("Say {eos}."), "output": format!("{eos} I said") }),
            json!({ "instruction": "Add.", "input": "1 and 2", "output": "3" }),
            json!({ "instruction": "Nothing.", "input": null, "output": "" }),
        ],
    );
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .chat(Chat::Alpaca(Alpaca::default()))
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(512))
        .output("prepared");
    let report = prepare(&pipeline).unwrap();
    let seen = inspect(&report.output, &InspectOptions { samples: 10, split: None }).unwrap();
    let segments: Vec<_> = seen.sides[0].samples.iter().flat_map(|row| &row.segments).collect();
    let mut answers: Vec<(i64, String)> = segments
        .iter()
        .map(|segment| {
            let answers = segment.spans.iter().filter(|span| span.is_answer).map(|span| span.text.as_str());
            (segment.document, answers.collect())
        })
        .collect();
    answers.sort();
    assert_eq!(answers, [(0, format!("{eos} I said{eos}")), (1, format!("3{eos}"))]);
    assert_eq!(report.manifest.account.dropped_targetless_documents, 1, "the answer of row 2 is empty");

    let all = documents(&rows(&report.output, Split::Train));
    let id = report.manifest.tokenizer.eos_token_id.unwrap();
    assert_eq!(all[&0].iter().filter(|found| **found == id).count(), 1, "only the one that ends the answer");
    assert!(decoded(&all[&1]).contains("### Input:\n1 and 2"));
    assert_eq!(seen.sides[0].segments, 2);
    assert!(seen.sides[0].label_share > 0.0 && seen.sides[0].label_share < 0.5);
    assert_eq!(seen.sides[0].lengths.iter().map(|bucket| bucket.segments).sum::<u64>(), 2);
}

#[test]
fn parquet_json_lists_and_texts_give_the_same_rows_as_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["one", "two é", "three\nlines"];
    write_jsonl(&folder.path().join("rows.jsonl"), words.iter().map(|word| json!({ "text": word })));
    let list = json!(words.map(|word| json!({ "text": word })));
    fs::write(folder.path().join("list.json"), serde_json::to_string_pretty(&list).unwrap()).unwrap();
    write_parquet(&folder.path().join("rows.parquet"), &words);
    fs::create_dir(folder.path().join("texts")).unwrap();
    for (i, word) in words.iter().enumerate() {
        fs::write(folder.path().join(format!("texts/{i}.md")), word).unwrap();
    }
    let texts = |source: &str| -> Vec<String> {
        let pipeline = Pipeline::new().relative_to(folder.path()).source(source);
        pipeline.texts(&Resources::default()).unwrap().map(Result::unwrap).collect()
    };
    for source in ["rows.jsonl", "list.json", "rows.parquet", "texts", "texts/*.md"] {
        assert_eq!(texts(source), words, "{source}");
    }

    let all = Pipeline::new().relative_to(folder.path()).source("rows.parquet").source("texts").source("rows.jsonl");
    let found: Vec<String> = all.texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(found, [words, words, words].concat());
    let named: Vec<String> =
        all.filter("path = 'texts/1.md'").texts(&Resources::default()).unwrap().map(Result::unwrap).collect();
    assert_eq!(named, ["two é"]);
}

fn write_parquet(path: &std::path::Path, words: &[&str]) {
    use datafusion::{
        arrow::array::{RecordBatch, StringViewArray},
        parquet::arrow::ArrowWriter,
    };
    use std::sync::Arc;
    let column: StringViewArray = words.iter().map(|word| Some(*word)).collect();
    let batch = RecordBatch::try_from_iter([("text", Arc::new(column) as _)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn select_renames_and_filter_knows_capital_letters() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [json!({ "Question": "a", "Answer": "b" }), json!({ "Question": "c", "Answer": "d" })],
    );
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .filter("Answer <> 'b'")
        .select(["concat(Question, '!') as text"]);
    assert_eq!(pipeline.texts(&Resources::default()).unwrap().map(Result::unwrap).collect::<Vec<_>>(), ["c!"]);
}

#[test]
fn tokens_in_are_tokens_out_and_tokens_dropped() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(50).chain([json!({ "text": "" })]));
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .tokenize(Tokenize::new(tokenizer()))
        .filter("array_length(input_ids) <> 20")
        .pack(Pack { overlong: Overlong::Drop, ..Pack::new(40) })
        .output("prepared");
    let manifest = prepare(&pipeline).unwrap().manifest;
    let account = &manifest.account;
    assert_eq!(
        account.tokens,
        manifest.train.tokens + account.dropped_overlong_tokens + account.dropped_filtered_tokens
    );
    assert!(account.dropped_overlong_documents > 0);
    assert_eq!(account.dropped_empty_documents, 1);
    assert_eq!((account.rows, account.documents), (51, 51));
}

#[test]
fn a_document_without_a_target_is_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [
            json!({ "instruction": "Say nothing", "input": "", "output": "" }),
            json!({ "instruction": "Say a", "input": "", "output": "a" }),
        ],
    );
    let pipeline = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .chat(dlm_data::Chat::Alpaca(dlm_data::Alpaca::default()))
        .tokenize(Tokenize { add_eos: Some(false), ..Tokenize::new(tokenizer()) })
        .pack(Pack::new(512))
        .output("prepared");
    let manifest = prepare(&pipeline).unwrap().manifest;
    let account = &manifest.account;
    assert_eq!((account.documents, account.dropped_targetless_documents), (2, 1));
    assert!(account.dropped_targetless_tokens > 0);
    assert_eq!(account.tokens, manifest.train.tokens + account.dropped_targetless_tokens);
}

#[test]
fn the_same_preparation_is_kept_and_another_is_refused_unless_asked() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(20));
    let pipeline = text_pipeline(folder.path(), 64);
    let first = prepare(&pipeline).unwrap();
    assert!(!first.already_prepared);
    let again = prepare(&pipeline).unwrap();
    assert!(again.already_prepared);
    assert_eq!(again.manifest, first.manifest);

    let other = pipeline.clone().with_override("pack.sequence_len", "32").unwrap();
    let before = tree(&first.output);
    assert!(matches!(prepare(&other), Err(DataError::Occupied { .. })));
    assert!(before == tree(&first.output));
    let replaced = other.prepare(&PrepareOptions { existing: Existing::Overwrite, ..options(2) }, |_| ()).unwrap();
    assert_eq!(replaced.manifest.sequence_len, 32);

    write_jsonl(&folder.path().join("rows.jsonl"), texts(21));
    assert!(matches!(prepare(&other), Err(DataError::Occupied { .. })), "the input is another one");
}

#[test]
fn a_failed_preparation_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(3000));
    let pipeline = text_pipeline(folder.path(), 64).with_override("output.shard_tokens", "1000").unwrap();
    prepare(&pipeline).unwrap();
    let before = tree(folder.path());

    let rows = texts(3000).chain([json!({ "text": null })]).collect::<Vec<_>>();
    write_jsonl(&folder.path().join("bad.jsonl"), rows);
    let bad = pipeline.clone().with_override("source.path", "bad.jsonl").unwrap();
    let overwrite = PrepareOptions { existing: Existing::Overwrite, ..options(2) };
    let error = bad.prepare(&overwrite, |_| ()).unwrap_err();
    assert!(error.to_string().ends_with("row 3001: `text` is null"), "{error}");
    fs::remove_file(folder.path().join("bad.jsonl")).unwrap();
    assert!(before == tree(folder.path()));

    let elsewhere = folder.path().join("new/prepared");
    let failing = PrepareOptions { output: Some(elsewhere.clone()), ..options(2) };
    write_jsonl(&folder.path().join("bad.jsonl"), [json!({ "text": null })]);
    bad.prepare(&failing, |_| ()).unwrap_err();
    assert!(!elsewhere.exists());
}

#[test]
fn a_killed_preparation_is_done_over_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(50));
    let pipeline = text_pipeline(folder.path(), 64);
    let output = prepare(&pipeline).unwrap().output;
    let whole = tree(&output);

    // What a process leaves that dies while it writes, and one that dies while it puts things in place.
    fs::rename(output.join("train"), output.join("left")).unwrap();
    fs::remove_file(output.join("manifest.json")).unwrap();
    fs::create_dir_all(output.join(".preparing/train")).unwrap();
    fs::rename(output.join("left"), output.join(".preparing/train/old")).unwrap();
    fs::write(output.join(".preparing/train/.tmp-00000.parquet-1-0"), "half").unwrap();
    assert!(matches!(PreparedData::open(&output, Split::Train), Err(DataError::NotPrepared { .. })));
    prepare(&pipeline).unwrap();
    assert!(whole == tree(&output));
}

#[test]
fn sorts_beyond_the_memory_limit_spill_and_give_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let long = |i: usize| json!({ "text": format!("{i} {}", "padding ".repeat(300)) });
    write_jsonl(&folder.path().join("rows.jsonl"), (0..12_000).map(long));
    let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").dedup(["text"]).shuffle(1);
    let texts = |memory_limit: usize| -> Vec<String> {
        let resources = Resources { memory_limit: Some(memory_limit), threads: 2 };
        pipeline.texts(&resources).unwrap().map(Result::unwrap).collect()
    };
    let small = texts(48 << 20); // the rows are 29 MB, and sorts get less than half of the limit
    assert_eq!(small.len(), 12_000);
    assert!(small == texts(1 << 30));
}

#[test]
fn the_plan_shows_sql_and_our_own_nodes() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "instruction": "a", "output": "b" })]);
    let plan = Pipeline::new()
        .relative_to(folder.path())
        .source("rows.jsonl")
        .filter("length(output) > 0")
        .split(0.5)
        .chat(Chat::Alpaca(Alpaca::default()))
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(32))
        .explain(&Resources::default())
        .unwrap();
    for part in [
        "Filter: ",
        "Chat: alpaca",
        "Tokenize: chat",
        "is_validation",
        "Pack: sequence_len=32",
        "rows.jsonl (JSON, 1 rows)",
    ] {
        assert!(plan.contains(part), "`{part}` is not in\n{plan}");
    }
}

#[test]
fn shards_are_plain_parquet_with_the_documented_columns() {
    use datafusion::{
        arrow::datatypes::DataType,
        parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, basic::Encoding},
    };
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(200));
    let report = prepare(&text_pipeline(folder.path(), 64)).unwrap();
    let shard = &report.manifest.train.shards[0];
    let file = fs::File::open(report.output.join(&shard.path)).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let columns: Vec<(String, DataType)> = reader
        .schema()
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            DataType::List(item) => (field.name().clone(), item.data_type().clone()),
            other => panic!("`{}` is {other}", field.name()),
        })
        .collect();
    let int32 = ["input_ids", "labels", "segment_ids", "position_ids"].map(|name| (name.to_owned(), DataType::Int32));
    let int64 = ["document_ids", "document_offsets"].map(|name| (name.to_owned(), DataType::Int64));
    assert_eq!(columns, [int32.as_slice(), &int64].concat());
    let positions = reader.metadata().row_group(0).column(3);
    assert!(positions.encodings().any(|encoding| encoding == Encoding::DELTA_BINARY_PACKED));
    let rows: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows as u64, shard.rows);
}

#[test]
fn the_unigram_entropy_is_that_of_the_counts() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "text": "!" }), json!({ "text": "!" })]);
    let report = prepare(&text_pipeline(folder.path(), 8)).unwrap();
    let data = PreparedData::open(&report.output, Split::Train).unwrap();
    // Each document is a beginning, the mark and an end: three tokens seen twice each, and one more of everything.
    let total = 6.0 + report.manifest.tokenizer.vocab_size as f64;
    let found = unigram_entropy(&data, &data).unwrap();
    assert!((found - (total / 3.0).ln()).abs() < 1e-12, "{found}");
}

#[test]
fn progress_and_manifest_agree() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(2000));
    let mut last = None;
    let report = text_pipeline(folder.path(), 32)
        .with_override("pack.window", "64")
        .unwrap()
        .prepare(&options(2), |progress| last = Some(*progress))
        .unwrap();
    let last = last.unwrap();
    assert_eq!(last.source_rows, 2000);
    assert_eq!(last.tokens, report.manifest.account.tokens);
    assert_eq!(last.packed_rows, report.manifest.train.rows);
    assert_eq!(Manifest::read(&report.output).unwrap(), report.manifest);
    assert!(report.manifest.train.packing_efficiency(32) > 0.9);
}

#[test]
fn labels_are_ids_where_they_are_anything() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(30));
    let report = prepare(&text_pipeline(folder.path(), 50)).unwrap();
    for row in rows(&report.output, Split::Train) {
        for at in 0..50 {
            let expected = if row.segment_ids[at] == 0 { IGNORE_INDEX } else { row.input_ids[at] };
            assert_eq!(row.labels[at], expected);
        }
    }
    let tokenizer = Tokenizer::load(report.output.join("tokenizer")).unwrap();
    assert_eq!(tokenizer.hash(), report.manifest.tokenizer.hash);
    assert!(tokenizer.encode("row", Specials::AsText).is_ok());
}

#[test]
fn the_memory_limit_of_a_pipeline_is_kept_and_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(500));
    let whole = prepare(&text_pipeline(folder.path(), 64)).unwrap();
    let limited =
        |limit: &str| text_pipeline(folder.path(), 64).with_override("resources.memory_limit", limit).unwrap();
    let elsewhere = || PrepareOptions { output: Some(folder.path().join("limited")), ..options(2) };
    let report = limited("200MB").prepare(&elsewhere(), |_| ()).unwrap();
    assert!(tree(&report.output) == tree(&whole.output));
    fs::remove_dir_all(&report.output).unwrap();

    let refused = limited("10kB").prepare(&elsewhere(), |_| ());
    let Err(DataError::Memory { message }) = refused else { panic!("packing needs more: {refused:?}") };
    assert!(message.contains("packing"), "{message}");
    // What the caller says goes before what the pipeline says.
    let roomy = PrepareOptions { resources: Resources { threads: 2, memory_limit: Some(1 << 28) }, ..elsewhere() };
    limited("10kB").prepare(&roomy, |_| ()).unwrap();
    for wrong in ["0", "\"many\""] {
        let error = text_pipeline(folder.path(), 64).with_override("resources.memory_limit", wrong).unwrap_err();
        assert!(matches!(error, DataError::Pipeline { .. }), "{error}");
    }
}

#[test]
fn every_packing_strategy_keeps_all_documents_and_concatenation_pads_the_last_row_only() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), texts(200));
    let mut rows_needed = Vec::new();
    for strategy in ["concatenate", "first_fit_decreasing", "first_fit", "sequential", "alone"] {
        let pipeline = text_pipeline(folder.path(), 40).with_override("pack.strategy", strategy).unwrap();
        let report = prepare(&pipeline.output(strategy)).unwrap();
        let found = rows(&report.output, Split::Train);
        let texts: Vec<String> = texts(200).map(|row| row["text"].as_str().unwrap().to_owned()).collect();
        let documents = documents(&found);
        assert_eq!(documents.values().map(|ids| decoded(ids)).collect::<Vec<_>>(), texts, "{strategy}");
        let padded = found.iter().filter(|row| row.segment_ids.last() == Some(&0)).count();
        assert!(if strategy == "concatenate" { padded <= 1 } else { padded > 1 }, "{strategy}: {padded}");
        rows_needed.push(found.len());
    }
    assert!(rows_needed.is_sorted(), "{rows_needed:?}");
    assert!(rows_needed[0] < rows_needed[4], "{rows_needed:?}");
}
