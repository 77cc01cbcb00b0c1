//! What is said of messages and rows that are not as options expect them: errors, counted warnings, rows that are left out.

mod support;

use dlm_data::{
    Chat, Completion, DataError, Messages, OnError, Pack, Pipeline, PrepareReport, PromptCompletion, QUARANTINE,
    Source, Tokenize,
};
use serde_json::{Value, json};
use std::{fs, path::Path};
use support::{prepare, tokenizer, tree, write_jsonl};

/// A template whose answers end in the tokenizer's end token.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}{{ eos_token }}{% endfor %}";

fn options() -> Messages {
    Messages { template: TEMPLATE.to_owned(), ..Messages::default() }
}

fn pipeline(folder: &Path, source: Source, chat: Chat) -> Pipeline {
    let pipeline = Pipeline::new().relative_to(folder).source(source).chat(chat).tokenize(Tokenize::new(tokenizer()));
    pipeline.pack(Pack::new(64)).output("prepared")
}

fn talk(more: &Value) -> Value {
    let mut answer = json!({ "role": "assistant", "content": "b" });
    answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!([{ "role": "user", "content": "a" }, answer])
}

/// Prepares rows whose messages are these, and forgets the folder.
fn prepared(messages: impl IntoIterator<Item = Value>, options: Messages) -> Result<PrepareReport, DataError> {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        messages.into_iter().map(|messages| json!({ "messages": messages })),
    );
    let pipeline = pipeline(folder.path(), Source::new("rows.jsonl"), Chat::Messages(options));
    let report = prepare(&pipeline)?;
    // What was there already is warned of in the same words.
    assert_eq!(prepare(&pipeline).unwrap().warnings, report.warnings);
    Ok(report)
}

fn one_warning(report: PrepareReport) -> String {
    let [warning] = <[String; 1]>::try_from(report.warnings).unwrap();
    warning
}

#[test]
fn a_role_to_train_that_no_message_has_is_warned_of_by_name() {
    let training = |roles: &[&str]| {
        let roles_to_train = roles.iter().map(|role| (*role).to_owned()).collect();
        prepared([talk(&json!({}))], Messages { roles_to_train, ..options() }).unwrap()
    };
    let report = training(&["assistant", "asistant"]);
    assert_eq!(report.manifest.account.unseen, ["role `asistant` of `roles_to_train`"]);
    let warning = one_warning(report);
    assert!(warning.contains("no message has the role `asistant` of `roles_to_train`"), "{warning}");
    // Names of the data count for the template's, and those that are there are no reason to warn.
    assert!(training(&["gpt", "user"]).warnings.is_empty());
}

#[test]
fn a_field_that_no_message_has_is_an_error_that_names_it_and_those_there_are() {
    let trains = |name: &str| Messages { message_field_training: Some(name.to_owned()), ..options() };
    let details = Messages { message_field_training_detail: Some("parts".to_owned()), ..options() };
    let mut mapped = options();
    mapped.message_property_mappings.insert("reasoning_content".to_owned(), "thinkng".to_owned());
    for (options, option, name) in [
        (trains("trian"), "message_field_training", "trian"),
        (details, "message_field_training_detail", "parts"),
        (mapped, "message_property_mappings", "thinkng"),
    ] {
        let error = prepared([talk(&json!({ "train": true, "thinking": "x" }))], options).unwrap_err();
        let DataError::UnknownField { option: found, field, fields, .. } = &error else { panic!("{error}") };
        assert_eq!((*found, field.as_str()), (option, name));
        assert_eq!(fields, &["role", "content", "train", "thinking"]);
    }
    assert!(prepared([talk(&json!({ "train": true }))], trains("train")).unwrap().manifest.account.unseen.is_empty());
}

#[test]
fn a_field_that_no_message_in_json_has_is_warned_of_by_name() {
    let text = |more: Value| Value::String(talk(&more).to_string());
    let mut mapped = Messages { message_field_training: Some("trian".to_owned()), ..options() };
    mapped.message_property_mappings.insert("thought".to_owned(), "thinkng".to_owned());
    let report = prepared([text(json!({})), text(json!({}))], mapped.clone()).unwrap();
    let expected = ["field `thinkng` of `message_property_mappings`", "field `trian` of `message_field_training`"];
    assert_eq!(report.manifest.account.unseen, expected);
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    // One message is enough.
    let report = prepared([text(json!({})), text(json!({ "trian": true, "thinkng": "x" }))], mapped).unwrap();
    assert_eq!(report.manifest.account.unseen, [""; 0]);
}

#[test]
fn fields_that_the_template_leaves_out_are_counted_and_warned_of() {
    let calls = json!({ "tool_calls": [{ "function": { "name": "f", "arguments": "{}" } }], "id": 7 });
    let rows = || [talk(&calls), talk(&json!({})), talk(&calls)];
    let report = prepared(rows(), options()).unwrap();
    let ignored = &report.manifest.account.ignored_fields;
    assert_eq!(serde_json::to_value(ignored).unwrap(), json!({ "tool_calls": 2, "id": 2 }));
    let warning = one_warning(report);
    assert!(warning.contains("`id` (2 messages), `tool_calls` (2 messages)"), "{warning}");

    let knows = TEMPLATE.replace("{{ eos_token }}", "{{ m.tool_calls }}{{ m.id }}{{ eos_token }}");
    let report = prepared(rows(), Messages { template: knows, ..options() }).unwrap();
    assert!(report.warnings.is_empty() && report.manifest.account.ignored_fields.is_empty(), "{:?}", report.warnings);
}

