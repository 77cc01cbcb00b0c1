//! Tokenizers that went into a GGUF file and came out again: the ids of the reference for every golden text.

mod common;
#[path = "common/gguf.rs"]
mod writer;

use common::model_with;
use dlm_model::{Gguf, LoadOptions, ModelError};
use dlm_tokenizer::{KeepSpecials, Specials, Tokenizer};
use serde_json::{Value as Json, json};
use std::{collections::BTreeSet, fs, path::Path};
use writer::{Contents, Value};

/// What llama.cpp calls the way in which a tokenizer.json cuts words; `None` where it cuts none, as SentencePiece.
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
fn with_tokenizer_of(folder: &Path, adds_bos: bool) -> (Contents, &'static str) {
    let tokenizer = dlm_golden::json(&folder.join("tokenizer.json"));
    let pre = pre_tokenizer(&tokenizer);
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
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();

    let family = if pre == Some("qwen2") { ("Qwen2ForCausalLM", "qwen2") } else { ("LlamaForCausalLM", "llama") };
    let model = model_with(&[
        ("architectures", json!([family.0])),
        ("model_type", json!(family.1)),
        ("vocab_size", json!(len)),
        ("num_hidden_layers", json!(1)),
    ]);
    let mut contents = Contents::of(&model, family.1);
    let mut put = |key: &str, value: Value| contents.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    if let (true, Some(bos)) = (adds_bos, bos_of(folder)) {
        let id = texts.iter().position(|token| *token == bos).unwrap();
        put("bos_token_id", Value::U32(id as u32));
    }
    put("add_bos_token", Value::Bool(adds_bos));
    put("eos_token_id", Value::U32(0));
    if let Some(pre) = pre {
        put("pre", Value::Text(pre.to_owned()));
        put("merges", Value::Texts(merges));
    } else {
        // What a merge makes has the better score the earlier the merge; what none makes, the worst.
        let rank = |token: &String| merges.iter().position(|merge| merge.replacen(' ', "", 1) == *token);
        let scores = texts.iter().map(|token| -(rank(token).unwrap_or(merges.len()) as f32)).collect();
        put("scores", Value::F32s(scores));
        put("model", Value::Text("llama".to_owned()));
        put("unknown_token_id", Value::U32(0));
        kinds[0] = 2;
        let is_byte = |token: &str| token.len() == 6 && token.starts_with("<0x");
        kinds.iter_mut().zip(&texts).filter(|(_, token)| is_byte(token)).for_each(|(kind, _)| *kind = 6);
    }
    put("tokens", Value::Texts(texts));
    put("token_type", Value::I32s(kinds));
    (contents, pre.unwrap_or("sentencepiece"))
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
        let (contents, pre) = with_tokenizer_of(&dlm_golden::model(name), adds_bos);
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
    assert_eq!(kinds, BTreeSet::from(["llama-bpe", "qwen2", "sentencepiece"]));
}

/// A vocabulary that SentencePiece learnt, and its ids for some texts (`spm_vocabulary.py`).
fn learnt() -> (Contents, Json) {
    let learnt: Json = serde_json::from_str(include_str!("data/spm_vocabulary.json")).unwrap();
    let list = |key: &str| learnt[key].as_array().unwrap().clone();
    let tokens: Vec<String> = list("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect();
    let model = model_with(&[("vocab_size", json!(tokens.len())), ("num_hidden_layers", json!(1))]);
    let mut contents = Contents::of(&model, "llama");
    let mut put = |key: &str, value: Value| contents.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    put("model", Value::Text("llama".to_owned()));
    put("tokens", Value::Texts(tokens));
    put("scores", Value::F32s(list("scores").iter().map(|score| score.as_f64().unwrap() as f32).collect()));
    put("token_type", Value::I32s(list("kinds").iter().map(|kind| kind.as_i64().unwrap() as i32).collect()));
    for (id, name) in [(0, "unknown"), (1, "bos"), (2, "eos")] {
        put(&format!("{name}_token_id"), Value::U32(id));
    }
    (contents, learnt)
}

fn tokenizer(contents: &Contents) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    for (file, content) in read(contents, folder.path()).unwrap().companions {
        fs::write(folder.path().join(file), content).unwrap();
    }
    Tokenizer::load(folder.path()).unwrap()
}

#[test]
fn texts_have_the_ids_of_sentencepiece_whose_scores_the_file_has() {
    let (contents, learnt) = learnt();
    let tokenizer = tokenizer(&contents);
    let cases = learnt["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let (text, expected) = (case["text"].as_str().unwrap(), dlm_golden::integers(&case["ids"]));
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(ids.iter().copied().map(i64::from).collect::<Vec<_>>(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, KeepSpecials::Yes).unwrap(), case["decoded"].as_str().unwrap(), "{text:?}");
        // Where the file does not say, texts begin with BOS.
        let framed = tokenizer.encode_with_post_processor(text, Specials::Parse).unwrap();
        assert_eq!(framed[0], 1);
        assert_eq!(framed[1..], ids);
    }
}

