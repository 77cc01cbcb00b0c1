//! Where documents are cut: no tail that says to stop, and no answer without its prompt.

mod support;

use dlm_data::{
    Alpaca, AnswerTail, Chat, Chunk, DataError, Pack, PackStrategy, Pipeline, Row, Side, Split, Tokenize, Truncate,
};
use serde_json::json;
use std::path::Path;
use support::{prepare, rows, texts, tokenizer, write_jsonl};

fn tokenized(folder: &Path) -> Pipeline {
    write_jsonl(&folder.join("rows.jsonl"), texts(23));
    Pipeline::new().relative_to(folder).source("rows.jsonl").tokenize(Tokenize::new(tokenizer()))
}

/// The documents and pieces that come out, each in a row of its own.
fn pieces(pipeline: Pipeline, output: &str) -> Vec<Row> {
    let pack = Pack { strategy: PackStrategy::Alone, ..Pack::new(256) };
    let report = prepare(&pipeline.pack(pack).output(output)).unwrap();
    let rows = rows(&report.output, Split::Train);
    std::fs::remove_dir_all(&report.output).unwrap(); // the next pipeline is another one
    rows
}

fn tokens(row: &Row) -> Vec<i32> {
    row.input_ids.iter().zip(&row.segment_ids).filter(|(_, segment)| **segment > 0).map(|(id, _)| *id).collect()
}

/// For each piece with a tail and without: its document, whether its end is that of the document, and how many tokens the tail has.
fn tails(cut: impl Fn(Pipeline) -> Pipeline, folder: &Path, whole: &[Row]) -> Vec<(bool, usize)> {
    let plain = pieces(cut(tokenized(folder)), "plain");
    let tailed = pieces(cut(tokenized(folder)).answer_tail(AnswerTail::Fixed { length: 3 }), "tailed");
    assert_eq!(plain.len(), tailed.len());
    let tails = plain.iter().zip(&tailed).map(|(plain, tailed)| {
        let document = whole.iter().find(|row| row.document_ids == plain.document_ids).unwrap();
        let end = usize::try_from(plain.document_offsets[0]).unwrap() + tokens(plain).len();
        (end == tokens(document).len(), tokens(tailed).len() - tokens(plain).len())
    });
    tails.collect()
}

#[test]
fn only_the_end_of_a_document_gets_a_tail_and_no_place_where_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let whole = pieces(tokenized(folder.path()), "whole");
    let left = Truncate { max_tokens: 12, side: Side::Left };
    let cuts: [&dyn Fn(Pipeline) -> Pipeline; 5] = [
        &|pipeline| pipeline.truncate(Truncate::new(12)),
        &|pipeline| pipeline.chunk(Chunk::new(10)),
        &|pipeline| pipeline.chunk(Chunk { max_tokens: 10, overlap: 4 }),
        &|pipeline| pipeline.truncate(Truncate::new(20)).chunk(Chunk::new(9)),
        &|pipeline| pipeline.truncate(Truncate::new(12)).truncate(Truncate { max_tokens: 5, side: Side::Left }),
    ];
    for (number, cut) in cuts.into_iter().enumerate() {
        let tails = tails(cut, folder.path(), &whole);
        for (is_end, tail) in &tails {
            assert_eq!(*tail, if *is_end { 3 } else { 0 }, "cut {number}");
        }
        assert!(tails.iter().any(|(is_end, _)| *is_end) && tails.iter().any(|(is_end, _)| !is_end), "cut {number}");
    }
    // A document that lost its beginning still ends where it ends.
    let tails = tails(|pipeline| pipeline.truncate(left.clone()), folder.path(), &whole);
    assert!(tails.iter().all(|tail| *tail == (true, 3)));
}

#[test]
fn a_prompt_that_fills_the_first_piece_is_an_error_that_names_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let long: String = (0..200).map(|i| format!("word{i} ")).collect();
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [
            json!({ "instruction": "Say a", "output": "kept" }),
            json!({ "instruction": long, "output": "a lone answer" }),
        ],
    );
    let chat = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").chat(Chat::Alpaca(Alpaca::default()));
    let tokenized = chat.tokenize(Tokenize::new(tokenizer()));
    let finish = |pipeline: Pipeline| pipeline.pack(Pack::new(2048)).output("prepared");
    let chunk = Chunk { max_tokens: 300, overlap: 20 };
    let error = prepare(&finish(tokenized.clone().chunk(chunk.clone()))).unwrap_err();
    let DataError::Row { row: 2, path, message } = &error else { panic!("{error}") };
    assert!(
        path.ends_with("rows.jsonl") && message.contains("leaves no room for an answer in pieces of 300"),
        "{error}"
    );

    // What the error advises.
    let filter = message.split('`').find_map(|code| code.strip_prefix("filter = \"")?.strip_suffix('"')).unwrap();
    let report = prepare(&finish(tokenized.clone().filter(filter).chunk(chunk))).unwrap();
    assert_eq!(report.manifest.train.segments, 1);
    std::fs::remove_dir_all(&report.output).unwrap();
    let report = prepare(&finish(tokenized.chunk(Chunk::new(1180)))).unwrap();
    assert_eq!(report.manifest.account.dropped_targetless_documents, 0);
}
