//! The three spellings of a pipeline: Rust, TOML, overrides; and what is said about mistakes in them.

use dlm_data::{
    Alpaca, Chat, DataError, Messages, NearDedup, Overlong, Pack, PackStrategy, Pipeline, SplitStep, Step, Tokenize,
};
use std::{fs, path::Path};

fn built() -> Pipeline {
    Pipeline::new()
        .relative_to("folder")
        .source("a.jsonl")
        .source("b/*.parquet")
        .filter("length(output) > 0")
        .filter("length(instruction) > 0")
        .select(["instruction", "upper(output) as output"])
        .dedup(["instruction"])
        .shuffle(7)
        .step(Step::Split(SplitStep { validation: 0.1, seed: 3 }))
        .chat(Chat::Alpaca(Alpaca { train_on_inputs: true, ..Alpaca::default() }))
        .tokenize(Tokenize { add_eos: Some(true), ..Tokenize::new("models/m") })
        .pack(Pack { strategy: PackStrategy::FirstFit, window: 9, overlong: Overlong::Drop, ..Pack::new(128) })
        .output("out")
}

const WRITTEN: &str = r#"
[[source]]
path = "a.jsonl"
[[source]]
path = "b/*.parquet"
[[step]]
filter = "length(output) > 0"
[[step]]
filter = "length(instruction) > 0"
[[step]]
select = ["instruction", "upper(output) as output"]
[[step]]
dedup = { on = ["instruction"] }
[[step]]
shuffle = { seed = 7 }
[[step]]
split = { validation = 0.1, seed = 3 }
[[step]]
chat = { format = "alpaca", train_on_inputs = true }
[[step]]
tokenize = { tokenizer = "models/m", add_eos = true }
[[step]]
pack = { sequence_len = 128, strategy = "first_fit", window = 9, overlong = "drop" }
[output]
path = "out"
"#;

#[test]
fn builder_toml_and_overrides_mean_the_same() {
    let written = Pipeline::from_toml(WRITTEN, "folder").unwrap();
    assert_eq!(built(), written);
    assert_eq!(Pipeline::from_toml(&written.to_toml().unwrap(), "folder").unwrap(), written);

    let other =
        WRITTEN.replace("128", "64").replace("a.jsonl", "c.jsonl").replace("\"out\"", "\"o\"").replace("> 0", "> 1");
    let changed = [
        ("pack.sequence_len", "128"),
        ("source.0.path", "a.jsonl"),
        ("output.path", "out"),
        ("filter.0", "length(output) > 0"),
        ("step.1.filter", "length(instruction) > 0"),
    ];
    let overridden = changed.iter().fold(Pipeline::from_toml(&other, "folder").unwrap(), |pipeline, (key, value)| {
        pipeline.with_override(key, value).unwrap()
    });
    assert_eq!(overridden, written);
}

#[test]
fn an_override_can_give_a_pipeline_its_output() {
    let pipeline = Pipeline::new().source("a.txt").with_override("output.path", "out").unwrap();
    assert_eq!(pipeline, Pipeline::new().source("a.txt").output("out"));
    let same = Pipeline::new().source("a.txt");
    assert_eq!(same.clone().with_override("source.path", "b.txt").unwrap(), Pipeline::new().source("b.txt"));
    assert_eq!(same.clone().with_override("source.0.path", "a.txt").unwrap(), same);
}

#[test]
fn an_override_reaches_options_within_options_and_the_mix() {
    let near = || Pipeline::new().source("a.txt").near_dedup(NearDedup::default());
    let set = NearDedup { threshold: 0.5, ..NearDedup::default() };
    for key in ["near.threshold", "dedup.near.threshold", "step.0.dedup.near.threshold"] {
        let pipeline = near().with_override(key, "0.5").unwrap();
        assert_eq!(pipeline, Pipeline::new().source("a.txt").near_dedup(set.clone()), "{key}");
    }
    let mixed = Pipeline::new().source("a.txt").with_override("mix.seed", "3").unwrap();
    assert_eq!(mixed.mix.seed, 3);
}

#[test]
fn an_override_reaches_names_in_tables_that_are_not_there_yet() {
    let pipeline = || Pipeline::new().source("a.txt").tokenize(Tokenize::new("m"));
    let special =
        Tokenize { special_tokens: [("pad_token".to_owned(), "<pad>".to_owned())].into(), ..Tokenize::new("m") };
    let with_special = Pipeline::new().source("a.txt").tokenize(special);
    for key in
        ["tokenize.special_tokens.pad_token", "special_tokens.pad_token", "step.0.tokenize.special_tokens.pad_token"]
    {
        assert_eq!(pipeline().with_override(key, "<pad>").unwrap(), with_special, "{key}");
    }
    let with_column = Pipeline::new().source(dlm_data::Source::new("a.txt").column("text", "upper(body)"));
    for key in ["source.columns.text", "source.0.columns.text", "columns.text"] {
        let changed = Pipeline::new().source("a.txt").with_override(key, "upper(body)").unwrap();
        assert_eq!(changed, with_column, "{key}");
    }
    let chat = Chat::Messages(Messages::default());
    let changed =
        Pipeline::new().chat(chat).with_override("chat.chat_template_kwargs.enable_thinking", "false").unwrap();
    let Step::Chat(Chat::Messages(messages)) = &changed.step[0] else { panic!("{changed:?}") };
    assert_eq!(messages.chat_template_kwargs["enable_thinking"], false);
    let two = pipeline().source("b.txt").with_override("source.columns.text", "x").unwrap_err();
    assert!(two.to_string().contains("`source.0.columns.text`, `source.1.columns.text`"), "{two}");
    // What is not set stays unwritten.
    assert_eq!(pipeline().with_override("tokenize.tokenizer", "m").unwrap(), pipeline());
}