#[test]
fn the_space_in_front_and_the_tokens_around_are_left_out_where_the_file_says_so() {
    let (mut contents, learnt) = learnt();
    contents.metadata.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(false));
    contents.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
    contents.metadata.insert("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(true));
    let tokenizer = tokenizer(&contents);
    let id = |token: &str| learnt["tokens"].as_array().unwrap().iter().position(|known| known == token).unwrap() as u32;
    let ids = tokenizer.encode_with_post_processor("e the", Specials::Parse).unwrap();
    assert_eq!(ids, [id("e"), id("▁the"), id("</s>")]);
    assert_eq!(tokenizer.decode(&ids[..2], KeepSpecials::Yes).unwrap(), "e the");
    // Nor is one taken away that the text itself begins with.
    assert_eq!(tokenizer.decode(&ids[1..2], KeepSpecials::Yes).unwrap(), " the");
}

#[test]
fn scores_that_are_missing_too_few_or_no_numbers_are_refused_and_so_is_a_token_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |key: &str, value: Option<Value>| {
        let (mut contents, _) = learnt();
        match value {
            Some(value) => contents.metadata.insert(format!("tokenizer.ggml.{key}"), value),
            None => contents.metadata.remove(&format!("tokenizer.ggml.{key}")),
        };
        read(&contents, folder.path()).unwrap_err().to_string()
    };
    let message = refused("scores", None);
    assert!(message.contains("it has no `tokenizer.ggml.scores`"), "{message}");
    let message = refused("scores", Some(Value::F32s(vec![1.0; 7])));
    assert!(message.contains("it has 600 tokens, but the scores of 7"), "{message}");
    let message = refused("scores", Some(Value::I32s(vec![1; 600])));
    assert!(message.contains("is not a list of numbers"), "{message}");
    let long = (0..600).map(|i| if i == 300 { "é".repeat(600) } else { format!("t{i}") }).collect();
    let message = refused("tokens", Some(Value::Texts(long)));
    assert!(message.contains("its token 300 has 1200 bytes, more than 256"), "{message}");
}

#[test]
fn tokens_with_one_score_for_all_are_taken_in_the_order_in_which_they_were_learnt() {
    // As a converter writes them that finds only a tokenizer.json.
    let (mut contents, learnt) = learnt();
    contents.metadata.insert("tokenizer.ggml.scores".to_owned(), Value::F32s(vec![-1000.0; 600]));
    let tokenizer = tokenizer(&contents);
    for case in learnt["cases"].as_array().unwrap() {
        let ids = tokenizer.encode(case["text"].as_str().unwrap(), Specials::Parse).unwrap();
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        assert_eq!(ids, dlm_golden::integers(&case["ids"]), "{case}");
    }
}

#[test]
fn a_token_of_the_users_own_with_a_space_is_found_in_a_text_and_keeps_its_id() {
    let (mut contents, _) = learnt();
    let Some(Value::Texts(tokens)) = contents.metadata.get_mut("tokenizer.ggml.tokens") else { panic!() };
    "▁<tool>".clone_into(&mut tokens[3]);
    let tokenizer = tokenizer(&contents);
    let ids = tokenizer.encode("a <tool>", Specials::Parse).unwrap();
    assert_eq!(ids.last(), Some(&3), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, KeepSpecials::Yes).unwrap(), "a <tool>");
}

#[test]
fn a_token_that_is_there_twice_and_more_ways_to_make_tokens_than_there_can_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Vec<String>)| {
        let (mut contents, _) = learnt();
        let Some(Value::Texts(tokens)) = contents.metadata.get_mut("tokenizer.ggml.tokens") else { panic!() };
        change(tokens);
        read(&contents, folder.path()).unwrap_err().to_string()
    };
    let message = refused(&|tokens| tokens[400] = tokens[500].clone());
    assert!(message.contains("its tokens 400 and 500 are both `"), "{message}");
    let message = refused(&|tokens| (300..500).for_each(|id| tokens[id] = "x".repeat(id - 299)));
    assert!(message.contains("its tokens are made of others in more than 19200 ways"), "{message}");
}

