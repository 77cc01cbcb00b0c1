//! What becomes of special tokens that a text spells, and of any text at all.

use dlm_tokenizer::{KeepSpecials, Part, Specials, Tokenizer, TokenizerError, TrainOptions, TrainSpecials};
use proptest::prelude::*;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let texts = (0..40).map(|n| format!("The mask hides word {n} and the model guesses it: <|pad|>, end of text."));
    let specials = TrainSpecials { additional: vec!["<|im_start|>".into(), "<|im_end|>".into()], ..Default::default() };
    Tokenizer::train_bpe(texts, &TrainOptions { specials, ..TrainOptions::new(400) }).unwrap()
});

fn part(text: &str, specials: Specials) -> Part {
    Part { text: text.to_owned(), specials }
}

#[test]
fn a_user_who_spells_a_special_token_gets_text_that_decodes_exactly() {
    for text in ["<|im_start|>", "say <|im_start|><|im_end|>!", "<|<|diffusion_mask|>|>", "<|endoftext|><|endoftext|>"]
    {
        let ids = TOKENIZER.encode(text, Specials::AsText).unwrap();
        assert_eq!(TOKENIZER.decode(&ids, KeepSpecials::No).unwrap(), text);
        assert!(ids.iter().all(|id| !TOKENIZER.special().ids().contains(id)), "{text}: {ids:?}");
        let parsed = TOKENIZER.encode(text, Specials::Parse).unwrap();
        assert_ne!(parsed, ids);
        assert_eq!(TOKENIZER.decode(&parsed, KeepSpecials::Yes).unwrap(), text);
    }
}

#[test]
fn the_ids_of_guarded_text_are_those_of_a_tokenizer_without_special_tokens() {
    let json = String::from_utf8(TOKENIZER.files().unwrap()[0].1.clone()).unwrap();
    let mut tree: serde_json::Value = serde_json::from_str(&json).unwrap();
    tree["added_tokens"] = serde_json::json!([]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tree.to_string()).unwrap();
    let plain = Tokenizer::load(folder.path()).unwrap();
    let text = "The mask <|diffusion_mask|> hides<|im_end|>\n words, é<|pad|>é.";
    assert_eq!(TOKENIZER.encode(text, Specials::AsText).unwrap(), plain.encode(text, Specials::Parse).unwrap());
}

#[test]
fn parts_are_read_each_in_its_own_way_and_merges_run_across_their_borders() {
    let whole = TOKENIZER.encode("The model<|im_end|>", Specials::Parse).unwrap();
    let parts = [part("The mo", Specials::AsText), part("del<|im_end|>", Specials::Parse)];
    assert_eq!(TOKENIZER.encode_parts(&parts).unwrap().ids, whole);

    let parts = [part("<|im_start|>", Specials::Parse), part("<|im_start|> x", Specials::AsText)];
    let encoded = TOKENIZER.encode_parts(&parts).unwrap();
    let start = TOKENIZER.token_to_id("<|im_start|>").unwrap();
    assert_eq!(encoded.ids.iter().filter(|&&id| id == start).count(), 1);
    let text = "<|im_start|><|im_start|> x";
    let covered: String = encoded.spans.iter().map(|span| &text[span.clone()]).collect();
    assert_eq!(covered, text);

    // Neither half of a spelling makes it a special token.
    let parts = [part("<|im_", Specials::Parse), part("end|>", Specials::AsText)];
    let ids = TOKENIZER.encode_parts(&parts).unwrap().ids;
    assert!(!ids.contains(&TOKENIZER.token_to_id("<|im_end|>").unwrap()));
    assert!(TOKENIZER.encode_parts(&[]).unwrap().ids.is_empty());
}

#[test]
fn tokens_within_ranges_are_those_that_share_bytes_with_them() {
    let encoded = TOKENIZER.encode_parts(&[part("The mask hides", Specials::AsText)]).unwrap();
    let within = encoded.within(&[1..2, 4..8]);
    for (span, within) in encoded.spans.iter().zip(within) {
        let shares = |range: std::ops::Range<usize>| range.clone().any(|byte| span.contains(&byte));
        assert_eq!(within, shares(1..2) || shares(4..8), "{span:?}");
    }
    assert!(encoded.within(&[]).iter().all(|within| !within));
}

#[test]
fn a_text_with_every_reserved_character_is_refused_only_where_marks_are_needed() {
    let reserved: String = ('\u{FDD0}'..='\u{FDEF}').collect();
    let ids = TOKENIZER.encode(&reserved, Specials::AsText).unwrap();
    assert_eq!(TOKENIZER.decode(&ids, KeepSpecials::Yes).unwrap(), reserved);
    let error = TOKENIZER.encode(&format!("{reserved}<|pad|>"), Specials::AsText).unwrap_err();
    assert!(matches!(error, TokenizerError::NoMarkLeft), "{error}");
}

#[test]
fn ids_without_a_token_are_refused_with_their_number() {
    let beyond = u32::try_from(TOKENIZER.len()).unwrap();
    let error = TOKENIZER.decode(&[0, beyond], KeepSpecials::Yes).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownId { id, .. } if id == beyond), "{error}");
}

#[test]
fn special_ids_come_by_role_or_text_and_a_role_without_token_gives_none() {
    let names = ["bos", "eos", "<|im_end|>", "eos"].map(str::to_owned);
    let eos = TOKENIZER.special().eos.as_ref().unwrap().id;
    assert_eq!(TOKENIZER.special_ids(&names).unwrap(), [eos, TOKENIZER.token_to_id("<|im_end|>").unwrap()]);
    let error = TOKENIZER.special_ids(&["<|nothing|>".to_owned()]).unwrap_err();
    assert_eq!(error.to_string(), "the tokenizer has no token `<|nothing|>`");
}

/// Texts that are likely to hold special tokens, whole, broken and overlapping.
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("<|im_start|>".to_owned()),
        Just("<|diffusion_mask|>".to_owned()),
        Just("<|pad|".to_owned()),
        Just("|>".to_owned()),
        Just("\u{FDD0}".to_owned()),
        Just(" the model".to_owned()),
        "\\PC{0,6}",
        "[ \\n\\t]{0,3}",
    ];
    proptest::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn every_text_of_a_user_is_text_and_comes_back(text in texts()) {
        let ids = TOKENIZER.encode(&text, Specials::AsText).unwrap();
        prop_assert!(ids.iter().all(|id| !TOKENIZER.special().ids().contains(id)));
        prop_assert_eq!(TOKENIZER.decode(&ids, KeepSpecials::No).unwrap(), text);
    }

    #[test]
    fn the_spans_of_the_tokens_cover_the_text_in_order(before in texts(), after in texts()) {
        let parts = [part(&before, Specials::AsText), part(&after, Specials::Parse)];
        let encoded = TOKENIZER.encode_parts(&parts).unwrap();
        let text = format!("{before}{after}");
        let mut end = 0;
        for span in &encoded.spans {
            prop_assert!(span.start <= end && span.end >= end && text.get(span.clone()).is_some());
            end = span.end;
        }
        prop_assert_eq!(end, text.len());
        prop_assert_eq!(TOKENIZER.decode(&encoded.ids, KeepSpecials::Yes).unwrap(), text);
    }

    #[test]
    fn a_batch_gives_what_each_text_gives(texts in proptest::collection::vec(texts(), 0..6)) {
        let batch = TOKENIZER.encode_batch(&texts, Specials::AsText).unwrap();
        let single: Vec<_> = texts.iter().map(|text| TOKENIZER.encode(text, Specials::AsText).unwrap()).collect();
        prop_assert_eq!(batch, single);
    }
}
