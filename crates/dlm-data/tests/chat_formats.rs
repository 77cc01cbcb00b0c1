//! Rows of every kind as conversations: what is a target, what stays text, and what is said about rows that do not fit.

mod support;

use dlm_data::{
    Alpaca, Chat, ChatFormat, Completion, DataError, EndLabel, InputOutput, Messages, Pack, Pipeline, PromptCompletion,
    Tokenize, TrainOnEnd, UserDefined,
};
use dlm_tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};
use support::{prepare, tokenizer, write_jsonl};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(Tokenizer::load(tokenizer()).unwrap()));

fn format(chat: &Chat) -> ChatFormat {
    ChatFormat::new(chat, Arc::clone(&TOKENIZER), Path::new("")).unwrap()
}

fn chatml() -> Messages {
    Messages { template: "chatml".to_owned(), ..Messages::default() }
}

/// What is said, with the targets between marks and a sign where an end token is one.
fn marked(chat: &Chat, row: &Value) -> Result<String, String> {
    let conversation = format(chat).conversation(row.as_object().unwrap())?;
    let mut text = String::new();
    for piece in conversation.units.iter().flatten().filter(|piece| !piece.text.is_empty()) {
        text += &if piece.is_answer { format!("«{}»", piece.text) } else { piece.text.clone() };
        text += match piece.turn_end.eot {
            EndLabel::No => "",
            EndLabel::Yes => "■",
            EndLabel::IfLast => "□",
        };
    }
    Ok(text)
}

fn error(chat: &Chat, row: &Value) -> String {
    marked(chat, row).unwrap_err()
}

fn dialogue() -> Value {
    json!({ "messages": [
        { "role": "user", "content": "a", "train": true, "weight": null },
        { "role": "assistant", "content": "b", "train": false, "weight": 0 },
        { "role": "user", "content": "c" },
        { "role": "assistant", "content": "d", "weight": 1 },
    ] })
}

#[test]
fn every_turn_of_the_assistant_is_a_target_and_options_choose_others() {
    let expect = |options: Messages, expected: &str| {
        let plain = marked(&Chat::Messages(options.clone()), &dialogue()).unwrap();
        let short = plain.replace("<|im_start|>", "<").replace("<|im_end|>\n", ">").replace('\n', " ");
        assert_eq!(short, expected, "{options:?}");
    };
    expect(chatml(), "<user a><assistant «b»■><user c><assistant «d»■>");
    let train_on_inputs = true;
    expect(Messages { train_on_inputs, ..chatml() }, "<user «a»■><assistant «b»■><user «c»■><assistant «d»■>");
    let roles_to_train = vec!["human".to_owned()];
    expect(Messages { roles_to_train, ..chatml() }, "<user «a»■><assistant b><user «c»■><assistant d>");
    for (train_on_eos, expected) in [
        (TrainOnEnd::All, "<user a■><assistant «b»■><user c■><assistant «d»■>"),
        (TrainOnEnd::Last, "<user a><assistant «b»□><user c><assistant «d»□>"),
        (TrainOnEnd::None, "<user a><assistant «b»><user c><assistant «d»>"),
    ] {
        expect(Messages { train_on_eos, ..chatml() }, expected);
        expect(Messages { train_on_eot: Some(train_on_eos), ..chatml() }, expected);
    }
    let field = |name: &str| Some(name.to_owned());
    expect(
        Messages { message_field_training: field("train"), ..chatml() },
        "<user «a»■><assistant b><user c><assistant «d»■>",
    );
    expect(
        Messages { message_field_training: field("weight"), ..chatml() },
        "<user a><assistant b><user c><assistant «d»■>",
    );
    let drop_system_message = true;
    let system_prompt = field("s");
    expect(
        Messages { system_prompt: system_prompt.clone(), ..chatml() },
        "<system s><user a><assistant «b»■><user c><assistant «d»■>",
    );
    expect(
        Messages { system_prompt, drop_system_message, ..chatml() },
        "<user a><assistant «b»■><user c><assistant «d»■>",
    );
}

