//! Tokenizers that went into a GGUF file and came out again: the ids of the reference for every golden text.

mod common;
#[path = "common/gguf.rs"]
mod writer;

use common::model_with;
use dlm_model::{Gguf, LoadOptions, ModelError};
use dlm_tokenizer::{Specials, Tokenizer};
use serde_json::{Value as Json, json};
use std::{collections::BTreeSet, fs, path::Path};
use writer::{Contents, Value};

/// What llama.cpp calls the way in which a tokenizer.json cuts words; `None` where it is no byte-level BPE.
fn pre_tokenizer(tokenizer: &Json) -> Option<&'static str> {
    let text = tokenizer["pre_tokenizer"].to_string();
    if !text.contains("ByteLevel") {
        return None;
    }
    Some(match text {
        _ if text.contains("{1,3}") => "llama-bpe",
        _ if text.contains("Split") => "qwen2",
        _ if text.contains("Digits") => "smollm",
        _ => "gpt-2",
    })
}

/// A file with the vocabulary, merges and special tokens of a folder, as llama.cpp's converter writes it.
fn with_tokenizer_of(folder: &Path, adds_bos: bool) -> Option<(Contents, &'static str)> {
    let tokenizer = dlm_golden::json(&folder.join("tokenizer.json"));
    let pre = pre_tokenizer(&tokenizer)?;
    let id_of = |value: &Json| value.as_u64().unwrap() as usize;
    let vocab =
        tokenizer["model"]["vocab"].as_object().unwrap().iter().map(|(token, id)| (id_of(id), token.clone(), 1));
    let added = tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| {
        let kind = if token["special"].as_bool().unwrap() { 3 } else { 4 };
        (id_of(&token["id"]), token["content"].as_str().unwrap().to_owned(), kind)
    });
    let tokens: Vec<_> = vocab.chain(added).collect();
    let len = tokens.iter().map(|(id, ..)| id + 1).max().unwrap();
    // Ids without a token are written as unused ones.
    let mut texts: Vec<String> = (0..len).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![5; len];
    for (id, token, kind) in tokens {
        (texts[id], kinds[id]) = (token, kind);
    }
    let merge = |merge: &Json| match merge {
        Json::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();

    let architecture = if pre == "qwen2" { "qwen2" } else { "llama" };
    let family = if pre == "qwen2" { ("Qwen2ForCausalLM", "qwen2") } else { ("LlamaForCausalLM", "llama") };
    let model = model_with(&[
        ("architectures", json!([family.0])),
        ("model_type", json!(family.1)),
        ("vocab_size", json!(len)),
        ("num_hidden_layers", json!(1)),
    ]);
    let mut contents = Contents::of(&model, architecture);
    let mut put = |key: &str, value: Value| contents.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    put("pre", Value::Text(pre.to_owned()));
    if let (true, Some(bos)) = (adds_bos, bos_of(folder)) {
        let id = texts.iter().position(|token| *token == bos).unwrap();
        put("bos_token_id", Value::U32(id as u32));
    }
    put("add_bos_token", Value::Bool(adds_bos));
    put("eos_token_id", Value::U32(0));
    put("tokens", Value::Texts(texts));
    put("token_type", Value::I32s(kinds));
    put("merges", Value::Texts(merges));
    Some((contents, pre))
}

fn bos_of(folder: &Path) -> Option<String> {
    let token = dlm_golden::json(&folder.join("tokenizer_config.json"))["bos_token"].clone();
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

fn read(contents: &Contents, folder: &Path) -> dlm_model::Result<Gguf> {
    let path = folder.join("model.gguf");
    contents.write(&path);
    Gguf::read(&path, &LoadOptions::default())
}

#[test]
fn golden_texts_have_the_ids_of_the_reference_after_a_way_through_gguf() {
    let cases = dlm_golden::json_named("chat_tokenizers");
    let mut kinds = BTreeSet::new();
    for name in cases["tokenizers"].as_object().unwrap().keys() {
        let of_name: Vec<&Json> =
            cases["cases"].as_array().unwrap().iter().filter(|case| case["tokenizer"] == **name).collect();
        let framed = |case: &Json| case["ids_with_special_tokens"] != case["ids"];
        let adds_bos = of_name.iter().any(|case| framed(case));
        let Some((contents, pre)) = with_tokenizer_of(&dlm_golden::model(name), adds_bos) else { continue };
        let folder = tempfile::tempdir().unwrap();
        for (file, content) in read(&contents, folder.path()).unwrap().companions {
            fs::write(folder.path().join(file), content).unwrap();
        }
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert!(of_name.len() > 5, "{name} has few texts");
        for case in of_name {
            let text = case["text"].as_str().unwrap();
            let expected = |key: &str| dlm_golden::integers(&case[key]);
            let ids = |ids: Vec<u32>| ids.into_iter().map(i64::from).collect::<Vec<_>>();
            assert_eq!(ids(tokenizer.encode(text, Specials::Parse).unwrap()), expected("ids"), "{name}: {text:?}");
            let framed = tokenizer.encode_with_post_processor(text, Specials::Parse).unwrap();
            assert_eq!(ids(framed), expected("ids_with_special_tokens"), "{name}: {text:?}");
        }
        kinds.insert(pre);
    }
    assert!(kinds.contains("llama-bpe") && kinds.contains("qwen2"), "{kinds:?}");
}

#[test]
fn a_tokenizer_of_another_kind_is_refused_with_those_that_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, _) = with_tokenizer_of(&dlm_golden::model("llama"), false).unwrap();
    let refused = |key: &str, value: &str| {
        let mut contents = whole.clone();
        contents.metadata.insert(format!("tokenizer.ggml.{key}"), Value::Text(value.to_owned()));
        let error = read(&contents, folder.path()).unwrap_err();
        assert!(matches!(error, ModelError::UnsupportedGguf { .. }), "{error}");
        error.to_string()
    };
    let message = refused("pre", "tekken");
    assert!(message.contains("is tekken, but read is gpt-2, smollm, llama-bpe or qwen2"), "{message}");
    for (kind, what) in [("llama", "sentencepiece"), ("bert", "WordPiece"), ("t5", "unigram")] {
        let message = refused("model", kind);
        assert!(message.contains(&format!("is {kind}, but read is gpt2")), "{what}: {message}");
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused_with_both_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (mut contents, _) = with_tokenizer_of(&dlm_golden::model("llama"), false).unwrap();
    let rows = contents.tensors.iter().find(|(name, ..)| name == "token_embd.weight").unwrap().2[0];
    let Some(Value::Texts(tokens)) = contents.metadata.get_mut("tokenizer.ggml.tokens") else { panic!() };
    tokens.push("<|one too many|>".to_owned());
    contents.metadata.remove("tokenizer.ggml.token_type");
    let message = read(&contents, folder.path()).unwrap_err().to_string();
    assert!(
        message.contains(&format!("{} tokens", rows + 1)) && message.contains(&format!("{rows} rows")),
        "{message}"
    );
}
