//! What Axolotl makes of rows: text, ids and labels of every format, compared number by number.

use dlm_data::{
    Alpaca, AlpacaStyle, Chat, ChatFormat, Conversation, Encoder, InputOutput, Messages, Pack, PackStrategy, Packer,
    Tokenize, Tokens, UserDefined,
};
use dlm_golden::{integers, json_named, model};
use dlm_tokenizer::{ChatTemplate, Message, RenderOptions, Tokenizer};
use serde_json::{Map, Value};
use std::{path::Path, sync::Arc};

fn cases(file: &Value) -> &Vec<Value> {
    file["cases"].as_array().expect("there is a list of cases")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("`{key}` of {value} is no text"))
}

fn ids(value: &Value) -> Vec<i32> {
    integers(value).into_iter().map(|id| i32::try_from(id).unwrap()).collect()
}

fn count(value: &Value, key: &str) -> usize {
    usize::try_from(value[key].as_u64().unwrap_or_else(|| panic!("`{key}` of {value} is no count"))).unwrap()
}

fn load(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(model(name)).unwrap())
}

fn encoder(name: &str, step: impl FnOnce(Tokenize) -> Tokenize, chat: Option<&Chat>) -> Encoder {
    let folder = model(name);
    Encoder::new(load(name), &folder, &step(Tokenize::new(&folder)), chat).unwrap()
}

/// The options that say the same as Axolotl's `type`; `None` for text without prompts.
fn chat(case: &Value) -> Option<Chat> {
    let train_on_inputs = case["train_on_inputs"].as_bool().unwrap_or(false);
    let style = |name: &str| serde_json::from_value::<AlpacaStyle>(name.into()).unwrap();
    let (family, rest) = text(case, "format").split_once(':').unwrap_or((text(case, "format"), ""));
    let alpaca = |options: Alpaca| Some(Chat::Alpaca(Alpaca { train_on_inputs, ..options }));
    let defined = |options: UserDefined| Some(Chat::UserDefined(UserDefined { train_on_inputs, ..options }));
    let field = |name: &str| name.to_owned();
    match family {
        "alpaca" => alpaca(Alpaca { style: style(rest), ..Alpaca::default() }),
        "unprompted" => alpaca(Alpaca { style: style(rest), system_prompt: Some(field("")), ..Alpaca::default() }),
        "alpaca_w_system" => {
            alpaca(Alpaca { style: style(rest), field_system: Some(field("system")), ..Alpaca::default() })
        }
        "open_orca" => defined(UserDefined {
            system_format: field("### System:\n{system}\n"),
            prompt_format: field("### Human:\n{instruction}\n### Assistant:\n"),
            field_system: field("system_prompt"),
            field_instruction: field("question"),
            field_output: field("response"),
            ..UserDefined::default()
        }),
        "summarizetldr" => defined(UserDefined {
            prompt_format: field("USER: Summarize the following article as a TL;DR.\n{instruction}\nASSISTANT:"),
            field_instruction: field("article"),
            field_output: field("summary"),
            ..UserDefined::default()
        }),
        "jeopardy" => defined(UserDefined {
            prompt_format: field(
                "Below is an instruction that describes a task, paired with an input that provides further context. Write \
                 a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
                 Input:\n{input}\n\n### Response:\n",
            ),
            output_format: field("what is {output}"),
            field_instruction: field("question"),
            field_input: field("category"),
            field_output: field("answer"),
            ..UserDefined::default()
        }),
        "user_defined" => {
            let mut dataset = case["dataset"].as_object().unwrap().clone();
            if let Some(format) = dataset.remove("format") {
                dataset.insert("prompt_format".to_owned(), format);
            }
            defined(serde_json::from_value(Value::Object(dataset)).unwrap())
        }
        "input_output" => Some(Chat::InputOutput(InputOutput { train_on_inputs, ..InputOutput::default() })),
        "completion" | "pretrain" => None,
        other => panic!("the format `{other}` is unknown"),
    }
}

fn format(chat: &Chat, tokenizer: &str) -> ChatFormat {
    ChatFormat::new(chat, load(tokenizer), Path::new("")).unwrap()
}

fn row(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("a row is an object")
}