#[test]
fn parts_of_a_message_can_be_targets_by_themselves() {
    let options = Messages { message_field_training_detail: Some("parts".to_owned()), ..chatml() };
    let row = |parts: Value| json!({ "messages": [{ "role": "user", "content": "äbcdef", "parts": parts }] });
    let parts = json!([
        { "begin_offset": 0, "end_offset": 1, "train": true },
        { "begin_offset": 2, "end_offset": 3, "train": false },
        { "begin_offset": 5, "end_offset": 5, "train": true },
    ]);
    let text = marked(&Chat::Messages(options.clone()), &row(parts)).unwrap();
    assert!(text.contains("«äb»cde«f»■<|im_end|>"), "{text}");
    let beyond = json!([{ "begin_offset": 5, "end_offset": 6, "train": true }]);
    let message = error(&Chat::Messages(options.clone()), &row(beyond));
    assert!(message.contains("from character 5 to 6") && message.contains("6 characters"), "{message}");
    let message = error(&Chat::Messages(options), &row(json!([{ "train": true }])));
    assert!(message.contains("`begin_offset`"), "{message}");
}

#[test]
fn sharegpt_and_other_names_mean_the_same_as_messages() {
    let expected = marked(&Chat::Messages(chatml()), &dialogue()).unwrap();
    let row = json!({ "conversations": [
        { "from": "human", "value": "a" }, { "from": "gpt", "value": "b" },
        { "from": "human", "value": "c" }, { "from": "gpt", "value": "d" },
    ] });
    let sharegpt = Messages { template: "chatml".to_owned(), ..Messages::sharegpt() };
    assert_eq!(marked(&Chat::Sharegpt(sharegpt), &row).unwrap(), expected);
    let pipeline =
        Pipeline::from_toml("[[step]]\nchat = { format = \"sharegpt\", template = \"chatml\" }", "").unwrap();
    let [dlm_data::Step::Chat(chat)] = pipeline.step.as_slice() else { panic!("one step") };
    assert_eq!(marked(chat, &row).unwrap(), expected);

    let text = row["conversations"].to_string();
    assert_eq!(marked(chat, &json!({ "conversations": text })).unwrap(), expected, "JSON in a text");
}

#[test]
fn system_and_tools_may_stand_in_columns_of_their_own() {
    let template =
        "{% for message in messages %}[{{ message.role }}:{{ message.content }}]{% endfor %}{{ tools | tojson }}";
    let chat = Chat::Messages(Messages { template: template.to_owned(), ..Messages::default() });
    let row =
        |tools: Value| json!({ "messages": [{ "role": "assistant", "content": "a" }], "system": "s", "tools": tools });
    for tools in [json!([{ "name": "t" }]), json!("[{\"name\": \"t\"}]")] {
        let text = marked(&chat, &row(tools)).unwrap();
        assert_eq!(text, "[system:s][assistant:«a»■][{\"name\": \"t\"}]");
    }
    assert!(error(&chat, &row(json!("no"))).contains("`tools` is text that is no JSON"));
    assert!(error(&chat, &row(json!({}))).contains("`tools` is an object"));
}

#[test]
fn reasoning_and_calls_of_tools_are_part_of_the_turn() {
    let template = "{% for message in messages %}[{% if message.thought %}<{{ message.thought }}>{% endif %}\
                    {{ message.content or '' }}{% for call in message.tool_calls or [] %}{{ call.function.arguments.x }}\
                    {% endfor %}]{% endfor %}";
    let mut options = Messages { template: template.to_owned(), ..Messages::default() };
    options.message_property_mappings.insert("thought".to_owned(), "reasoning".to_owned());
    let row = json!({ "messages": [
        { "role": "assistant", "content": "b", "reasoning": "why" },
        { "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "{\"x\": 7}" } }] },
    ] });
    assert_eq!(marked(&Chat::Messages(options), &row).unwrap(), "[«<why>b»■][«7»■]");
}

#[test]
fn a_prompt_and_its_completion_are_two_texts_or_two_lists() {
    let chat = |train_on_inputs| {
        let template = "chatml".to_owned();
        Chat::PromptCompletion(PromptCompletion { template, train_on_inputs, ..PromptCompletion::default() })
    };
    let texts = json!({ "prompt": "a", "completion": "b" });
    assert_eq!(marked(&chat(false), &texts).unwrap(), "a«b»");
    assert_eq!(marked(&chat(true), &texts).unwrap(), "«a»«b»");
    let conversation = format(&chat(false)).conversation(texts.as_object().unwrap()).unwrap();
    assert!(conversation.begins && conversation.ends);
    let lists = json!({
        "prompt": [{ "role": "assistant", "content": "x" }, { "role": "user", "content": "a" }],
        "completion": [{ "role": "assistant", "content": "b" }],
    });
    let text = marked(&chat(false), &lists).unwrap();
    assert!(text.contains("assistant\nx<|im_end|>") && text.contains("assistant\n«b»■<|im_end|>"), "{text}");
    let mixed = json!({ "prompt": "a", "completion": [] });
    assert!(error(&chat(false), &mixed).contains("`prompt` is text and `completion` is a list"));
}

