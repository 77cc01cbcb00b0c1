//! Reading tokenizers of both generations from folders, good and bad, and the mask token that is saved with them.

use dlm_tokenizer::{KeepSpecials, Message, Specials, Tokenizer, TokenizerError, TrainOptions};
use serde_json::{Value, json};
use std::{fs, path::Path};

const MASK: &str = "<|new_mask|>";

/// A folder with a `tokenizer.json` of 256 bytes and the special tokens `<s>`, `</s>`, `<|x|>`, and these other files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let trained = Tokenizer::train_bpe(["a b".to_owned()].into_iter(), &TrainOptions::new(259)).unwrap();
    let mut tree: Value = serde_json::from_slice(&trained.files().unwrap()[0].1).unwrap();
    let entry = |id: u32, content: &str| json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false });
    tree["added_tokens"] = json!([entry(259, "<s>"), entry(260, "</s>"), entry(261, "<|x|>")]);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "tokenizer.json", &tree);
    for (name, content) in files {
        write(folder.path(), name, content);
    }
    folder
}

fn write(folder: &Path, name: &str, content: &Value) {
    fs::write(folder.join(name), content.as_str().map_or_else(|| content.to_string(), str::to_owned)).unwrap();
}

fn saved(tokenizer: &Tokenizer, name: &str) -> Value {
    let files = tokenizer.files().unwrap();
    let (_, content) = files.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no {name}"));
    serde_json::from_slice(content).unwrap()
}

fn texts(tokenizer: &Tokenizer) -> Vec<&str> {
    tokenizer.special().iter().map(|token| token.text.as_str()).collect()
}

fn reloaded(tokenizer: &Tokenizer) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let again = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(again.files().unwrap(), tokenizer.files().unwrap());
    assert_eq!(again.special().ids(), tokenizer.special().ids());
    again
}

#[test]
fn tokens_may_be_texts_or_objects_and_undeclared_ones_are_not_special() {
    let config =
        json!({ "bos_token": { "__type": "AddedToken", "content": "<s>" }, "eos_token": "</s>", "pad_token": null });
    let tokenizer = Tokenizer::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
    assert_eq!(texts(&tokenizer), ["<s>", "</s>"]);
    assert_eq!(tokenizer.special().pad, None);
}