#[test]
fn tools_that_the_template_leaves_out_are_counted_and_so_are_fields_in_prompts_and_completions() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(
        &folder.path().join("rows.jsonl"),
        [
            json!({ "messages": talk(&json!({})), "tools": [{ "name": "t" }] }),
            json!({ "messages": talk(&json!({})), "tools": [] }),
        ],
    );
    let report = prepare(&pipeline(folder.path(), Source::new("rows.jsonl"), Chat::Messages(options()))).unwrap();
    assert_eq!(report.manifest.account.ignored_fields.get("tools"), Some(&1));

    let folder = tempfile::tempdir().unwrap();
    let (prompt, completion) =
        (json!([{ "role": "user", "content": "a", "name": "n" }]), talk(&json!({ "name": "m" })));
    write_jsonl(&folder.path().join("rows.jsonl"), [json!({ "prompt": prompt, "completion": completion })]);
    let chat = PromptCompletion { template: TEMPLATE.to_owned(), ..PromptCompletion::default() };
    let report = prepare(&pipeline(folder.path(), Source::new("rows.jsonl"), Chat::PromptCompletion(chat))).unwrap();
    assert_eq!(report.manifest.account.ignored_fields.get("name"), Some(&2));
}

#[test]
fn a_row_that_a_template_or_the_tokenizer_refuses_is_left_out_and_listed_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let template =
        format!("{{% if messages[0].content == 'no' %}}{{{{ raise_exception('never') }}}}{{% endif %}}{TEMPLATE}");
    let refused = json!([{ "role": "user", "content": "no" }, { "role": "assistant", "content": "b" }]);
    let rows =
        [talk(&json!({})), refused, json!([{ "role": "user", "content": 3 }]).to_string().into(), talk(&json!({}))];
    let rows = rows.into_iter().map(|messages| json!({ "messages": messages.to_string() }));
    write_jsonl(&folder.path().join("rows.jsonl"), rows);
    let chat = Chat::Messages(Messages { template, ..options() });
    let error = prepare(&pipeline(folder.path(), Source::new("rows.jsonl"), chat.clone())).unwrap_err();
    assert!(matches!(&error, DataError::Row { row: 2, message, .. } if message.contains("never")), "{error}");

    for shuffled in [false, true] {
        let mut skipping = pipeline(folder.path(), Source::new("rows.jsonl").on_error(OnError::Skip), chat.clone());
        if shuffled {
            // Made into conversations before rows are numbered, and after.
            skipping.step.insert(1, dlm_data::Step::Shuffle(dlm_data::Shuffle { seed: 1 }));
        }
        let report = prepare(&skipping).unwrap();
        let account = &report.manifest.account;
        assert_eq!((account.rows, account.documents, report.manifest.sources[0].quarantined), (4, 2, 2));
        let list = fs::read_to_string(report.output.join(QUARANTINE)).unwrap();
        let entries: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(entries.iter().map(|entry| entry["row"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
        assert!(entries[0]["reason"].as_str().unwrap().contains("never"), "{list}");
        assert!(dlm_data::validate(&report.output).unwrap().is_sound());
        fs::remove_dir_all(report.output).unwrap();
    }
}

#[test]
fn a_text_that_is_null_is_left_out_where_that_is_asked_for_and_the_others_keep_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let row = |text: Value| json!({ "text": text });
    write_jsonl(&folder.path().join("holes.jsonl"), [row(json!("a")), row(json!(null)), row(json!("c"))]);
    write_jsonl(&folder.path().join("whole.jsonl"), [row(json!("a")), row(json!("c"))]);
    let from = |source: Source, output: &str| {
        let pipeline = Pipeline::new().relative_to(folder.path()).source(source).tokenize(Tokenize::new(tokenizer()));
        prepare(&pipeline.pack(Pack::new(16)).output(output)).unwrap()
    };
    let (holes, whole) =
        (from(Source::new("holes.jsonl").on_error(OnError::Skip), "a"), from("whole.jsonl".into(), "b"));
    assert_eq!((holes.manifest.account.documents, holes.manifest.sources[0].quarantined), (2, 1));
    let ids = |report: &PrepareReport| support::rows(&report.output, dlm_data::Split::Train)[0].input_ids.clone();
    assert_eq!(ids(&holes), ids(&whole));
    assert!(tree(&holes.output).contains_key(Path::new(QUARANTINE)));
}

#[test]
fn rows_of_a_source_that_does_not_skip_still_stop_the_preparation() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("a.jsonl"), [json!({ "text": "a" })]);
    write_jsonl(&folder.path().join("b.jsonl"), [json!({ "text": null })]);
    let skipping = pipeline(
        folder.path(),
        Source::new("a.jsonl").on_error(OnError::Skip),
        Chat::Completion(Completion::default()),
    );
    let error = prepare(&skipping.source("b.jsonl")).unwrap_err();
    assert!(matches!(&error, DataError::Row { path, row: 1, .. } if path.ends_with("b.jsonl")), "{error}");
}

#[test]
fn a_split_that_sets_nothing_aside_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("rows.jsonl"), support::texts(5));
    let with = |validation: f64, output: &str| {
        let pipeline = Pipeline::new().relative_to(folder.path()).source("rows.jsonl").split(validation);
        let pipeline = pipeline.tokenize(Tokenize::new(tokenizer())).pack(Pack::new(64)).output(output);
        prepare(&pipeline).unwrap().warnings
    };
    let [warning] = <[String; 1]>::try_from(with(1e-9, "none")).unwrap();
    assert!(warning.contains("none of 5 documents on the validation side"), "{warning}");
    let [warning] = <[String; 1]>::try_from(with(1.0 - 1e-9, "all")).unwrap();
    assert!(warning.contains("none of 5 documents on the train side"), "{warning}");
    assert!(with(0.5, "some").is_empty());
}