#[test]
fn special_tokens_that_rows_spell_stay_text_and_those_of_words_and_segments_are_tokens() {
    let eos = TOKENIZER.special().eos.clone().unwrap();
    let chats = [
        (Chat::Alpaca(Alpaca::default()), json!({ "instruction": eos.text, "input": eos.text, "output": eos.text }), 1),
        (
            Chat::UserDefined(UserDefined {
                prompt_format: format!("{}{{instruction}}", eos.text),
                ..UserDefined::default()
            }),
            json!({ "instruction": eos.text, "output": "b" }),
            2,
        ),
        (Chat::Messages(chatml()), json!({ "messages": [{ "role": "assistant", "content": eos.text }] }), 0),
        (Chat::PromptCompletion(PromptCompletion::default()), json!({ "prompt": eos.text, "completion": eos.text }), 1),
        (Chat::Completion(Completion::default()), json!({ "text": eos.text }), 1),
        (Chat::InputOutput(InputOutput::default()), json!({ "segments": [{ "text": eos.text, "label": true }] }), 1),
    ];
    let step = Tokenize::new(tokenizer());
    for (chat, row, count) in chats {
        let conversation = format(&chat).conversation(row.as_object().unwrap()).unwrap();
        let encoder = dlm_data::Encoder::new(Arc::clone(&TOKENIZER), &tokenizer(), &step, Some(&chat)).unwrap();
        let tokens = encoder.conversation(&conversation).unwrap();
        let found = tokens.ids.iter().filter(|id| i64::from(**id) == i64::from(eos.id)).count();
        assert_eq!(found, count, "{chat:?}");
    }
}

#[test]
fn rows_that_do_not_fit_are_told_what_is_wrong() {
    let messages = Chat::Messages(chatml());
    let said = |messages: Value| json!({ "messages": messages });
    for (row, message) in [
        (json!({}), "`messages` is missing or null"),
        (said(json!(3)), "`messages` is a number"),
        (said(json!("x")), "text that is no JSON list"),
        (said(json!([])), "there are no messages"),
        (said(json!([3])), "message 1: it is a number"),
        (said(json!([{ "content": "a" }])), "message 1: `role` is missing or null"),
        (said(json!([{ "role": 1, "content": "a" }])), "message 1: `role` is a number"),
        (said(json!([{ "role": "user" }])), "message 1: `content` is missing or null"),
        (said(json!([{ "role": "user", "content": { "a": 1 } }])), "message 1: `content` is an object"),
    ] {
        let found = error(&messages, &row);
        assert!(found.contains(message), "{found}");
    }
    let weight = Messages { message_field_training: Some("weight".to_owned()), ..chatml() };
    let row = said(json!([{ "role": "user", "content": "a", "weight": 0.5 }]));
    assert!(error(&Chat::Messages(weight), &row).contains("`weight` is `0.5`"));
    let segments = Chat::InputOutput(InputOutput::default());
    for (row, message) in [
        (json!({ "segments": [{ "text": "a" }] }), "segment 1: `label` is missing"),
        (json!({ "segments": [{ "label": true }] }), "segment 1: `text` is missing"),
        (json!({ "segments": ["a"] }), "segment 1: it is text"),
        (json!({ "segments": null }), "`segments` is missing or null"),
    ] {
        let found = error(&segments, &row);
        assert!(found.contains(message), "{found}");
    }
    let leaves_out = Messages { template: "{{ messages[0].content }}".to_owned(), ..Messages::default() };
    let found = error(&Chat::Messages(leaves_out), &dialogue());
    assert!(found.contains("leaves out message 2 (assistant)"), "{found}");
}