#[test]
fn without_a_configuration_the_vocabulary_and_the_model_say_what_is_special() {
    let model = json!({ "bos_token_id": 259, "eos_token_id": [260, 261], "pad_token_id": -1 });
    let folder = folder(&[("config.json", model)]);
    let mut tokenizer = Tokenizer::load(folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(texts(&tokenizer), ["<s>", "</s>", "<|x|>"]);
    assert_eq!((tokenizer.special().pad.clone(), tokenizer.special().unk.clone()), (None, None));
    assert_eq!(tokenizer.files().unwrap().len(), 1);

    // A configuration is made when there is something to say, and says what was known before.
    tokenizer.resolve_mask_token(None, MASK).unwrap();
    assert_eq!(texts(&reloaded(&tokenizer)), ["<s>", "</s>", MASK, "<|x|>"]);
}

#[test]
fn declared_tokens_that_the_vocabulary_lacks_are_added_as_special_tokens() {
    let config = json!({ "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<img>" });
    let tokenizer = Tokenizer::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
    assert_eq!((tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<img>")), (Some(262), Some(263)));
    assert_eq!(tokenizer.len(), 264);
    let ids = tokenizer.encode("a<pad>", Specials::Parse).unwrap();
    assert_eq!(tokenizer.decode(&ids, KeepSpecials::No).unwrap(), "a");
    reloaded(&tokenizer);
}

#[test]
fn the_special_tokens_map_overrides_the_new_generation_and_not_the_old() {
    let map = json!({ "eos_token": "<|x|>" });
    let mut config = json!({ "eos_token": "</s>" });
    let eos = |config: &Value| {
        let folder = folder(&[("tokenizer_config.json", config.clone()), ("special_tokens_map.json", map.clone())]);
        Tokenizer::load(folder.path()).unwrap().special().eos.clone().unwrap().text
    };
    assert_eq!(eos(&config), "<|x|>");
    config["added_tokens_decoder"] = json!({ "260": { "content": "</s>", "special": true } });
    assert_eq!(eos(&config), "</s>");
}

#[test]
fn a_new_mask_token_is_recorded_in_the_words_of_each_generation() {
    let new = json!({ "eos_token": "</s>", "mask_token": "<|x|>", "extra_special_tokens": ["<s>"], "kept": { "as": "it is" } });
    let old = json!({ "eos_token": "</s>", "mask_token": "<|x|>", "additional_special_tokens": ["<s>"],
        "added_tokens_decoder": { "259": { "content": "<s>", "special": true } } });
    for (mut config, list) in [(new, "extra_special_tokens"), (old, "additional_special_tokens")] {
        let map = json!({ "eos_token": "</s>" });
        let folder = folder(&[("tokenizer_config.json", config.clone()), ("special_tokens_map.json", map)]);
        let mut tokenizer = Tokenizer::load(folder.path()).unwrap();
        let mask = tokenizer.resolve_mask_token(None, MASK).unwrap();
        assert_eq!((mask.id, mask.added), (262, true));
        config["mask_token"] = MASK.into();
        config[list] = json!(["<s>", "<|x|>"]);
        if let Some(decoder) = config.get_mut("added_tokens_decoder") {
            decoder["262"] = json!({ "content": MASK, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true });
        }
        assert_eq!(saved(&tokenizer, "tokenizer_config.json"), config);
        assert_eq!(saved(&tokenizer, "special_tokens_map.json"), json!({ "eos_token": "</s>", "mask_token": MASK }));
        assert_eq!(texts(&reloaded(&tokenizer)), ["</s>", MASK, "<s>", "<|x|>"]);
        // Once is enough.
        let again = tokenizer.resolve_mask_token(None, MASK).unwrap();
        assert_eq!((again.id, again.added), (262, false));
        assert_eq!(saved(&tokenizer, "tokenizer_config.json"), config);
    }
}

#[test]
fn an_explicit_mask_token_may_lie_anywhere_but_on_the_ends_of_texts() {
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>" });
    let mut tokenizer = Tokenizer::load(folder(&[("tokenizer_config.json", config)]).path()).unwrap();
    let mask = tokenizer.resolve_mask_token(Some(261), MASK).unwrap();
    assert_eq!((mask.text.as_str(), mask.added, mask.in_text), ("<|x|>", false, false));
    assert_eq!(saved(&tokenizer, "tokenizer_config.json")["mask_token"], "<|x|>");
    assert_eq!(tokenizer.len(), 262);

    let error = tokenizer.resolve_mask_token(Some(260), MASK).unwrap_err();
    assert_eq!(
        error.to_string(),
        "token 260 (`</s>`) is the tokenizer's eos token and cannot be the mask token as well"
    );
    let error = tokenizer.resolve_mask_token(None, "<s>").unwrap_err();
    assert!(matches!(error, TokenizerError::MaskIsTaken { id: 259, role: "bos", .. }), "{error}");
    let error = tokenizer.resolve_mask_token(Some(262), MASK).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownId { id: 262, len: 262 }), "{error}");
    let error = tokenizer.find_mask_token(None, MASK).unwrap_err();
    assert!(error.help().unwrap().contains("diffusion.mask_token_str"), "{error}");
    assert!(matches!(tokenizer.resolve_mask_token(None, ""), Err(TokenizerError::EmptyMask)));
}

#[test]
fn an_ordinary_token_chosen_as_mask_is_told_and_stays_ordinary() {
    let mut tokenizer = Tokenizer::load(folder(&[]).path()).unwrap();
    let ordinary = tokenizer.token_to_id("a").unwrap();
    let before = tokenizer.files().unwrap();
    let mask = tokenizer.resolve_mask_token(Some(ordinary), MASK).unwrap();
    assert!(mask.in_text && !mask.added);
    assert_eq!(tokenizer.files().unwrap(), before);
    // A byte of a longer character is no exception.
    let byte = tokenizer.token_to_id("Ã").unwrap();
    assert!(tokenizer.resolve_mask_token(Some(byte), MASK).unwrap().in_text);
}

#[test]
fn a_mask_token_that_was_not_special_becomes_so() {
    let folder = folder(&[]);
    let path = folder.path().join("tokenizer.json");
    let mut tree: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tree["added_tokens"][2]["special"] = false.into();
    write(folder.path(), "tokenizer.json", &tree);
    let mut tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert!(tokenizer.encode("<|x|>", Specials::AsText).unwrap().contains(&261));
    tokenizer.resolve_mask_token(None, "<|x|>").unwrap();
    for tokenizer in [&tokenizer, &reloaded(&tokenizer)] {
        assert!(!tokenizer.encode("<|x|>", Specials::AsText).unwrap().contains(&261));
        assert_eq!(tokenizer.decode(&[261], KeepSpecials::No).unwrap(), "");
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_not_applied_and_not_lost() {
    let folder = folder(&[]);
    let path = folder.path().join("tokenizer.json");
    let mut tree: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tree["truncation"] = json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    tree["padding"] = json!({ "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 260,
        "pad_type_id": 0, "pad_token": "</s>" });
    write(folder.path(), "tokenizer.json", &tree);
    write(folder.path(), "tokenizer_config.json", &json!({}));
    let mut tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("abc", Specials::AsText).unwrap().len(), 3);
    assert_eq!(tokenizer.special().pad.as_ref().unwrap().text, "</s>");
    tokenizer.resolve_mask_token(None, MASK).unwrap();
    assert_eq!(saved(&tokenizer, "tokenizer.json")["truncation"], tree["truncation"]);
}

#[test]
fn templates_come_from_files_first_and_then_from_the_configuration() {
    let config =
        json!({ "chat_template": [{ "name": "default", "template": "inline" }, { "name": "rag", "template": "rag" }] });
    let said = |tokenizer: &Tokenizer, name: &str| {
        let template = tokenizer.chat_template_named(name)?;
        Some(template.render(&[Message::new("user", "x")], &tokenizer.render_options()).unwrap())
    };
    let inline = folder(&[("tokenizer_config.json", config.clone())]);
    let tokenizer = Tokenizer::load(inline.path()).unwrap();
    assert_eq!((said(&tokenizer, "default"), said(&tokenizer, "rag")), (Some("inline".into()), Some("rag".into())));

    fs::write(inline.path().join("chat_template.jinja"), "file {{ eos_token }}").unwrap();
    fs::create_dir(inline.path().join("chat_templates")).unwrap();
    fs::write(inline.path().join("chat_templates/tool_use.jinja"), "tools").unwrap();
    write(
        inline.path(),
        "tokenizer_config.json",
        &json!({ "eos_token": "</s>", "chat_template": config["chat_template"] }),
    );
    let tokenizer = Tokenizer::load(inline.path()).unwrap();
    for tokenizer in [&tokenizer, &reloaded(&tokenizer)] {
        assert_eq!(said(tokenizer, "default"), Some("file </s>".into()));
        assert_eq!((said(tokenizer, "tool_use"), said(tokenizer, "rag")), (Some("tools".into()), None));
    }
}

#[test]
fn a_bad_template_leaves_the_tokenizer_usable_and_is_told_when_used() {
    let folder = folder(&[("chat_template.jinja", "{% if %}".into())]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let error = tokenizer.chat_template().unwrap().render(&[], &tokenizer.render_options()).unwrap_err();
    assert!(error.to_string().contains("chat_template.jinja`, line 1"), "{error}");
}

#[test]
fn bad_folders_are_refused_with_the_file_and_the_place() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(empty.path()).unwrap_err();
    assert!(matches!(&error, TokenizerError::Missing { path } if path == empty.path()), "{error}");
    assert!(error.help().is_some());

    let message = |name: &str, content: Value| {
        let folder = folder(&[]);
        write(folder.path(), name, &content);
        Tokenizer::load(folder.path()).unwrap_err().to_string()
    };
    let malformed = message("tokenizer.json", "{\n \"version\": ,".into());
    assert!(
        malformed.contains("tokenizer.json` is not valid JSON at line 2, column 13: expected value"),
        "{malformed}"
    );
    let malformed = message("tokenizer_config.json", "{".into());
    assert!(malformed.contains("tokenizer_config.json` is not valid JSON at line 1"), "{malformed}");
    let other = message("tokenizer.json", json!({ "version": "1.0" }));
    assert!(other.contains("does not describe a tokenizer"), "{other}");
    let wrong = message("tokenizer_config.json", json!({ "eos_token": 7 }));
    assert!(wrong.contains("`eos_token` in `") && wrong.contains("is 7, but must be a token"), "{wrong}");
    let wrong = message("tokenizer_config.json", json!({ "chat_template": 7 }));
    assert!(wrong.contains("`chat_template` in `"), "{wrong}");
    let wrong = message("config.json", json!({ "eos_token_id": "x" }));
    assert!(wrong.contains("`eos_token_id` in `"), "{wrong}");
}
