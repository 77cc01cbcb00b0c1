//! Byte-level BPE: a pattern cuts text into words, and given merges join the bytes of each.

use super::{Vocabulary, texts};
use crate::{error::Result, gguf::reader::File};
use serde_json::{Map, Value, json};

/// Llama 3 and Qwen 2 differ in how many digits make a piece.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Ling, with which LLaDA-8B shares its tokenizer.
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// That of Mistral's Tekken: capitals begin a word.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The parts of tokenizer.json that tell it, and whether it begins texts with BOS where the file does not say.
pub(super) fn parts(file: &File, vocabulary: &Vocabulary<'_>) -> Result<(Map<String, Value>, bool)> {
    let mut merges = Vec::new();
    for merge in texts(file, "tokenizer.ggml.merges")? {
        // A space parts the two; a space inside a token is spelt otherwise.
        let parts = merge.split_once(' ');
        let is_known = |part: &str| vocabulary.ids.contains_key(part);
        match parts.filter(|(left, right)| is_known(left) && is_known(right) && is_known(&format!("{left}{right}"))) {
            Some((left, right)) => merges.push(json!([left, right])),
            None => return Err(file.damaged(format!("its merge `{merge}` is not of two of its tokens to a third"))),
        }
    }
    let pre = file.text("tokenizer.ggml.pre")?.ok_or_else(|| {
        let why = "it has no `tokenizer.ggml.pre`, so nothing says how words are cut, as in files made before May 2024";
        file.damaged(format!("{why}: get or make it anew"))
    })?;
    let words = Words::of(pre).ok_or_else(|| file.unsupported("pre-tokenizer", pre, Words::KNOWN))?;
    let whole_words = matches!(words, Words::Llama3 | Words::Tekken);
    let parts = json!({
        "normalizer": if words == Words::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null },
        "pre_tokenizer": words.json(),
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": whole_words,
            "vocab": vocabulary.ids,
            "merges": merges,
        },
    });
    let Value::Object(parts) = parts else { unreachable!("it was written as an object") };
    Ok((parts, whole_words))
}

/// How text is cut into words before merges begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
    Bailing,
    Tekken,
}

impl Words {
    const KNOWN: &str = "gpt-2, smollm, llama-bpe, qwen2, bailingmoe or tekken";

    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama-bpe" | "llama3" | "llama-v3" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "bailingmoe" => Self::Bailing,
            "tekken" => Self::Tekken,
            _ => return None,
        })
    }

    fn json(self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let sequence = |steps: [Value; 2]| json!({ "type": "Sequence", "pretokenizers": steps });
        match self {
            Self::Gpt2 => bytes(true),
            Self::SmolLm => sequence([json!({ "type": "Digits", "individual_digits": true }), bytes(true)]),
            Self::Llama3 => sequence([split(LLAMA3), bytes(false)]),
            Self::Qwen2 => sequence([split(QWEN2), bytes(false)]),
            Self::Bailing => sequence([split(BAILING), bytes(false)]),
            Self::Tekken => sequence([split(TEKKEN), bytes(false)]),
        }
    }
}