fn chat_pipeline(folder: &Path, chat: Chat) -> Pipeline {
    Pipeline::new()
        .relative_to(folder)
        .source("rows.jsonl")
        .chat(chat)
        .tokenize(Tokenize::new(tokenizer()))
        .pack(Pack::new(64))
        .output("prepared")
}

#[test]
fn a_template_that_fails_is_named_with_row_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let template =
        "{{ messages[0].content }}\n{% if messages | length > 1 %}\n{{ raise_exception('too many') }}{% endif %}";
    fs::write(folder.path().join("own.jinja"), template).unwrap();
    let one = json!({ "messages": [{ "role": "assistant", "content": "a" }] });
    write_jsonl(&folder.path().join("rows.jsonl"), [one, dialogue()]);
    let chat = |template: &str| Chat::Messages(Messages { template: template.to_owned(), ..Messages::default() });
    let error = prepare(&chat_pipeline(folder.path(), chat("own.jinja"))).unwrap_err();
    let DataError::Row { row: 2, message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("own.jinja") && message.contains("line 3") && message.contains("too many"), "{message}");

    let error = prepare(&chat_pipeline(folder.path(), chat("chatlm"))).unwrap_err();
    assert!(error.to_string().contains("did you mean `chatml`"), "{error}");
    let error = prepare(&chat_pipeline(folder.path(), chat("{% if %}"))).unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn a_prompt_that_leaves_no_room_for_its_answer_is_an_error_and_can_be_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let rows =
        [json!({ "prompt": "a", "completion": "b" }), json!({ "prompt": "a b c ".repeat(80), "completion": "b" })];
    write_jsonl(&folder.path().join("rows.jsonl"), rows);
    let pipeline = chat_pipeline(folder.path(), Chat::PromptCompletion(PromptCompletion::default()));
    let error = prepare(&pipeline).unwrap_err();
    let DataError::Row { row: 2, message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("no room for an answer in rows of 64"), "{message}");
    let raise = pipeline.clone().with_override("pack.overlong", "raise").unwrap();
    assert!(prepare(&raise).unwrap_err().to_string().contains("and a row has 64"));
    let report = prepare(&pipeline.with_override("pack.overlong", "drop").unwrap()).unwrap();
    assert_eq!(report.manifest.account.documents, 2);
    assert_eq!(report.manifest.train.segments, 1);
}

