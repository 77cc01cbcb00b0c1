//! Axolotl files as pipelines: what they say, what they ignore, what they refuse, and the rows that come out.

mod support;

use dlm_data::{
    Alpaca, AlpacaStyle, Chat, Completion, DataError, Messages, Overlong, Pack, PackStrategy, Pipeline, Source, Step,
    Tokenize, TrainOnEnd,
    axolotl::{Translation, translate},
};
use serde_json::json;
use std::{fs, path::Path};
use support::{prepare, tokenizer, write_jsonl};

fn translated(yaml: &str) -> Translation {
    let translation = translate(yaml, "").unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let text = translation.pipeline.to_toml().unwrap();
    assert_eq!(Pipeline::from_toml(&text, "").unwrap(), translation.pipeline, "{text}");
    translation
}

fn refused(yaml: &str) -> String {
    let error = translate(yaml, "").unwrap_err();
    assert!(matches!(error, DataError::Pipeline { .. }), "{error}");
    error.to_string()
}

fn chat_of(pipeline: &Pipeline) -> Option<&Chat> {
    pipeline.step.iter().find_map(|step| match step {
        Step::Chat(chat) => Some(chat),
        _ => None,
    })
}

fn names(pipeline: &Pipeline) -> Vec<&'static str> {
    pipeline.step.iter().map(Step::name).collect()
}

fn paths(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.source.iter().map(|source| source.path.as_str()).collect()
}

const ALPACA: &str = "
base_model: HuggingFaceTB/SmolLM2-135M
datasets:
  - path: tatsu-lab/alpaca
    type: alpaca
dataset_prepared_path: data/alpaca
val_set_size: 0.05
sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true
learning_rate: 2e-4
micro_batch_size: 4
";

#[test]
fn an_alpaca_file_becomes_a_pipeline() {
    let Translation { pipeline, ignored, others } = translated(ALPACA);
    let expected = Pipeline::new()
        .source(Source::new("hf://datasets/tatsu-lab/alpaca").split("train"))
        .shuffle(42)
        .step(Step::Split(dlm_data::SplitStep { validation: 0.05, seed: 42 }))
        .chat(Chat::Alpaca(Alpaca::default()))
        .tokenize(Tokenize::new("hf://HuggingFaceTB/SmolLM2-135M"))
        .pack(Pack { overlong: Overlong::Drop, ..Pack::new(2048) })
        .output("data/alpaca");
    assert_eq!(pipeline, expected);
    assert_eq!(ignored.iter().map(|ignored| ignored.key.as_str()).collect::<Vec<_>>(), ["pad_to_sequence_len"]);
    assert_eq!(others, ["learning_rate", "micro_batch_size"]);
}

