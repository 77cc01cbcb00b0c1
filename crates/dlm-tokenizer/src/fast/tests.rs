//! The fast path against the library's own steps: the same ids and the same spans for texts of every kind.

use crate::{Part, Specials, Tokenizer, TrainOptions, TrainSpecials, encode::Guarded};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{path::Path, sync::LazyLock};
use tokenizers::OffsetType;

/// A tokenizer of each kind that is known, with added tokens of each kind, under a name.
static TOKENIZERS: LazyLock<Vec<(String, Tokenizer)>> = LazyLock::new(|| {
    let texts = (0..60).map(|n| {
        format!("The model's mask hides the word {n}00; it'LL guess.\n\n\tIt is naïve — об этом 日本語 tokens()  {{\n    x = {n};\n")
    });
    let specials = TrainSpecials { additional: vec!["<|im_start|>".into(), "<|im_end|>".into()], ..Default::default() };
    let trained = Tokenizer::train_bpe(texts, &TrainOptions { specials, ..TrainOptions::new(420) }).unwrap();
    let tree: Value = serde_json::from_str(&trained.json).unwrap();

    let byte_level =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |index: usize| {
        let regex = super::words::Pattern::SPELLED[index].0;
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    };
    let sequence = |steps: [Value; 2]| json!({"type": "Sequence", "pretokenizers": steps});
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let pre_tokenizers = [
        ("gpt2", byte_level(true)),
        ("gpt2, spelled", sequence([split(0), byte_level(false)])),
        ("gpt4", sequence([split(1), byte_level(false)])),
        ("qwen2", sequence([split(2), byte_level(false)])),
        ("digits", sequence([digits(true), byte_level(true)])),
        ("contiguous digits", sequence([digits(false), byte_level(true)])),
    ];
    let added = |content: &str, normalized: bool, special: bool| json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized, "special": special});
    let mut made = Vec::new();
    for (name, pre_tokenizer) in pre_tokenizers {
        for normalizer in [Value::Null, json!({"type": "NFC"})] {
            let mut tree = tree.clone();
            tree["pre_tokenizer"] = pre_tokenizer.clone();
            tree["normalizer"] = normalizer.clone();
            let tokens = tree["added_tokens"].as_array_mut().unwrap();
            let more = [
                added("im_", false, false),
                added("e\u{301}t", true, false),
                added("  ", true, false),
                added("the", true, false),
                added("<|im_", false, false),
                added("\u{E9}t\u{E9}", true, true),
            ];
            for (id, mut token) in (1000..).zip(more) {
                token["id"] = json!(id);
                tokens.push(token);
            }
            let name = format!("{name}, normalizer {normalizer}");
            made.push((name.clone(), finished(&tree)));
            // Without some bytes, and with words that are tokens whatever the merges say.
            tree["model"]["ignore_merges"] = json!(true);
            let vocab = tree["model"]["vocab"].as_object_mut().unwrap();
            let ids: Vec<u64> = vocab.values().filter_map(Value::as_u64).collect();
            let next = ids.iter().max().unwrap() + 1;
            vocab.insert("Ġxz".into(), json!(next));
            vocab.insert("zz".into(), json!(next + 1));
            made.push((format!("{name}, whole words"), finished(&tree)));
            tree["model"]["ignore_merges"] = json!(false);
            let vocab = tree["model"]["vocab"].as_object_mut().unwrap();
            vocab.remove("q");
            vocab.remove("\u{101}");
            vocab.remove("ó");
            made.push((format!("{name}, bytes missing"), finished(&tree)));
        }
    }
    made
});

/// The same ones, which think that they are of no known kind.
static SLOW: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let slow = |(_, tokenizer): &(String, Tokenizer)| Tokenizer { fast: None.into(), ..tokenizer.clone() };
    TOKENIZERS.iter().map(slow).collect()
});

fn finished(tree: &Value) -> Tokenizer {
    let mut tokenizer = Tokenizer::parse(tree.to_string(), Path::new("tokenizer.json")).unwrap();
    tokenizer.resolve_specials(Path::new("tokenizer.json"), &serde_json::Map::new()).unwrap();
    tokenizer
}

/// What the library makes of a text.
fn slow(tokenizer: &Tokenizer, text: &str, specials: Specials) -> Vec<u32> {
    let guarded = match specials {
        Specials::Parse => Guarded::Plain(text),
        Specials::AsText => tokenizer.guard(text, |_| true).unwrap(),
    };
    tokenizer.tokenize(guarded.text(), guarded.mark(), OffsetType::None).unwrap().get_ids().to_vec()
}

/// Text by a regular expression, which is read once; a `&str` as strategy is read for every text.
fn pattern(regex: &str) -> proptest::string::RegexGeneratorStrategy<String> {
    proptest::string::string_regex(regex).expect("a regular expression")
}