/// Axolotl cuts prompt and answer each to `sequence_len`; here that is left to packing.
fn cut(tokens: &Tokens, prompt_len: usize, sequence_len: usize) -> Tokens {
    let cut = |list: &[i32]| {
        let (prompt, answer) = list.split_at(prompt_len);
        let mut cut = prompt[..prompt.len().min(sequence_len)].to_vec();
        cut.extend_from_slice(&answer[..answer.len().min(sequence_len)]);
        cut
    };
    Tokens { ids: cut(&tokens.ids), labels: cut(&tokens.labels) }
}

#[test]
fn golden_prompts_have_the_same_text_ids_and_labels() {
    let file = json_named("chat_prompts");
    let mut compared = 0;
    for case in cases(&file) {
        let Some(chat) = chat(case) else { continue };
        let made = format(&chat, case["tokenizer"].as_str().unwrap_or("llama"));
        let conversation = made.conversation(row(&case["prompt"])).unwrap();
        let prompt_only = Conversation { units: vec![conversation.units[0].clone()], ends: false, ..conversation };
        if let Some(expected) = case["text"].as_str() {
            assert_eq!(conversation.text(), expected);
            assert_eq!(prompt_only.text(), text(case, "text_prompt_only"));
        }
        if let Some(tokenizer) = case["tokenizer"].as_str() {
            let encoder = encoder(tokenizer, |step| step, Some(&chat));
            let found = encoder.conversation(&conversation).unwrap();
            let prompt_len = encoder.conversation(&prompt_only).unwrap().ids.len();
            let found = cut(&found, prompt_len, count(case, "sequence_len"));
            assert_eq!(found.ids, ids(&case["input_ids"]), "{case}");
            assert_eq!(found.labels, ids(&case["labels"]), "{case}");
        }
        compared += 1;
    }
    assert!(compared > 0, "no prompt was found");
}

#[test]
fn golden_completions_are_cut_into_the_same_pieces() {
    let file = json_named("chat_prompts");
    let mut compared = 0;
    for case in cases(&file).iter().filter(|case| case["format"] == "completion") {
        let encoder = encoder(text(case, "tokenizer"), |step| step, None);
        let options = Pack { strategy: PackStrategy::Alone, ..Pack::new(count(case, "sequence_len")) };
        let mut packer = Packer::new(options, 0);
        let mut pieces = Vec::new();
        for text in case["prompt"]["text"].as_array().unwrap() {
            let tokens = encoder.text(text.as_str().unwrap()).unwrap();
            for row in packer.push(0, &tokens.ids, &tokens.labels).0 {
                let len = row.segment_ids.iter().filter(|segment| **segment > 0).count();
                assert_eq!(row.ids[..len], row.labels[..len]);
                pieces.push(row.ids[..len].to_vec());
            }
        }
        let expected: Vec<Vec<i32>> = case["input_ids"].as_array().unwrap().iter().map(ids).collect();
        assert_eq!(pieces, expected, "{case}");
        compared += 1;
    }
    assert!(compared > 0, "no completion case was found");
}

#[test]
fn golden_pretraining_texts_are_cut_into_the_same_windows() {
    let file = json_named("chat_prompts");
    let mut compared = 0;
    for case in cases(&file).iter().filter(|case| case["format"] == "pretrain") {
        let encoder = encoder(text(case, "tokenizer"), |step| step, None);
        let sequence_len = count(case, "sequence_len");
        let expected: Vec<Vec<i32>> = case["input_ids"].as_array().unwrap().iter().map(ids).collect();
        let texts = case["prompt"]["text"].as_array().unwrap().iter();
        // The reference takes the overlap it was made with from its library's stride; half of what is not the end token.
        let windows = texts
            .flat_map(|text| encoder.windows(text.as_str().unwrap(), sequence_len, (sequence_len - 1) / 2).unwrap());
        let windows: Vec<Tokens> = windows.collect();
        assert!(windows.iter().all(|window| window.ids == window.labels));
        assert_eq!(windows.into_iter().map(|window| window.ids).collect::<Vec<_>>(), expected, "{case}");
        compared += 1;
    }
    assert!(compared > 0, "no pretraining case was found");
}