#[test]
fn a_conversation_file_keeps_everything_it_says_about_messages() {
    let translation = translated(
        "
base_model: ./model
chat_template: tokenizer_default_fallback_chatml
eot_tokens: ['<|im_end|>']
train_on_inputs: true
seed: 7
shuffle_merged_datasets: false
datasets:
  - path: data/chats.jsonl
    ds_type: json
    type: chat_template
    field_messages: turns
    message_property_mappings: {role: who, content: what}
    message_field_training: learn
    roles:
      user: [customer]
      assistant: agent
    roles_to_train: [agent]
    train_on_eos: last
    drop_system_message: true
    split: train
",
    );
    let Some(Chat::Messages(messages)) = chat_of(&translation.pipeline) else { panic!("messages") };
    let expected = Messages {
        column: "turns".to_owned(),
        template: "tokenizer|chatml".to_owned(),
        message_property_mappings: [("role", "who"), ("content", "what")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into(),
        roles: [("user", "customer"), ("assistant", "agent")].map(|(a, b)| (a.to_owned(), vec![b.to_owned()])).into(),
        roles_to_train: vec!["agent".to_owned()],
        train_on_inputs: true,
        train_on_eos: TrainOnEnd::Last,
        eot_tokens: vec!["<|im_end|>".to_owned()],
        message_field_training: Some("learn".to_owned()),
        drop_system_message: true,
        ..Messages::default()
    };
    assert_eq!(*messages, expected);
    assert_eq!(names(&translation.pipeline), ["chat", "tokenize", "pack"]);
    assert_eq!(paths(&translation.pipeline), ["data/chats.jsonl"]);
    let Some(Step::Pack(pack)) = translation.pipeline.step.last() else { panic!("pack") };
    assert_eq!((pack.sequence_len, pack.strategy), (512, PackStrategy::Alone));
}

#[test]
fn a_pretraining_file_packs_its_text_and_loses_nothing() {
    let translation = translated(
        "
base_model: model
tokenizer_config: other
special_tokens:
  eos_token: '<|end|>'
  pad_token:
pretraining_dataset:
  - path: json
    data_files: [a.jsonl, b.jsonl]
    text_column: body
    type: pretrain
sequence_len: 128
streaming: true
min_sample_len: 4
",
    );
    assert_eq!(paths(&translation.pipeline), ["a.jsonl", "b.jsonl"]);
    assert_eq!(names(&translation.pipeline), ["tokenize", "filter", "pack"]);
    let mut tokenize = Tokenize { column: "body".to_owned(), ..Tokenize::new("other") };
    tokenize.special_tokens.insert("eos_token".to_owned(), "<|end|>".to_owned());
    assert_eq!(translation.pipeline.step[0], Step::Tokenize(tokenize));
    assert_eq!(translation.pipeline.step[1], Step::Filter("array_length(input_ids) >= 4".to_owned()));
    assert_eq!(translation.pipeline.step[2], Step::Pack(Pack::new(128)));
    assert_eq!(translation.pipeline.output.unwrap().path, Path::new("last_run_prepared"));
    assert_eq!(translation.ignored[0].key, "streaming");
}

#[test]
fn datasets_of_several_types_keep_each_its_own() {
    let translation = translated(
        "
common: &common {ds_type: json, train_on_eos: all}
base_model: model
datasets:
  - path: a.jsonl
    type: alpaca:chatml
  - {path: b.jsonl, type: sharegpt, conversation: chatml, <<: *common}
  - path: c.jsonl
    type:
      field_instruction: q
      field_output: a
      format: 'Q: {instruction}'
      no_input_format: 'Q: {instruction}'
      system_prompt: null
  - path: d.jsonl
    type: completion
    field: body
excess_length_strategy: raise
dataset_exact_deduplication: true
",
    );
    let chats: Vec<&Chat> = translation.pipeline.source.iter().filter_map(|source| source.chat.as_ref()).collect();
    assert_eq!(*chats[0], Chat::Alpaca(Alpaca { style: AlpacaStyle::Chatml, ..Alpaca::default() }));
    assert!(
        matches!(chats[1], Chat::Sharegpt(messages) if messages.template == "chatml" && messages.train_on_eos == TrainOnEnd::All)
    );
    assert!(
        matches!(chats[2], Chat::UserDefined(words) if words.field_instruction == "q" && words.prompt_format == "Q: {instruction}")
    );
    assert_eq!(*chats[3], Chat::Completion(Completion { field: "body".to_owned() }));
    assert_eq!(names(&translation.pipeline), ["dedup", "shuffle", "tokenize", "pack"]);
    assert!(matches!(translation.pipeline.step.last(), Some(Step::Pack(pack)) if pack.overlong == Overlong::Raise));
    assert_eq!(translation.others, ["common"]);
}

#[test]
fn what_is_too_long_is_dropped_cut_or_refused_as_the_strategy_says() {
    for (strategy, steps, overlong) in [
        ("", &["pack"][..], Overlong::Drop),
        ("excess_length_strategy: drop", &["pack"], Overlong::Drop),
        ("excess_length_strategy: raise", &["pack"], Overlong::Raise),
        ("excess_length_strategy: truncate", &["truncate", "pack"], Overlong::Cut),
    ] {
        let yaml =
            format!("base_model: m\nsequence_len: 99\ndatasets:\n  - {{path: a.jsonl, type: alpaca}}\n{strategy}\n");
        let pipeline = translated(&yaml).pipeline;
        assert!(names(&pipeline).ends_with(steps), "{strategy}: {:?}", names(&pipeline));
        assert_eq!(names(&pipeline).contains(&"truncate"), steps.len() > 1, "{strategy}");
        assert!(matches!(pipeline.step.last(), Some(Step::Pack(pack)) if pack.overlong == overlong), "{strategy}");
        let cut = pipeline.step.iter().find_map(|step| match step {
            Step::Truncate(truncate) => Some(truncate.max_tokens),
            _ => None,
        });
        assert_eq!(cut, (steps.len() > 1).then_some(99), "{strategy}");
    }
}

#[test]
fn keys_about_length_and_packing_that_nothing_comes_of_are_listed_as_ignored() {
    let ignored = |rest: &str| -> Vec<String> {
        let yaml = format!("base_model: m\ndatasets:\n  - {{path: a.jsonl, type: completion}}\n{rest}\n");
        translated(&yaml).ignored.into_iter().map(|ignored| ignored.key).collect()
    };
    assert_eq!(ignored("excess_length_strategy: raise"), ["excess_length_strategy"]);
    assert_eq!(ignored("sample_packing_sequentially: true"), ["sample_packing_sequentially"]);
    assert!(ignored("sample_packing_sequentially: true\nsample_packing: true").is_empty());
    assert!(ignored("sample_packing_sequentially: false").is_empty());
}

#[test]
fn a_template_of_ones_own_is_meant_where_it_is_given() {
    for yaml in [
        "chat_template_jinja: '{{ messages }}'\ndatasets:\n  - {path: a.jsonl, type: chat_template}\n",
        "datasets:\n  - {path: a.jsonl, type: chat_template, chat_template_jinja: '{{ messages }}'}\n",
    ] {
        let pipeline = translated(&format!("base_model: m\n{yaml}")).pipeline;
        let template = pipeline.step.iter().find_map(|step| match step {
            Step::Chat(Chat::Messages(messages)) => Some(messages.template.as_str()),
            _ => None,
        });
        assert_eq!(template, Some("{{ messages }}"), "{yaml}");
    }
}

#[test]
fn a_dataset_on_the_hub_is_told_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("owner/local")).unwrap();
    let path_of = |block: &str| {
        let yaml = format!("base_model: m\ndatasets:\n  - {{type: alpaca, {block}}}\n");
        let pipeline = translate(&yaml, folder.path()).unwrap_or_else(|error| panic!("{error}")).pipeline;
        let place = |source: &Source| {
            let split = source.split.as_ref().map(|split| format!(":{split}")).unwrap_or_default();
            format!("{}{split}", source.path)
        };
        pipeline.source.iter().map(place).collect::<Vec<_>>().join(" ")
    };
    for (block, path) in [
        ("path: owner/name", "hf://datasets/owner/name:train"),
        ("path: owner/name, revision: v1, name: en", "hf://datasets/owner/name@v1/en:train"),
        ("path: owner/name, split: test", "hf://datasets/owner/name:test"),
        (
            "path: owner/name, data_files: [a.jsonl, b/c.jsonl]",
            "hf://datasets/owner/name/a.jsonl hf://datasets/owner/name/b/c.jsonl",
        ),
        ("path: owner/local", "owner/local:train"),
        ("path: owner/local, split: validation", "owner/local:validation"),
        ("path: s3://bucket/folder", "s3://bucket/folder:train"),
        ("path: s3://bucket/x.jsonl", "s3://bucket/x.jsonl"),
        ("path: 's3://bucket/*.jsonl'", "s3://bucket/*.jsonl"),
        ("path: 's3://bucket/*.jsonl', split: test", "s3://bucket/*.jsonl:test"),
        ("path: owner/local, data_files: a.jsonl", "owner/local/a.jsonl"),
        ("path: ./data/x.jsonl", "./data/x.jsonl"),
        ("path: gcs://bucket/x.jsonl", "gs://bucket/x.jsonl"),
        ("path: json, data_files: x.jsonl", "x.jsonl"),
        ("path: x.jsonl, split: train", "x.jsonl"),
    ] {
        assert_eq!(path_of(block), path, "{block}");
    }
}

