//! The ids of random text against those of the `tokenizers` library, for the tokenizer of each golden model folder.

use dlm_tokenizer::{Specials, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::LazyLock;

/// Ours, and the library's own reading of the same file in which special tokens that a text spells are text.
struct Pair {
    name: String,
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let mut pairs = Vec::new();
    for entry in std::fs::read_dir(dlm_golden::folder().join("models")).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("tokenizer.json").exists() {
            let ours = Tokenizer::load(&folder).unwrap();
            let mut library = tokenizers::Tokenizer::from_bytes(&ours.files().unwrap()[0].1).unwrap();
            library.set_encode_special_tokens(true);
            pairs.push(Pair { name: folder.file_name().unwrap().to_str().unwrap().to_owned(), ours, library });
        }
    }
    assert!(!pairs.is_empty());
    pairs
});

impl Pair {
    fn expected(&self, text: &str) -> Vec<u32> {
        self.library.encode(text, false).unwrap().get_ids().to_vec()
    }
}

/// Text by a regular expression, which is read once; a `&str` as strategy is read for every text.
fn pattern(regex: &str) -> proptest::string::RegexGeneratorStrategy<String> {
    proptest::string::string_regex(regex).expect("a regular expression")
}

/// Text of every kind; special tokens of the golden tokenizers are among it.
fn texts() -> impl Strategy<Value = String> {
    let specials: Vec<String> = PAIRS
        .iter()
        .flat_map(|pair| pair.ours.special().iter().map(|token| token.text.clone()).collect::<Vec<_>>())
        .collect();
    let piece = prop_oneof![
        4 => pattern("[ ]?[a-zA-Z]{1,9}"),
        1 => pattern("'(?i:s|t|re|ve|m|ll|d)"),
        1 => pattern("[0-9]{1,6}"),
        2 => pattern("[ \\t\\r\\n]{1,5}"),
        1 => pattern("\\s{1,3}"),
        1 => pattern("\\p{N}{1,3}"),
        1 => pattern("[a-zé]?\\p{M}{1,3}"),
        1 => pattern("\\p{C}{1,2}"),
        1 => pattern("[\u{1F300}-\u{1F64F}\u{200D}\u{FE0F}]{1,3}"),
        1 => pattern("[\u{4E00}-\u{4FFF}\u{3040}-\u{30FF}\u{AC00}-\u{ADFF}]{1,20}"),
        1 => (pattern("[a-z =.-]"), 1usize..400).prop_map(|(piece, n)| piece.repeat(n)),
        1 => pattern("[aehlot]{200,900}"),
        1 => any::<char>().prop_map(String::from),
        1 => prop::sample::select(specials),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn golden_tokenizers_give_random_text_the_ids_of_the_library(text in texts(), which in any::<prop::sample::Index>()) {
        let pair = which.get(&PAIRS);
        prop_assert_eq!(pair.ours.encode(&text, Specials::AsText).unwrap(), pair.expected(&text), "{}", pair.name);
    }
}

#[test]
fn golden_byte_level_tokenizers_are_fast_and_the_others_are_left_to_the_library() {
    for Pair { name, ours, .. } in PAIRS.iter() {
        let json: Value = serde_json::from_slice(&ours.files().unwrap()[0].1).unwrap();
        assert_eq!(ours.is_fast(), json["pre_tokenizer"].to_string().contains("ByteLevel"), "{name}");
    }
}

#[test]
fn golden_tokenizers_read_a_long_document_without_spaces_as_the_library_does() {
    let letters = |n: u32| char::from(b"thelo na"[(n.wrapping_mul(n) >> 5) as usize % 5]);
    let text: String = (0..60_000).map(letters).collect();
    for pair in PAIRS.iter() {
        assert!(pair.ours.encode(&text, Specials::AsText).unwrap() == pair.expected(&text), "{}", pair.name);
    }
}