#[test]
fn sources_of_different_kinds_become_conversations_each_in_its_own_way() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("alpaca.jsonl"), [json!({ "instruction": "a", "output": "b" })]);
    let turns = json!([{ "from": "human", "value": "c" }, { "from": "gpt", "value": "d" }]);
    write_jsonl(&folder.path().join("sharegpt.jsonl"), [json!({ "conversations": turns })]);
    write_jsonl(&folder.path().join("text.jsonl"), [json!({ "text": "e" })]);
    let sharegpt = Messages { template: "chatml".to_owned(), ..Messages::sharegpt() };
    let text = |template: &str, default: &str| {
        format!(
            "source = [{{ path = \"alpaca.jsonl\" }}, {{ path = \"sharegpt.jsonl\", chat = {{ format = \"sharegpt\", template = \
             \"{template}\" }} }}, {{ path = \"text.jsonl\", chat = {{ format = \"completion\" }} }}]\nstep = [{default} \
             {{ tokenize = {{ tokenizer = '{}' }} }}, {{ pack = {{ sequence_len = 128, strategy = \"alone\" }} }}]\n\
             output = {{ path = \"prepared\" }}",
            tokenizer().display()
        )
    };
    let read = |text: &str| Pipeline::from_toml(text, folder.path()).unwrap();
    let pipeline = read(&text("chatml", "{ chat = { format = \"alpaca\" } },"));
    assert_eq!(pipeline.source[1].chat, Some(Chat::Sharegpt(sharegpt)));
    let report = prepare(&pipeline).unwrap();
    let inspected = dlm_data::inspect(&report.output, &dlm_data::InspectOptions::default()).unwrap();
    let targets = inspected.sides[0].samples.iter().map(|sample| {
        let spans = sample.segments.iter().flat_map(|segment| &segment.spans);
        spans.filter(|span| span.is_answer).map(|span| span.text.clone()).collect::<String>()
    });
    let targets: Vec<String> = targets.collect();
    let special = TOKENIZER.special();
    let (begin, end) = (&special.bos.as_ref().unwrap().text, &special.eos.as_ref().unwrap().text);
    assert_eq!(targets, [format!("b{end}"), "d".to_owned(), format!("{begin}e{end}")]);

    let error = prepare(&read(&text("chatml", ""))).unwrap_err();
    assert!(error.to_string().contains("`alpaca.jsonl` has no `chat`"), "{error}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f32>().prop_map(|number| json!(number)),
        "[a-z<|>{}\\[\\]# é😀]{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["user", "human", "assistant", "gpt", "system", "tool", "<|endoftext|>"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..6)
                .prop_map(|items| Value::Object(items.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known = vec![
        "role",
        "from",
        "content",
        "value",
        "text",
        "label",
        "train",
        "parts",
        "begin_offset",
        "end_offset",
        "tool_calls",
        "function",
        "arguments",
        "type",
    ];
    prop_oneof![prop::sample::select(known).prop_map(str::to_owned), "[a-z]{1,3}"]
}

/// Messages that are nearly right.
fn any_messages() -> impl Strategy<Value = Value> {
    let role = prop::sample::select(vec!["user", "assistant", "system", "gpt", "human"]);
    let content = prop_oneof![
        "[a-z<|>\\[\\]#%~ \\n é😀]{0,20}".prop_map(Value::from),
        prop::sample::select(vec!["", " ", "<|im_end|>", "<|endoftext|>x", "[[dummy_message]]", "##dummy_message##"])
            .prop_map(Value::from),
        "[a-z]{0,5}".prop_map(|text| json!([{ "type": "text", "text": text }])),
    ];
    let extra = prop::option::of((any_key(), any_json()));
    let message = (role, content, extra).prop_map(|(role, content, extra)| {
        let mut message = json!({ "role": role, "content": content, "from": role, "value": content });
        if let Some((key, value)) = extra {
            message[key] = value;
        }
        message
    });
    prop::collection::vec(message, 0..5).prop_map(Value::from)
}

fn chats() -> Vec<Chat> {
    let detailed = Messages {
        message_field_training: Some("train".to_owned()),
        message_field_training_detail: Some("parts".to_owned()),
        train_on_eos: TrainOnEnd::All,
        ..chatml()
    };
    let templates = ["alpaca", "gemma", "llama3", "mistral_v1", "phi_3"];
    let by_template = templates.map(|template| {
        let template = template.to_owned();
        Chat::Messages(Messages {
            template,
            train_on_eos: TrainOnEnd::Last,
            train_on_inputs: true,
            ..Messages::default()
        })
    });
    let others = [
        Chat::Alpaca(Alpaca { field_system: Some("system".to_owned()), ..Alpaca::default() }),
        Chat::UserDefined(UserDefined::default()),
        Chat::Messages(detailed),
        Chat::Sharegpt(Messages { template: "chatml".to_owned(), ..Messages::sharegpt() }),
        Chat::PromptCompletion(PromptCompletion { template: "chatml".to_owned(), ..PromptCompletion::default() }),
        Chat::InputOutput(InputOutput::default()),
        Chat::Completion(Completion::default()),
    ];
    others.into_iter().chain(by_template).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_row_makes_a_chat_format_panic_and_labels_are_ids(
        messages in any_messages(),
        values in prop::collection::vec(any_json(), 8),
    ) {
        let names = ["instruction", "input", "output", "system", "tools", "prompt", "completion", "text"];
        let mut row: Map<String, Value> = names.into_iter().map(str::to_owned).zip(values).collect();
        for name in ["messages", "conversations", "segments"] {
            row.insert(name.to_owned(), messages.clone());
        }
        let step = Tokenize::new(tokenizer());
        for chat in chats() {
            for row in [&row, &row.iter().filter(|(key, _)| *key != "tools" && *key != "system").map(|(k, v)| (k.clone(), v.clone())).collect()] {
                let Ok(conversation) = format(&chat).conversation(row) else { continue };
                let encoder = dlm_data::Encoder::new(Arc::clone(&TOKENIZER), &tokenizer(), &step, Some(&chat)).unwrap();
                let tokens = encoder.conversation(&conversation).unwrap();
                prop_assert_eq!(tokens.ids.len(), tokens.labels.len());
                for (id, label) in tokens.ids.iter().zip(&tokens.labels) {
                    prop_assert!(*label == *id || *label == dlm_data::IGNORE_INDEX);
                }
            }
        }
    }
}