#[test]
fn byte_level_files_that_do_not_say_how_words_are_cut_or_merge_what_they_lack_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Contents)| {
        let (mut contents, _) = with_tokenizer_of(&dlm_golden::model("llama"), false);
        change(&mut contents);
        read(&contents, folder.path()).unwrap_err().to_string()
    };
    let message = refused(&|contents| _ = contents.metadata.remove("tokenizer.ggml.pre"));
    assert!(message.contains("it has no `tokenizer.ggml.pre`") && message.contains("anew"), "{message}");
    for merge in ["a 🙂", "🙂 a", "a", "q x"] {
        let message = refused(&|contents| {
            let Some(Value::Texts(merges)) = contents.metadata.get_mut("tokenizer.ggml.merges") else { panic!() };
            merge.clone_into(&mut merges[0]);
        });
        assert!(message.contains(&format!("its merge `{merge}` is not of two of its tokens to a third")), "{message}");
    }
}

#[test]
fn a_padding_token_that_was_left_out_is_none_and_an_end_that_was_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut contents, _) = learnt();
    for name in ["padding", "unknown"] {
        contents.metadata.insert(format!("tokenizer.ggml.{name}_token_id"), Value::U32(600));
    }
    let companions = read(&contents, folder.path()).unwrap().companions;
    let settings: Json = serde_json::from_slice(&companions[1].1).unwrap();
    assert_eq!((&settings["pad_token"], settings.get("unk_token")), (&json!("</s>"), None));
    contents.metadata.insert("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(600));
    let message = read(&contents, folder.path()).unwrap_err().to_string();
    assert!(message.contains("its `tokenizer.ggml.eos_token_id` is 600, but it has 600 tokens"), "{message}");
}

/// Words as the pre-tokenizers of llama.cpp of these names cut them.
#[test]
fn words_are_cut_as_the_name_of_the_pre_tokenizer_says() {
    let words = |pre: &str, text: &str| {
        let (mut contents, _) = with_tokenizer_of(&dlm_golden::model("llama"), false);
        contents.metadata.insert("tokenizer.ggml.pre".to_owned(), Value::Text(pre.to_owned()));
        let companions = read(&contents, tempfile::tempdir().unwrap().path()).unwrap().companions;
        let tokenizer = tokenizers::Tokenizer::from_bytes(&companions[0].1).unwrap();
        let mut text = tokenizers::PreTokenizedString::from(text);
        tokenizers::PreTokenizer::pre_tokenize(tokenizer.get_pre_tokenizer().unwrap(), &mut text).unwrap();
        let splits = text.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.to_owned()).collect::<Vec<_>>()
    };
    // Byte-level BPE spells a space Ġ and a line end Ċ.
    assert_eq!(words("llama-bpe", "it's 1234!!"), ["it", "'s", "Ġ", "123", "4", "!!"]);
    assert_eq!(words("llama-v3", "1234"), ["123", "4"]);
    assert_eq!(words("qwen2", "a 12\n\nb"), ["a", "Ġ", "1", "2", "ĊĊ", "b"]);
    assert_eq!(words("deepseek-r1-qwen", "12"), ["1", "2"]);
    assert_eq!(words("bailingmoe", "I'LL a\n\nb 12"), ["I", "'LL", "Ġa", "ĊĊ", "b", "Ġ", "1", "2"]);
    assert_eq!(
        words("tekken", "camelCase HTTPServer it's a//\n"),
        ["camel", "Case", "ĠHTTPServer", "Ġit", "'s", "Ġa", "//Ċ"]
    );
    assert_eq!(words("smollm", "a 12"), ["a", "Ġ", "1", "2"]);
    assert_eq!(words("gpt-2", "it's 1234"), ["it", "'s", "Ġ1234"]);
}

#[test]
fn a_tokenizer_of_another_kind_is_refused_with_those_that_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, _) = with_tokenizer_of(&dlm_golden::model("llama"), false);
    let refused = |key: &str, value: &str| {
        let mut contents = whole.clone();
        contents.metadata.insert(format!("tokenizer.ggml.{key}"), Value::Text(value.to_owned()));
        let error = read(&contents, folder.path()).unwrap_err();
        assert!(matches!(error, ModelError::UnsupportedGguf { .. }), "{error}");
        error.to_string()
    };
    let message = refused("pre", "falcon");
    let known = "is falcon, but read is gpt-2, smollm, llama-bpe, qwen2, bailingmoe or tekken";
    assert!(message.contains(known), "{message}");
    for (kind, what) in [("bert", "WordPiece"), ("t5", "unigram")] {
        let message = refused("model", kind);
        assert!(message.contains(&format!("is {kind}, but read is gpt2")), "{what}: {message}");
        assert!(message.contains("llama, which is SentencePiece's BPE"), "{message}");
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused_with_both_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (mut contents, _) = with_tokenizer_of(&dlm_golden::model("llama"), false);
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