#[test]
fn a_system_message_that_no_dataset_takes_is_listed_as_without_effect() {
    let listed = |blocks: &str| {
        let yaml = format!("base_model: m\ndefault_system_message: Be brief.\ndatasets:\n{blocks}");
        let translation = translated(&yaml);
        translation.ignored.iter().any(|key| key.key == "default_system_message")
    };
    assert!(listed("  - path: a.jsonl\n    type: alpaca\n"));
    assert!(listed("  - path: a.jsonl\n    type: completion\n"));
    assert!(!listed("  - path: a.jsonl\n    type: chat_template\n"));
    assert!(!listed("  - path: a.jsonl\n    type: alpaca\n  - path: b.jsonl\n    type: sharegpt\n"));
}

#[test]
fn what_has_no_equivalent_and_what_is_misspelt_is_refused_with_advice() {
    let with = |block: &str, rest: &str| format!("base_model: m\ndatasets:\n  - path: a.jsonl\n{block}{rest}");
    for (yaml, message) in [
        ("datasets: [".to_owned(), "it is no YAML"),
        ("base_model: m".to_owned(), "no `datasets`"),
        ("datasets:\n  - path: a\n    type: alpaca".to_owned(), "`base_model` is not set"),
        (with("", ""), "`datasets.type` is not set"),
        (with("    type: alpaka\n", ""), "did you mean `alpaca`"),
        (with("    type: chat_template\n    chat_template: chatlm\n", ""), "did you mean `chatml`"),
        (with("    type: chat_template\n    chat_template: jinja\n", ""), "no `chat_template_jinja`"),
        (with("    type: chat_template\n    field_mesages: x\n", ""), "did you mean `field_messages`"),
        (with("    type: chat_template\n    train_on_eos: never\n", ""), "`train_on_eos`: unknown variant `never`"),
        (with("    type: {field_instruktion: q}\n", ""), "unknown field `field_instruktion`"),
        (with("    type: alpaca\n    shards: 4\n", ""), "`datasets.shards`: take a share"),
        (
            with("    type: alpaca\n    split: test\n", ""),
            "`split` is `test`, and a file is of the split `train` alone",
        ),
        (with("    type: alpaca\n    split: 'train[10%:]'\n", ""), "such as `train[:1000]`"),
        (with("    type: alpaca\n", "val_set_size: 500\n"), "`val_set_size` is 500, a number of rows"),
        (with("    type: alpaca\n", "excess_length_strategy: keep\n"), "`excess_length_strategy` is `keep`"),
        (with("    type: completion\n", "excess_length_strategy: rase\n"), "`excess_length_strategy` is `rase`"),
        (with("    type: alpaca\n", "val_set_size: -0.1\n"), "`val_set_size` is -0.1"),
        (with("    type: alpaca\n", "sequence_len: long\n"), "`sequence_len` is text, and has to be a whole number"),
        (with("    type: alpaca\n", "pretraining_dataset: x\n"), "keep one of them"),
    ] {
        let found = refused(&yaml);
        assert!(found.contains(message), "{found}");
    }
}