/// The options that say the same as a dataset's and the file's of Axolotl.
fn messages(case: &Value) -> Messages {
    let mut options = Map::new();
    for (key, value) in case["dataset"].as_object().unwrap() {
        let (key, value) = match (key.as_str(), value.as_str()) {
            ("chat_template", Some("tokenizer_default")) => ("template", "tokenizer".into()),
            ("chat_template", Some(name)) => ("template", name.into()),
            ("field_messages", _) => ("column", value.clone()),
            (other, _) => (other, value.clone()),
        };
        options.insert(key.to_owned(), value);
    }
    for (key, value) in case["cfg"].as_object().unwrap().iter().filter(|(key, _)| *key != "sequence_len") {
        options.insert(key.clone(), value.clone());
    }
    serde_json::from_value(Value::Object(options)).unwrap()
}

#[test]
fn golden_conversations_have_the_same_ids_and_labels() {
    let file = json_named("chat_labels");
    for case in cases(&file) {
        let chat = Chat::Messages(messages(case));
        let tokenizer = text(case, "tokenizer");
        let conversation = format(&chat, tokenizer).conversation(row(&case["prompt"])).unwrap();
        let found = encoder(tokenizer, |step| step, Some(&chat)).conversation(&conversation).unwrap();
        assert_eq!(found.ids, ids(&case["input_ids"]), "{case}");
        assert_eq!(found.labels, ids(&case["labels"]), "{case}");
    }
    assert!(!cases(&file).is_empty());
}

/// The built-in templates write what Axolotl's of the same name write, where a folder has those.
#[test]
fn golden_built_in_templates_write_the_same_text() {
    for path in dlm_golden::files("chat_templates", "json") {
        for case in cases(&dlm_golden::json(&path)) {
            let Some(template) = ChatTemplate::built_in(text(case, "template")) else { continue };
            let tokenizer = load(text(case, "tokenizer"));
            let add_generation_prompt = case["add_generation_prompt"] == true;
            let options = RenderOptions { add_generation_prompt, ..tokenizer.render_options() };
            let messages: Vec<Message> = serde_json::from_value(case["conversation"].clone()).unwrap();
            let rendered = template.render(&messages, &options);
            match case["text"].as_str() {
                Some(expected) => assert_eq!(rendered.unwrap(), expected, "{case}"),
                None => assert!(rendered.is_err(), "{case}"),
            }
        }
    }
}

/// Streamed texts side by side. Axolotl cuts each text off where it does not fit and loses the rest, and puts a padding token
/// behind each; here nothing is lost and nothing is between.
#[test]
fn golden_streamed_texts_begin_alike_and_share_rows_alike() {
    let file = json_named("chat_pretraining_stream");
    for case in file.as_array().expect("a list of cases") {
        let joined = case["concatenate"] == true;
        let encoder = encoder(text(case, "tokenizer"), |step| Tokenize { add_eos: Some(joined), ..step }, None);
        let sequence_len = count(case, "max_tokens");
        let whole =
            case["texts"].as_array().unwrap().iter().map(|text| encoder.text(text.as_str().unwrap()).unwrap().ids);
        let whole: Vec<Vec<i32>> = whole.collect();
        let rows = case["input_ids"].as_array().unwrap().iter().zip(case["attention_mask"].as_array().unwrap());
        let kept: Vec<Vec<i32>> = rows.flat_map(|(row, mask)| documents(&ids(row), &ids(mask))).collect();
        assert_eq!(kept.len(), whole.len(), "{case}");
        for (kept, whole) in kept.iter().zip(&whole) {
            // Beside the end token and the padding behind it there is room for this many.
            let content = (whole.len() - usize::from(joined)).min(sequence_len - 2);
            assert_eq!(kept[..content], whole[..content], "{case}");
            assert_eq!(kept.len(), content + usize::from(joined), "{case}");
        }
        if joined {
            let lengths: Vec<usize> = kept.iter().map(|kept| kept.len() + 1).collect();
            let rows = dlm_data::sequential(&lengths, sequence_len).len();
            assert_eq!(rows, case["input_ids"].as_array().unwrap().len(), "{case}");
        }
    }
}

/// The documents of a row: each ends where the mask is 0.
fn documents(row: &[i32], mask: &[i32]) -> Vec<Vec<i32>> {
    let mut documents = vec![Vec::new()];
    for (id, mask) in row.iter().zip(mask) {
        match mask {
            0 => documents.push(Vec::new()),
            _ => documents.last_mut().unwrap().push(*id),
        }
    }
    documents.retain(|document: &Vec<i32>| !document.is_empty());
    documents
}
