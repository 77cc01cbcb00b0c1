//! One dataset of an Axolotl file: where its rows are, and how they become conversations.

use super::{IgnoredKey, Keys, Shared, on_hub};
use crate::{
    chat_options::{Alpaca, AlpacaStyle, Chat, Completion, InputOutput, Messages, TrainOnEnd, UserDefined},
    error::{DataError, Result},
    source::{FileFormat, is_pattern},
    suggest::nearest,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// A dataset, translated.
pub(crate) struct Dataset {
    /// Its sources as a pipeline writes them.
    pub(crate) sources: Vec<Map<String, Value>>,
    pub(crate) chat: Chat,
    pub(crate) ignored: Vec<IgnoredKey>,
}

const IGNORED: &[(&str, &[&str])] = &[
    ("a preparation streams, and uses all cores and the memory it is given", &["preprocess_shards", "streaming"]),
    ("no code of datasets is run", &["trust_remote_code"]),
    ("it serves distillation", &["logprobs_field", "temperature"]),
];

const REFUSED: &[(&str, &str)] = &[
    ("shards", "take a share of the rows with the step `sample` or `limit` of a pipeline"),
    ("shards_idx", "take a share of the rows with the step `sample` or `limit` of a pipeline"),
    ("skip", "leave rows out with the step `filter` of a pipeline"),
    ("split_thinking", "keep reasoning in a property of the message of its own, and name it in `field_thinking`"),
    ("input_format", "write `type` as a mapping with `format` and `no_input_format`"),
    ("input_transform", "rename columns with the step `select` of a pipeline"),
];

const KEYS: &[&str] = &[
    "chat_template",
    "chat_template_jinja",
    "conversation",
    "data_files",
    "drop_system_message",
    "ds_type",
    "field",
    "field_human",
    "field_messages",
    "field_model",
    "field_system",
    "field_thinking",
    "field_tools",
    "message_field_content",
    "message_field_role",
    "message_field_training",
    "message_field_training_detail",
    "message_property_mappings",
    "name",
    "path",
    "revision",
    "roles",
    "roles_to_train",
    "split",
    "template_thinking_key",
    "text_column",
    "train_on_eos",
    "train_on_eot",
    "type",
];

/// The split that is trained on where none is named.
const TRAIN: &str = "train";

/// Kinds of files that may stand in the place of a path.
const BUILDERS: [&str; 5] = ["json", "csv", "parquet", "arrow", "text"];

impl Dataset {
    /// Reads a block of `datasets` or `pretraining_dataset`.
    pub(crate) fn read(place: &str, block: Value, shared: &Shared) -> Result<Self> {
        let block = match block {
            Value::Object(block) => block,
            Value::String(path) => json!({ "path": path }).as_object().cloned().unwrap_or_default(),
            _ => return Err(DataError::pipeline(format!("a block of `{place}` has to be a mapping with `path`"))),
        };
        let mut keys = Keys::new(place, block);
        let ignored = keys.take_ignored(IGNORED);
        keys.refuse(REFUSED)?;
        let sources = sources(&mut keys, shared)?;
        let chat = match keys.value("type") {
            None if place == "pretraining_dataset" => pretraining(&mut keys)?,
            None => return Err(keys.wrong(&format!("`{place}.type` is not set: it says how rows become text"))),
            Some(Value::Object(words)) => user_defined(&mut keys, words, shared)?,
            Some(Value::String(name)) => named(&mut keys, &name, shared)?,
            Some(_) => return Err(keys.wrong(&format!("`{place}.type` has to be a name or a mapping"))),
        };
        let known: Vec<&str> = KEYS.iter().chain(IGNORED.iter().flat_map(|(_, keys)| *keys)).copied().collect();
        keys.finish(&known)?;
        Ok(Self { sources, chat, ignored })
    }
}

/// Where the rows are.
fn sources(keys: &mut Keys, shared: &Shared) -> Result<Vec<Map<String, Value>>> {
    let path = keys.text("path")?.ok_or_else(|| keys.wrong("a dataset has no `path`"))?;
    let kind = keys.text("ds_type")?;
    let files = keys.texts("data_files")?;
    let (revision, config, split) = (keys.text("revision")?, keys.text("name")?, keys.text("split")?);
    let (split, limit) = match split {
        None => (None, None),
        Some(split) => split_and_limit(keys, &split)?,
    };
    let hub = on_hub(&shared.base, &path).filter(|_| !path.contains("://"));
    let is_builder = BUILDERS.contains(&path.as_str()) && files.is_some();
    let root = match hub {
        Some(name) => {
            let revision = revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
            format!("hf://datasets/{name}{revision}")
        }
        None if is_builder => String::new(),
        None => path.replacen("gcs://", "gs://", 1),
    };
    if hub.is_none() && revision.is_some() {
        return Err(keys.wrong("`revision` is of datasets on the hub, and the path is none"));
    }
    let root = match config {
        Some(config) if root.is_empty() => config,
        Some(config) => format!("{root}/{config}"),
        None => root,
    };
    let (paths, split) = match files {
        Some(files) => {
            expect_train(keys, split.as_deref(), "`data_files` are")?;
            if let Some(limit) = limit.filter(|_| files.len() > 1) {
                return Err(keys.wrong(&format!(
                    "`split` asks for the first {limit} rows of several `data_files` together: use the step `limit` of a pipeline, \
                     or make them a dataset each"
                )));
            }
            (if is_builder { files } else { within(keys, shared, &root, files)? }, None)
        }
        None => {
            let split = split_of(keys, shared, &root, split)?;
            (vec![root], split)
        }
    };
    let kind = kind.or(is_builder.then_some(path));
    let source = |path: String| {
        let mut source = Map::new();
        // A name that says what it holds needs no format.
        let says_so = |kind: &str| {
            path.rsplit_once('.').is_some_and(|(_, end)| end == kind || (kind == "json" && end == "jsonl"))
        };
        let format = kind.as_ref().filter(|kind| !says_so(kind)).cloned();
        source.insert("path".to_owned(), path.clone().into());
        source.extend(format.map(|format| ("format".to_owned(), format.into())));
        source.extend(split.clone().map(|split| ("split".to_owned(), split.into())));
        source.extend(limit.map(|limit| ("limit".to_owned(), limit.into())));
        source
    };
    Ok(paths.into_iter().map(source).collect())
}

/// The places of `data_files` below the path of their dataset.
fn within(keys: &Keys, shared: &Shared, root: &str, files: Vec<String>) -> Result<Vec<String>> {
    let is_remote = |path: &str| path.contains("://");
    if !is_remote(root) && !shared.base.join(root).is_dir() {
        return Err(keys.wrong(&format!(
            "`path` is `{root}`, and there is no such folder for its `data_files` to be in: name the folder, or write \
             `path: json` (or `csv`, `parquet`, `arrow`, `text`) where the files are named in full"
        )));
    }
    let root = root.trim_end_matches('/');
    let place = |file: String| if is_remote(&file) || file.starts_with('/') { file } else { format!("{root}/{file}") };
    Ok(files.into_iter().map(place).collect())
}

/// The split whose files are read, where there is more than one file: of a whole dataset Axolotl takes `train`.
fn split_of(keys: &Keys, shared: &Shared, root: &str, split: Option<String>) -> Result<Option<String>> {
    let here = shared.base.join(root);
    if is_pattern(root) && !here.exists() {
        return Ok(split);
    }
    let is_file = here.is_file() || !here.is_dir() && FileFormat::of(Path::new(root)).is_some();
    if is_file || root.starts_with("http") {
        expect_train(keys, split.as_deref(), "a file is")?;
        return Ok(None);
    }
    Ok(Some(split.unwrap_or_else(|| TRAIN.to_owned())))
}

/// What is named file by file is of the split `train`, whatever the names say, as `datasets` has it.
fn expect_train(keys: &Keys, split: Option<&str>, what: &str) -> Result<()> {
    match split {
        Some(split) if split != TRAIN => {
            Err(keys.wrong(&format!("`split` is `{split}`, and {what} of the split `train` alone: leave `split` out")))
        }
        _ => Ok(()),
    }
}

/// `train[:100]` as the split and the number of rows.
fn split_and_limit(keys: &Keys, split: &str) -> Result<(Option<String>, Option<u64>)> {
    let Some((name, slice)) = split.split_once('[') else { return Ok((Some(split.to_owned()), None)) };
    let limit = slice.strip_suffix(']').and_then(|slice| slice.strip_prefix(':')).and_then(|end| end.parse().ok());
    let limit = limit.filter(|limit| *limit > 0);
    limit.map(|limit| (Some(name.to_owned()), Some(limit))).ok_or_else(|| {
        keys.wrong(&format!(
            "`split` is `{split}`: of slices only a number of first rows is known, such as `{name}[:1000]`"
        ))
    })
}

/// Text to train on whole.
fn pretraining(keys: &mut Keys) -> Result<Chat> {
    let column = keys.text("text_column")?.or(keys.text("field")?);
    Ok(Chat::Completion(column.map_or_else(Completion::default, |field| Completion { field })))
}

/// A `type` by name.
fn named(keys: &mut Keys, name: &str, shared: &Shared) -> Result<Chat> {
    match name {
        "completion" | "pretrain" => pretraining(keys),
        "chat_template" | "chat_template.default" => {
            Ok(Chat::Messages(messages(keys, Messages::default(), shared)?))
        }
        "sharegpt" => Ok(Chat::Sharegpt(messages(keys, Messages::sharegpt(), shared)?)),
        "input_output" => {
            Ok(Chat::InputOutput(InputOutput { train_on_inputs: shared.train_on_inputs, ..InputOutput::default() }))
        }
        _ => wording(name, shared.train_on_inputs).ok_or_else(|| DataError::Pipeline {
            path: None,
            line: None,
            message: format!(
                "there is no `type` `{name}`: write it as a mapping with `field_instruction`, `field_output`, `format`, \
                 `no_input_format`"
            ),
            nearest: nearest(name, TYPES.iter().copied()).map(str::to_owned),
        }),
    }
}

const TYPES: &[&str] = &[
    "alpaca",
    "alpaca:chat",
    "alpaca:chatml",
    "alpaca:phi",
    "alpaca_chat.load_qa",
    "alpaca_instruct.load_no_prompt",
    "alpaca_w_system.load",
    "alpaca_w_system.load_chat",
    "alpaca_w_system.load_open_orca",
    "chat_template",
    "completion",
    "gpteacher",
    "input_output",
    "jeopardy",
    "oasst",
    "pretrain",
    "sharegpt",
    "summarizetldr",
];

/// The types that put columns into words.
fn wording(name: &str, train_on_inputs: bool) -> Option<Chat> {
    let (family, style) = name.split_once(':').map_or((name, None), |(family, style)| (family, Some(style)));
    let style = match style {
        None | Some("instruct") => AlpacaStyle::Instruct,
        Some("chat") => AlpacaStyle::Chat,
        Some("chatml") => AlpacaStyle::Chatml,
        Some("phi") => AlpacaStyle::Phi,
        Some(_) => return None,
    };
    let is_styled = family != name;
    let own = |text: &str| text.to_owned();
    let alpaca = |options: Alpaca| Some(Chat::Alpaca(Alpaca { train_on_inputs, ..options }));
    let fields = |style, instruction: &str, input: &str, output: &str| {
        let (field_instruction, field_input, field_output) = (own(instruction), own(input), own(output));
        alpaca(Alpaca { style, field_instruction, field_input, field_output, ..Alpaca::default() })
    };
    let defined = |options: UserDefined| Some(Chat::UserDefined(UserDefined { train_on_inputs, ..options }));
    let with_system = |style| alpaca(Alpaca { style, field_system: Some(own("system")), ..Alpaca::default() });
    match family {
        "alpaca" | "alpaca.load" | "alpaca_instruct" | "alpaca_instruct.load" => {
            alpaca(Alpaca { style, ..Alpaca::default() })
        }
        "gpteacher" => fields(style, "instruction", "input", "response"),
        "oasst" => fields(style, "INSTRUCTION", "", "RESPONSE"),
        _ if is_styled => None,
        "alpaca_chat" | "alpaca_chat.load" => alpaca(Alpaca { style: AlpacaStyle::Chat, ..Alpaca::default() }),
        "alpaca_chat.load_qa" => fields(AlpacaStyle::Chat, "question", "", "answer"),
        "alpaca_instruct.load_qa" => fields(AlpacaStyle::Instruct, "question", "", "answer"),
        "alpaca_instruct.load_no_prompt" => alpaca(Alpaca { system_prompt: Some(String::new()), ..Alpaca::default() }),
        "alpaca_w_system" | "alpaca_w_system.load" => with_system(AlpacaStyle::Instruct),
        "alpaca_w_system.load_chat" => with_system(AlpacaStyle::Chat),
        "alpaca_w_system.load_open_orca" => defined(UserDefined {
            system_format: own("### System:\n{system}\n"),
            prompt_format: own("### Human:\n{instruction}\n### Assistant:\n"),
            field_system: own("system_prompt"),
            field_instruction: own("question"),
            field_input: String::new(),
            field_output: own("response"),
            ..UserDefined::default()
        }),
        "summarizetldr" => defined(UserDefined {
            prompt_format: own("USER: Summarize the following article as a TL;DR.\n{instruction}\nASSISTANT:"),
            field_system: String::new(),
            field_instruction: own("article"),
            field_input: String::new(),
            field_output: own("summary"),
            ..UserDefined::default()
        }),
        "jeopardy" => defined(UserDefined {
            prompt_format: own(concat!(
                "Below is an instruction that describes a task, paired with an input that provides further context. ",
                "Write a response that appropriately completes the request.\n\n",
                "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
            )),
            output_format: own("what is {output}"),
            field_system: String::new(),
            field_instruction: own("question"),
            field_input: own("category"),
            field_output: own("answer"),
            ..UserDefined::default()
        }),
        _ => None,
    }
}

/// A `type` in words of its own.
fn user_defined(keys: &mut Keys, mut words: Map<String, Value>, shared: &Shared) -> Result<Chat> {
    words.retain(|_, value| !value.is_null());
    if let (Some(Value::String(field)), true) = (words.get("field"), words.len() == 1) {
        return Ok(Chat::Completion(Completion { field: field.clone() }));
    }
    if let Some(format) = words.shift_remove("format") {
        words.insert("prompt_format".to_owned(), format);
    }
    words.entry("train_on_inputs").or_insert(shared.train_on_inputs.into());
    Ok(Chat::UserDefined(read(keys, "type", Value::Object(words))?))
}

/// Messages with everything that a dataset says about them.
fn messages(keys: &mut Keys, defaults: Messages, shared: &Shared) -> Result<Messages> {
    let own = (keys.text("chat_template")?, keys.text("chat_template_jinja")?);
    let conversation = keys.text("conversation")?;
    // As Axolotl has it: a template without a word about it is meant.
    let template = own.0.or(conversation).or_else(|| own.1.as_ref().map(|_| "jinja".to_owned()));
    let template = template.or_else(|| shared.template.clone());
    let jinja = own.1.or_else(|| shared.jinja.clone());
    let template = template.map_or(Ok(defaults.template), |name| template_of(keys, &name, jinja))?;

    let mut mappings = defaults.message_property_mappings;
    let renamed = [("role", "message_field_role"), ("content", "message_field_content")];
    for (property, key) in renamed {
        mappings.extend(keys.text(key)?.map(|name| (property.to_owned(), name)));
    }
    if let Some(given) = keys.value("message_property_mappings") {
        mappings.extend(read::<BTreeMap<String, String>>(keys, "message_property_mappings", given)?);
    }
    let thinking = keys.text("template_thinking_key")?.unwrap_or_else(|| "reasoning_content".to_owned());
    mappings.extend(keys.text("field_thinking")?.map(|name| (thinking, name)));

    let mut roles = keys.value("roles").map(|roles| read_roles(keys, roles)).transpose()?.unwrap_or(defaults.roles);
    for (role, key) in [("user", "field_human"), ("assistant", "field_model")] {
        if let Some(name) = keys.text(key)? {
            roles.entry(role.to_owned()).or_default().push(name);
        }
    }
    let end = |keys: &mut Keys, key: &str| -> Result<Option<TrainOnEnd>> {
        keys.value(key).map(|value| read(keys, key, value)).transpose()
    };
    Ok(Messages {
        column: keys.text("field_messages")?.unwrap_or(defaults.column),
        template,
        chat_template_kwargs: Map::new(),
        message_property_mappings: mappings,
        roles,
        roles_to_train: keys.texts("roles_to_train")?.unwrap_or(defaults.roles_to_train),
        train_on_inputs: shared.train_on_inputs,
        train_on_eos: end(keys, "train_on_eos")?.unwrap_or_default(),
        train_on_eot: end(keys, "train_on_eot")?,
        eot_tokens: shared.eot_tokens.clone(),
        message_field_training: keys.text("message_field_training")?,
        message_field_training_detail: keys.text("message_field_training_detail")?,
        system_prompt: shared.system_prompt.clone(),
        field_system: keys.text("field_system")?.unwrap_or(defaults.field_system),
        field_tools: keys.text("field_tools")?.unwrap_or(defaults.field_tools),
        drop_system_message: keys.flag("drop_system_message")?.unwrap_or(false),
    })
}

/// Axolotl's name of a template as ours.
fn template_of(keys: &Keys, name: &str, jinja: Option<String>) -> Result<String> {
    if name == "tokenizer_default" {
        return Ok("tokenizer".to_owned());
    }
    if let Some(fallback) = name.strip_prefix("tokenizer_default_fallback_") {
        return Ok(format!("tokenizer|{}", template_of(keys, fallback, jinja)?));
    }
    match name {
        "jinja" => jinja.ok_or_else(|| keys.wrong("`chat_template` is `jinja`, and there is no `chat_template_jinja`")),
        "phi_35" => Ok("phi_3".to_owned()),
        _ => match dlm_tokenizer::ChatTemplate::built_in(name) {
            Some(_) => Ok(name.to_owned()),
            None => Err(DataError::Pipeline {
                path: None,
                line: None,
                message: format!(
                    "`chat_template` is `{name}`, which is not built in: use the tokenizer's own (`tokenizer_default`), or \
                     `jinja` with `chat_template_jinja`"
                ),
                nearest: nearest(name, dlm_tokenizer::ChatTemplate::built_in_names()).map(str::to_owned),
            }),
        },
    }
}

/// Roles with their names, of which there may be one without a list.
fn read_roles(keys: &Keys, roles: Value) -> Result<BTreeMap<String, Vec<String>>> {
    let lists = match roles {
        Value::Object(roles) => {
            let list = |value: Value| if value.is_array() { value } else { json!([value]) };
            Value::Object(roles.into_iter().map(|(role, names)| (role, list(names))).collect())
        }
        other => other,
    };
    read(keys, "roles", lists)
}

fn read<T: DeserializeOwned>(keys: &Keys, key: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| keys.wrong(&format!("`{key}`: {error}")))
}
