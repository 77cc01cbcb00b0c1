//! The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json.

use super::reader::{File, Value as Stored};
use crate::{config::ModelConfig, error::Result};
use serde_json::{Map, Value, json};

/// What GGUF says a token is.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Llama 3 and Qwen 2 differ in how many digits make a piece.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The files to save beside the model.
pub(super) fn companions(file: &File, config: &ModelConfig) -> Result<Vec<(String, Vec<u8>)>> {
    let model = file.required("tokenizer.ggml.model", file.text("tokenizer.ggml.model")?)?;
    if model != "gpt2" {
        return Err(file.unsupported("tokenizer", model, "gpt2, which is byte-level BPE"));
    }
    let tokens = texts(file, "tokenizer.ggml.tokens")?;
    if tokens.len() as i64 > config.vocab_size {
        let rows = config.vocab_size;
        return Err(file.damaged(format!("its tokenizer has {} tokens, but its embedding {rows} rows", tokens.len())));
    }
    let kinds = match file.list("tokenizer.ggml.token_type")? {
        Some(kinds) if kinds.len() == tokens.len() => kinds,
        Some(kinds) => {
            return Err(file.damaged(format!("it has {} tokens, but the kinds of {}", tokens.len(), kinds.len())));
        }
        None => &[],
    };
    let is = |id: usize, kind: i64| kinds.get(id) == Some(&Stored::Integer(kind));
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| !is(*id, UNUSED)) {
        vocab.insert((*token).to_owned(), json!(id));
        if is(id, CONTROL) || is(id, USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is(id, CONTROL),
            }));
        }
    }
    let mut merges = Vec::new();
    for merge in texts(file, "tokenizer.ggml.merges")? {
        // A space parts the two; a space inside a token is spelt otherwise.
        match merge.split_once(' ') {
            Some((left, right)) => merges.push(json!([left, right])),
            None => return Err(file.damaged(format!("its merge `{merge}` is not of two tokens"))),
        }
    }
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
    let kind = PreTokenizer::of(pre).ok_or_else(|| file.unsupported("pre-tokenizer", pre, PreTokenizer::KNOWN))?;
    let special = |name: &str| special(file, name, &tokens);
    let (bos, eos) = (special("bos")?, special("eos")?);
    let adds_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(kind == PreTokenizer::Llama3);
    let adds_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let (first, last) = (bos.filter(|_| adds_bos), eos.filter(|_| adds_eos));

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": kind.normalizer(),
        "pre_tokenizer": kind.json(),
        "post_processor": template(first, last),
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": kind == PreTokenizer::Llama3,
            "vocab": vocab,
            "merges": merges,
        },
    });
    let mut settings = Map::new();
    settings.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    let pad = special("padding")?.or(eos);
    for (key, token) in [("bos_token", bos), ("eos_token", eos), ("unk_token", special("unknown")?), ("pad_token", pad)]
    {
        if let Some((_, token)) = token {
            settings.insert(key.to_owned(), json!(token));
        }
    }
    settings.insert("model_max_length".to_owned(), json!(config.max_seq_len()));
    if let Some(template) = file.text("tokenizer.chat_template")? {
        settings.insert("chat_template".to_owned(), json!(template));
    }
    let text = |value: &Value| serde_json::to_vec_pretty(value).expect("a JSON value serialises");
    Ok(vec![
        ("tokenizer.json".to_owned(), text(&tokenizer)),
        ("tokenizer_config.json".to_owned(), text(&Value::Object(settings))),
    ])
}

fn texts<'a>(file: &'a File, key: &str) -> Result<Vec<&'a str>> {
    let list = file.required(key, file.list(key)?)?;
    let text = |item: &'a Stored| if let Stored::Text(text) = item { Some(text.as_str()) } else { None };
    let texts: Option<Vec<_>> = list.iter().map(text).collect();
    texts.ok_or_else(|| file.damaged(format!("its `{key}` is not a list of texts")))
}

/// The id and text of a special token.
fn special<'a>(file: &File, name: &str, tokens: &[&'a str]) -> Result<Option<(i64, &'a str)>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.integer(&key)? else { return Ok(None) };
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    match token {
        Some(token) => Ok(Some((id, token))),
        None => Err(file.damaged(format!("its `{key}` is {id}, but it has {} tokens", tokens.len()))),
    }
}

/// Tokens that stand before and after every text.
fn template(first: Option<(i64, &str)>, last: Option<(i64, &str)>) -> Value {
    if first.is_none() && last.is_none() {
        return Value::Null;
    }
    let frame = |sequence: &str, type_id: i64| {
        let piece = |token: Option<(i64, &str)>| {
            token.map(|(_, text)| json!({ "SpecialToken": { "id": text, "type_id": type_id } }))
        };
        let middle = Some(json!({ "Sequence": { "id": sequence, "type_id": type_id } }));
        [piece(first), middle, piece(last)].into_iter().flatten().collect::<Vec<_>>()
    };
    let specials = [first, last].into_iter().flatten();
    let specials: Map<String, Value> =
        specials.map(|(id, text)| (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))).collect();
    let pair = [frame("A", 0), frame("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": frame("A", 0),
        "pair": pair,
        "special_tokens": specials,
    })
}

/// How text is cut into pieces before merges begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
}

impl PreTokenizer {
    const KNOWN: &str = "gpt-2, smollm, llama-bpe or qwen2";

    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama-bpe" | "llama3" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            _ => return None,
        })
    }

    fn normalizer(self) -> Value {
        if self == Self::Qwen2 { json!({ "type": "NFC" }) } else { Value::Null }
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
        }
    }
}