#[test]
fn a_file_with_several_datasets_gives_the_rows_it_describes() {
    let folder = tempfile::tempdir().unwrap();
    write_jsonl(&folder.path().join("alpaca.jsonl"), [json!({ "instruction": "i1", "input": "i2", "output": "o1" })]);
    let turns = json!([{ "from": "human", "value": "h1" }, { "from": "gpt", "value": "g1" }]);
    write_jsonl(&folder.path().join("chats.jsonl"), [json!({ "conversations": turns })]);
    let yaml = format!(
        "
base_model: {}
chat_template: llama3
eot_tokens: ['<|eot_id|>']
datasets:
  - path: alpaca.jsonl
    type: alpaca
  - path: chats.jsonl
    type: chat_template
    field_messages: conversations
    message_field_role: from
    message_field_content: value
sequence_len: 256
shuffle_merged_datasets: false
dataset_prepared_path: prepared
",
        tokenizer().display()
    );
    let pipeline = translate(&yaml, folder.path()).unwrap().pipeline;
    let report = prepare(&pipeline).unwrap();
    let inspected = dlm_data::inspect(&report.output, &dlm_data::InspectOptions::default()).unwrap();
    let texts: Vec<String> = inspected.sides[0]
        .samples
        .iter()
        .map(|sample| {
            let spans = sample.segments.iter().flat_map(|segment| &segment.spans);
            spans.map(|span| if span.is_answer { format!("«{}»", span.text) } else { span.text.clone() }).collect()
        })
        .collect();
    assert!(
        texts[0].ends_with("### Instruction:\ni1\n\n### Input:\ni2\n\n### Response:\n«o1<|end_of_text|>»"),
        "{}",
        texts[0]
    );
    assert!(
        texts[1].ends_with("\n\nh1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«g1<|eot_id|>»"),
        "{}",
        texts[1]
    );
    assert_eq!(texts.len(), 2);
}
