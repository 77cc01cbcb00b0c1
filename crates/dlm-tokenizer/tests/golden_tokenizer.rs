//! Tokenizers, mask tokens and chat templates against what transformers and Axolotl make of the golden folders.

use dlm_tokenizer::{
    ChatTemplate, KeepSpecials, MaskToken, Message, Part, RenderOptions, Specials, Tokenizer, TokenizerError,
};
use serde_json::Value;
use std::collections::BTreeSet;

fn load(name: &str) -> Tokenizer {
    Tokenizer::load(dlm_golden::model(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn ids(value: &Value) -> Vec<u32> {
    dlm_golden::integers(value).into_iter().map(|id| u32::try_from(id).unwrap()).collect()
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().map(|id| u32::try_from(id).unwrap())
}

fn cases(file: &str) -> (Value, Vec<Value>) {
    let data = dlm_golden::json_named(file);
    let cases = data["cases"].as_array().expect("cases").clone();
    assert!(!cases.is_empty());
    (data, cases)
}

/// The cases of every file with templates, each with the sources of its file; some folders have more files than others.
fn template_cases() -> Vec<(Value, Value)> {
    let files = dlm_golden::files("chat_templates", "json");
    let cases = |path| {
        let data = dlm_golden::json(path);
        let cases = data["cases"].as_array().expect("cases").clone();
        cases.into_iter().map(|case| (data["templates"].clone(), case)).collect::<Vec<_>>()
    };
    files.iter().flat_map(|path| cases(path)).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[test]
fn golden_special_tokens_are_those_that_transformers_resolves() {
    let data = dlm_golden::json_named("chat_tokenizers");
    for (name, expected) in data["tokenizers"].as_object().unwrap() {
        let tokenizer = load(name);
        assert_eq!(Some(tokenizer.len() as u64), expected["len"].as_u64(), "{name}: len");
        assert_eq!(Some(tokenizer.base_vocab_size() as u64), expected["vocab_size"].as_u64(), "{name}: vocab_size");
        for role in ["bos", "eos", "pad", "unk", "mask"] {
            let token = tokenizer.special().role(role);
            assert_eq!(token.map(|token| token.id), id(&expected[role]), "{name}: {role}");
            let written = expected["special_tokens_map"][format!("{role}_token")].as_str();
            assert_eq!(token.map(|token| token.text.as_str()), written, "{name}: {role}");
        }
        let expected: BTreeSet<u32> = ids(&expected["all_special_ids"]).into_iter().collect();
        assert_eq!(tokenizer.special().ids(), expected.into_iter().collect::<Vec<_>>(), "{name}: all special ids");
    }
}

#[test]
fn golden_texts_become_the_same_ids_and_back() {
    for case in cases("chat_tokenizers").1 {
        let (name, source) = (text(&case["tokenizer"]), text(&case["text"]));
        let tokenizer = load(name);
        let encoded = tokenizer.encode(source, Specials::Parse).unwrap();
        assert_eq!(encoded, ids(&case["ids"]), "{name}: {source:?}");
        let framed = tokenizer.encode_with_post_processor(source, Specials::Parse).unwrap();
        assert_eq!(framed, ids(&case["ids_with_special_tokens"]), "{name}: {source:?}");
        assert_eq!(
            tokenizer.decode(&encoded, KeepSpecials::Yes).unwrap(),
            text(&case["decoded"]),
            "{name}: {source:?}"
        );
        let skipped = tokenizer.decode(&encoded, KeepSpecials::No).unwrap();
        assert_eq!(skipped, text(&case["decoded_skip_special"]), "{name}: {source:?}");
    }
}

#[test]
fn golden_texts_of_users_never_become_special_tokens() {
    for case in cases("chat_tokenizers").1 {
        let (name, source) = (text(&case["tokenizer"]), text(&case["text"]));
        let tokenizer = load(name);
        let unknown = tokenizer.special().unk.as_ref().map(|token| token.id);
        let plain = tokenizer.encode(source, Specials::AsText).unwrap();
        for special in tokenizer.special().ids() {
            assert!(Some(special) == unknown || !plain.contains(&special), "{name}: {source:?} holds {special}");
        }
        let kept = tokenizer.decode(&plain, KeepSpecials::Yes).unwrap();
        assert_eq!(kept, tokenizer.decode(&plain, KeepSpecials::No).unwrap(), "{name}: {source:?}");
        if tokenizer.encode(source, Specials::Parse).unwrap() == plain {
            assert_eq!(kept, text(&case["decoded"]), "{name}: {source:?}");
        }
        let parts = [Part { text: source.to_owned(), specials: Specials::AsText }];
        let encoded = tokenizer.encode_parts(&parts).unwrap();
        assert_eq!(encoded.ids, plain, "{name}: {source:?}");
        assert!(encoded.spans.iter().all(|span| source.get(span.clone()).is_some()), "{name}: {source:?}");
    }
}

/// What must come out where the reference is right, or what is right where it is not.
enum Right {
    /// The token that the reference resolves.
    Reference(u32),
    /// The explicit id, which the reference refuses because it lies beyond the base vocabulary.
    Explicit(u32),
    /// The token of the text, which the reference does not find when it may not add one.
    Existing(u32),
    /// No token: an error.
    Refused,
}

fn right_mask(tokenizer: &Tokenizer, case: &Value, explicit: Option<i64>, mask_text: &str) -> Right {
    let special = tokenizer.special();
    let taken =
        |id: u32| ["bos", "eos", "pad"].iter().any(|role| special.role(role).is_some_and(|token| token.id == id));
    match explicit.map(|id| u32::try_from(id).ok().filter(|&id| tokenizer.id_to_token(id).is_some())) {
        Some(None) => Right::Refused,
        Some(Some(id)) if taken(id) => Right::Refused,
        Some(Some(id)) if (id as usize) < tokenizer.base_vocab_size() => Right::Reference(id),
        Some(Some(id)) => Right::Explicit(id),
        None => match tokenizer.token_to_id(mask_text) {
            Some(id) if taken(id) => Right::Refused,
            Some(id) if case["allow_add"] == true || (id as usize) < tokenizer.base_vocab_size() => {
                Right::Reference(id)
            }
            Some(id) => Right::Existing(id),
            None if case["allow_add"] == true => Right::Reference(id(&case["resolved_id"]).unwrap()),
            None => Right::Refused,
        },
    }
}

#[test]
fn golden_mask_tokens_are_those_that_axolotl_resolves_where_it_is_right() {
    let data = dlm_golden::json_named("diffusion_axolotl_helpers");
    let mut compared = 0;
    for case in data["resolve_mask_token_id"].as_array().unwrap() {
        let mut tokenizer = load(text(&case["tokenizer"]));
        let before = tokenizer.special().ids();
        assert_eq!(Some(tokenizer.len() as u64), case["tokenizer_len_before"].as_u64());
        let explicit = case["config"]["mask_token_id"].as_i64();
        let mask_text = case["config"]["mask_token_str"].as_str().unwrap_or("<|diffusion_mask|>");
        let right = right_mask(&tokenizer, case, explicit, mask_text);
        // An id below 0 is none that this crate could be asked for: the settings refuse it.
        let explicit = match explicit.map(u32::try_from) {
            Some(Err(_)) => continue,
            other => other.map(Result::unwrap),
        };
        let found = if case["allow_add"] == true {
            tokenizer.resolve_mask_token(explicit, mask_text)
        } else {
            tokenizer.find_mask_token(explicit, mask_text)
        };
        match right {
            Right::Reference(expected) => {
                let found = found.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(Some(found.id), id(&case["resolved_id"]), "{case}");
                assert_eq!(found.id, expected, "{case}");
                assert_eq!(found.text, text(&case["resolved_token"]), "{case}");
                assert_eq!(Some(tokenizer.len() as u64), case["tokenizer_len_after"].as_u64(), "{case}");
                compared += 1;
            }
            Right::Explicit(expected) | Right::Existing(expected) => {
                assert_eq!(found.unwrap_or_else(|error| panic!("{case}: {error}")).id, expected, "{case}");
                assert_eq!(Some(tokenizer.len() as u64), case["tokenizer_len_before"].as_u64(), "{case}");
            }
            Right::Refused => {
                let error = found.expect_err(&case.to_string());
                let expected = matches!(
                    error,
                    TokenizerError::UnknownId { .. }
                        | TokenizerError::MaskIsTaken { .. }
                        | TokenizerError::MaskMissing { .. }
                );
                assert!(expected, "{case}: {error}");
                assert!(error.help().is_some(), "{case}: {error}");
            }
        }
        assert!(before.iter().all(|id| tokenizer.special().ids().contains(id)), "{case}: a special token was lost");
    }
    assert!(compared > 0);
}

#[test]
fn golden_adding_a_mask_token_keeps_every_special_token() {
    for case in cases("config_mask_token_resize").1 {
        let mut tokenizer = load(text(&case["model"]));
        let texts = |key: &str| -> BTreeSet<String> {
            case[key].as_array().unwrap().iter().map(|item| text(item).to_owned()).collect()
        };
        let special = |tokenizer: &Tokenizer| tokenizer.special().iter().map(|token| token.text.clone()).collect();
        assert_eq!(Some(tokenizer.len() as u64), case["tokenizer_len_before"].as_u64());
        let before = texts("all_special_tokens_before");
        assert_eq!(before, special(&tokenizer), "{case}");
        let new: Vec<String> = texts("all_special_tokens_after").difference(&before).cloned().collect();
        let [new] = new.as_slice() else { panic!("{case}: one token is added") };

        let mask = tokenizer.resolve_mask_token(None, new).unwrap();
        let expected =
            MaskToken { id: id(&case["resolved_id"]).unwrap(), text: new.clone(), added: true, in_text: false };
        assert_eq!(mask, expected, "{case}");
        assert_eq!(Some(tokenizer.len() as u64), case["tokenizer_len_after"].as_u64(), "{case}");
        let mut all = before;
        all.insert(new.clone());
        assert_eq!(all, special(&tokenizer), "{case}: earlier special tokens stay special");
        assert_eq!(tokenizer.decode(&tokenizer.special().ids(), KeepSpecials::No).unwrap(), "", "{case}");
    }
}

#[test]
fn golden_tokenizers_are_the_same_after_saving_with_a_mask_token() {
    let data = dlm_golden::json_named("chat_tokenizers");
    for name in data["tokenizers"].as_object().unwrap().keys() {
        for mask in [None, Some("<|diffusion_mask|>"), Some("<|another_mask|>")] {
            let mut tokenizer = load(name);
            if let Some(mask) = mask {
                tokenizer.resolve_mask_token(None, mask).unwrap();
            }
            let folder = tempfile::tempdir().unwrap();
            let config = std::fs::read(dlm_golden::model(name).join("config.json")).unwrap();
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            tokenizer.save(folder.path()).unwrap();
            let again = Tokenizer::load(folder.path()).unwrap();
            assert_eq!(again.files().unwrap(), tokenizer.files().unwrap(), "{name}");
            assert_eq!(again.hash(), tokenizer.hash(), "{name}");
            assert_eq!(again.special().ids(), tokenizer.special().ids(), "{name}");
            for role in ["bos", "eos", "pad", "unk", "mask"] {
                assert_eq!(again.special().role(role), tokenizer.special().role(role), "{name}: {role}");
            }
            assert_eq!(again.len(), tokenizer.len(), "{name}");
            if let Some(mask) = mask {
                assert_eq!(again.special().mask.as_ref().unwrap().text, mask, "{name}");
                assert_eq!(
                    again.find_mask_token(None, mask).unwrap().id,
                    tokenizer.token_to_id(mask).unwrap(),
                    "{name}"
                );
            }
            let sources =
                |tokenizer: &Tokenizer| tokenizer.chat_template().map(|template| template.source().to_owned());
            assert_eq!(sources(&again), sources(&tokenizer), "{name}");
        }
    }
}

fn conversation(value: &Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn golden_conversations_render_to_the_same_text_and_ids() {
    let (mut rendered_own, mut with_masks) = (0, 0);
    for (templates, case) in template_cases() {
        let (name, template) = (text(&case["tokenizer"]), text(&case["template"]));
        let tokenizer = load(name);
        let own = tokenizer.chat_template();
        let from_data = |key: &str| ChatTemplate::from_source(key, text(&templates[key])).unwrap();
        let given;
        let template = if template == "own" {
            rendered_own += 1;
            assert_eq!(own.unwrap().source(), text(&templates[format!("own:{name}")]));
            own.unwrap()
        } else {
            given = from_data(template);
            &given
        };
        let mut options = RenderOptions {
            add_generation_prompt: case["add_generation_prompt"] == true,
            ..tokenizer.render_options()
        };
        options.variables.extend(case["kwargs"].as_object().cloned().unwrap_or_default());
        options.variables.extend(case.get("tools").map(|tools| ("tools".to_owned(), tools.clone())));
        let messages = conversation(&case["conversation"]);
        if !case["error"].is_null() {
            assert!(matches!(template.render(&messages, &options), Err(TokenizerError::Template { .. })), "{case}");
            continue;
        }
        let rendered = template.render_parts(&messages, &options).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(rendered.text, text(&case["text"]), "{name}");
        if case["ids"].is_null() {
            continue; // only the text was recorded
        }
        // The reference reads special tokens that people spell as such; this crate does not.
        let parsed = tokenizer.encode(&rendered.text, Specials::Parse).unwrap();
        assert_eq!(parsed, ids(&case["ids"]), "{name}: {case}");
        if !rendered.said.is_empty() {
            continue;
        }
        let encoded = tokenizer.encode_rendered(&rendered).unwrap();
        assert_eq!(encoded.ids, parsed, "{name}: {case}");
        if let Some(masks) = case.get("assistant_masks").filter(|masks| !masks.is_null()) {
            with_masks += 1;
            let expected: Vec<bool> = dlm_golden::integers(masks).into_iter().map(|flag| flag == 1).collect();
            assert_eq!(encoded.within(&rendered.generation), expected, "{name}: {case}");
        }
    }
    assert!(rendered_own > 0 && with_masks > 0);
}

/// Every special token, said by a user in every golden template that shows what a user says.
#[test]
fn golden_templates_keep_special_tokens_that_users_spell_as_text() {
    let mut seen = BTreeSet::new();
    for (templates, case) in template_cases() {
        let (name, template) = (text(&case["tokenizer"]).to_owned(), text(&case["template"]).to_owned());
        if !seen.insert((name.clone(), template.clone())) {
            continue;
        }
        let tokenizer = load(&name);
        let template = match template.as_str() {
            "own" => tokenizer.chat_template().unwrap().clone(),
            other => ChatTemplate::from_source(other, text(&templates[other])).unwrap(),
        };
        let options = tokenizer.render_options();
        let render = |said: &str| {
            let messages = [Message::new("user", said), Message::new("assistant", "no")];
            let rendered = template.render_parts(&messages, &options).unwrap();
            let encoded = tokenizer.encode_rendered(&rendered).unwrap();
            assert_eq!(tokenizer.encode_parts(&rendered.parts()).unwrap(), encoded);
            (rendered, encoded.ids)
        };
        let count = |ids: &[u32], id: u32| ids.iter().filter(|&&other| other == id).count();
        let (_, harmless) = render("say");
        for token in tokenizer.special().iter() {
            let said = format!("say {}{} it", token.text, token.text);
            let (rendered, ids) = render(&said);
            assert_eq!(rendered.said.len(), 2, "{name}: {said}");
            assert_eq!(count(&ids, token.id), count(&harmless, token.id), "{name}: {said}");
            let parsed = tokenizer.encode(&rendered.text, Specials::Parse).unwrap();
            let expected = tokenizer.decode(&parsed, KeepSpecials::Yes).unwrap();
            let decoded = tokenizer.decode(&ids, KeepSpecials::Yes).unwrap();
            // Tokenizers that put a space before every piece put fewer where text is not cut by special tokens.
            let unspaced = |text: &str| text.replace(' ', "");
            assert_eq!(unspaced(&decoded), unspaced(&expected), "{name}: {said}");
        }
    }
}
