//! The steps on token ids: cutting, and dividing into two sides.

use super::{finish, over, words};
use crate::support::{documents, prepare, rows, texts, tokenizer};
use dlm_data::{Chunk, IGNORE_INDEX, Pack, Pipeline, Side, Split, Tokenize, Truncate};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

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