#[test]
fn a_step_with_two_keys_or_none_is_told_what_a_step_is() {
    let says = |text: &str| Pipeline::from_toml(text, "").unwrap_err().to_string();
    let error = says("[[source]]\npath = \"a\"\n\n[[step]]\npack = { sequence_len = 8 }\nwindow = 9\n");
    assert!(error.contains("line 4: a `[[step]]` has the keys `pack`, `window`"), "{error}");
    assert!(error.contains("filter, select, rename, map, sql") && error.contains("shuffle, split"), "{error}");
    let error = says("[[step]]\nfilter = \"true\"\n[[step]]\n[output]\npath = \"x\"\n");
    assert!(error.contains("line 3: a `[[step]]` has no key"), "{error}");
}

#[test]
fn the_help_of_a_pipeline_lists_its_keys_and_steps() {
    let help = Pipeline::from_toml("[[sources]]\npath = \"a\"\n", "").unwrap_err().help().unwrap();
    for word in ["source", "on_error", "resources", "decontaminate", "answer_tail", "docs/pipelines.md"] {
        assert!(help.contains(word), "{help}");
    }
    assert!(!help.contains("`pipelines/`"), "{help}");
}

#[test]
fn an_ambiguous_override_lists_what_it_could_mean() {
    let error = built().with_override("filter", "true").unwrap_err();
    let DataError::AmbiguousOverride { candidates, .. } = &error else { panic!("{error}") };
    assert_eq!(candidates, &["step.0.filter", "step.1.filter"]);
    let error = built().with_override("source.path", "x").unwrap_err();
    assert!(error.to_string().contains("`source.0.path`, `source.1.path`"), "{error}");
}

#[test]
fn an_override_that_names_nothing_lists_what_there_is() {
    let error = built().with_override("pakc.sequence_len", "1").unwrap_err();
    assert!(
        matches!(&error, DataError::UnknownOverride { candidates, .. } if candidates.contains(&"step.8.pack.window".to_owned())),
        "{error}"
    );
    let error = built().with_override("pack.seq_len", "1").unwrap_err().to_string();
    assert!(error.contains("`pack.seq_len=1`") && error.contains("did you mean `sequence_len`?"), "{error}");
    let error = built().with_override("pack.sequence_len", "many").unwrap_err().to_string();
    assert!(error.contains("invalid type: string \"many\""), "{error}");
}

#[test]
fn an_unknown_name_in_a_file_is_reported_with_file_line_and_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.toml");
    let says = |text: &str| {
        fs::write(&path, text).unwrap();
        Pipeline::from_file(&path).unwrap_err().to_string()
    };
    let place = |line: usize| format!("`{}` line {line}: ", path.display());

    let error = says("[[source]]\npath = \"a\"\n[[step]]\npack = { seqence_len = 3 }\n");
    assert!(error.starts_with(&place(4)) && error.ends_with("did you mean `sequence_len`?"), "{error}");
    let error = says("[[source]]\npath = \"a\"\n\n[[step]]\nfliter = \"true\"\n");
    assert!(error.starts_with(&place(5)) && error.ends_with("did you mean `filter`?"), "{error}");
    let error = says("[[source]]\npath = \"a\"\n[[step]]\n[step.chat]\nformat = \"alpaca\"\ntrain_on_input = true\n");
    assert!(error.starts_with(&place(6)) && error.ends_with("did you mean `train_on_inputs`?"), "{error}");
    let error = says("[[source]]\npath = \"a\"\n[[step]]\nchat = { format = \"alpacca\" }\n");
    assert!(error.starts_with(&place(4)) && error.ends_with("did you mean `alpaca`?"), "{error}");
    let error = says("[[sources]]\npath = \"a\"\n");
    assert!(error.starts_with(&place(1)) && error.ends_with("did you mean `source`?"), "{error}");
    let error = says("[[source]]\npath = \"a\n");
    assert!(error.starts_with(&place(2)), "{error}");
    let error = says("[[step]]\npack = { sequence_len = \"long\" }\n");
    assert!(error.starts_with(&place(2)) && error.contains("expected usize"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Pipeline::from_file("absent/p.toml").unwrap_err();
    assert!(matches!(&error, DataError::Read { path, .. } if path == Path::new("absent/p.toml")), "{error}");
}

#[test]
fn the_pipelines_of_the_repository_are_valid_and_say_what_they_do() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    let read = |name: &str| Pipeline::from_file(folder.join(name)).unwrap();
    let names = |pipeline: &Pipeline| pipeline.step.iter().map(Step::name).collect::<Vec<_>>();
    assert!(names(&read("pretrain.toml")).ends_with(&["tokenize", "pack"]));
    let chat = |pipeline: &Pipeline| {
        pipeline.step.iter().find_map(|step| match step {
            Step::Chat(chat) => Some(chat.clone()),
            _ => None,
        })
    };
    assert_eq!(chat(&read("sft.toml")), Some(Chat::Alpaca(Alpaca::default())));
    assert!(matches!(chat(&read("chat.toml")), Some(Chat::Messages(Messages { .. }))));
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let pipeline = Pipeline::from_file(&path).unwrap();
            assert!(pipeline.output.is_some(), "{} has no output", path.display());
            assert!(fs::read_to_string(&path).unwrap().starts_with("# "), "{} says nothing", path.display());
        }
    }
}