/// Text of every kind: words and contractions, all white space, digits of all scripts, marks, controls, emoji, long runs,
/// added tokens whole and broken.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => pattern("[ ]?[a-zA-Z]{1,9}"),
        1 => pattern("'(?i:s|t|re|ve|m|ll|d)"),
        1 => pattern("[0-9]{1,6}"),
        2 => pattern("[ \\t\\r\\n]{1,5}"),
        1 => pattern("\\s{1,3}"),
        1 => pattern("\\p{N}{1,3}"),
        1 => pattern("\\p{L}{1,3}"),
        1 => pattern("[a-zé]?\\p{M}{1,3}"),
        1 => pattern("\\p{C}{1,2}"),
        1 => pattern("[\u{1F300}-\u{1F64F}\u{200D}\u{FE0F}]{1,3}"),
        1 => pattern("[\u{4E00}-\u{4FFF}\u{3040}-\u{30FF}\u{AC00}-\u{ADFF}\u{1100}-\u{11FF}]{1,20}"),
        1 => (pattern("[a-z =.-]"), 1usize..400).prop_map(|(piece, n)| piece.repeat(n)),
        1 => pattern("[abq]{200,600}"),
        1 => any::<char>().prop_map(String::from),
        2 => prop::sample::select(vec![
            "<|im_start|>", "<|im_end|>", "<|im_", "|>", "im_", "the", " the", "e\u{301}te\u{301}", "\u{E9}t\u{E9}", "e\u{301}t", "<|endoftext|>",
            " xz", "zz", "\u{FDD0}", "'ſ", "<|pad|><|pad|>",
        ]).prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

#[test]
fn each_of_these_tokenizers_is_of_a_known_kind() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        assert!(tokenizer.is_fast(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_text_has_the_ids_that_the_library_gives_it(text in texts(), which in any::<prop::sample::Index>()) {
        let (name, tokenizer) = which.get(&TOKENIZERS);
        let mut session = tokenizer.session();
        for specials in [Specials::AsText, Specials::Parse] {
            let mut ids = Vec::new();
            session.encode_into(&text, specials, &mut ids).unwrap();
            prop_assert_eq!(ids, slow(tokenizer, &text, specials), "{}, {:?}", name, specials);
        }
    }

    #[test]
    fn parts_have_the_ids_and_the_spans_that_the_library_gives_them(
        said in texts(), written in texts(), which in any::<prop::sample::Index>(),
    ) {
        let parts = [Part { text: said, specials: Specials::AsText }, Part { text: written, specials: Specials::Parse }];
        let (name, tokenizer) = which.get(&TOKENIZERS);
        let slow = which.get(&SLOW);
        prop_assert_eq!(tokenizer.encode_parts(&parts).unwrap(), slow.encode_parts(&parts).unwrap(), "{}", name);
    }
}

#[test]
fn what_is_not_known_is_left_to_the_library() {
    let (_, known) = &TOKENIZERS[0];
    let tree: Value = serde_json::from_str(&known.json).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut tree = tree.clone();
        change(&mut tree);
        finished(&tree)
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Value));
    let changes: [Change; 11] = [
        ("byte_fallback", &|tree| tree["model"]["byte_fallback"] = json!(true)),
        ("unk_token", &|tree| tree["model"]["unk_token"] = json!("<|endoftext|>")),
        ("suffix", &|tree| tree["model"]["end_of_word_suffix"] = json!("</w>")),
        ("prefix space", &|tree| tree["pre_tokenizer"]["add_prefix_space"] = json!(true)),
        ("no pattern", &|tree| tree["pre_tokenizer"]["use_regex"] = json!(false)),
        ("no pre-tokenizer", &|tree| tree["pre_tokenizer"] = Value::Null),
        ("pattern", &|tree| {
            let split = json!({"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false});
            let bytes =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
            tree["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
        }),
        ("normalizer", &|tree| tree["normalizer"] = json!({"type": "NFKC"})),
        ("lstrip", &|tree| tree["added_tokens"][0]["lstrip"] = json!(true)),
        ("rstrip", &|tree| tree["added_tokens"][0]["rstrip"] = json!(true)),
        ("single_word", &|tree| tree["added_tokens"][0]["single_word"] = json!(true)),
    ];
    for (what, change) in changes {
        let tokenizer = changed(change);
        assert!(!tokenizer.is_fast(), "{what}");
        for text in ["", "The model's <|im_end|> word", "  x"] {
            assert_eq!(
                tokenizer.encode(text, Specials::AsText).unwrap(),
                slow(&tokenizer, text, Specials::AsText),
                "{what}"
            );
        }
    }
    assert!(changed(&|_| {}).is_fast());
}

#[test]
fn a_token_that_is_added_later_is_found() {
    let mut tokenizer = TOKENIZERS[0].1.clone();
    assert!(tokenizer.is_fast());
    let mask = tokenizer.resolve_mask_token(None, "<|new_mask|>").unwrap();
    assert!(mask.added && tokenizer.is_fast());
    assert_eq!(tokenizer.encode("<|new_mask|>", Specials::Parse).unwrap(), [mask.id]);
    assert!(!tokenizer.encode("<|new_mask|>", Specials::AsText).unwrap().contains(&mask.id));
}

#[test]
fn dropout_is_refused_since_ids_must_not_depend_on_chance() {
    let mut tree: Value = serde_json::from_str(&TOKENIZERS[0].1.json).unwrap();
    tree["model"]["dropout"] = json!(0.1);
    let error = Tokenizer::parse(tree.to_string(), Path::new("tokenizer.json")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`tokenizer.json` drops 0.1 of all merges at random, and the same text must always have the same ids: set `model.dropout` to null"
    );
    tree["model"]["dropout"] = json!(0.0);
    assert!(finished(&tree).is_fast());
}
