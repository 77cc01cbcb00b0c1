//! An Axolotl file as a pipeline: its `datasets:` or `pretraining_dataset:`, and what it says about tokens and rows.
//!
//! ```
//! let yaml = "
//! base_model: models/smollm2
//! datasets:
//!   - path: s3://bucket/alpaca.jsonl
//!     type: alpaca
//! sequence_len: 1024
//! sample_packing: true
//! val_set_size: 0.05
//! learning_rate: 2e-4
//! ";
//! let translation = dlm_data::axolotl::translate(yaml, "")?;
//! assert!(translation.pipeline.to_toml()?.contains("sequence_len = 1024"));
//! assert_eq!(translation.others, ["learning_rate"]);
//! # Ok::<(), dlm_data::DataError>(())
//! ```

mod dataset;
mod keys;

use crate::{
    Pipeline,
    chat_options::Chat,
    error::{DataError, Result, reading},
    source::Source,
    step::{Dedup, Overlong, Pack, PackStrategy, Shuffle, Split, Step, Tokenize, Truncate},
};
use dataset::Dataset;
use keys::Keys;
use serde_json::{Map, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What an Axolotl file means here.
#[derive(Debug, Clone, PartialEq)]
pub struct Translation {
    /// The pipeline that prepares its data.
    pub pipeline: Pipeline,
    /// Keys about data that have no effect, each once.
    pub ignored: Vec<IgnoredKey>,
    /// Keys of the file that are not about data: settings of the training, and anything unknown.
    pub others: Vec<String>,
}

/// A key without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredKey {
    /// The key; one of a dataset as `datasets.KEY`.
    pub key: String,
    /// Why it has no effect.
    pub reason: &'static str,
}

/// Keys about data that need nothing done, and why.
const IGNORED: &[(&str, &[&str])] = &[
    (
        "a preparation streams, and uses all cores and the memory it is given",
        &[
            "dataset_keep_in_memory",
            "dataset_num_proc",
            "dataset_processes",
            "preprocess_iterable",
            "skip_prepare_dataset",
            "streaming",
            "streaming_multipack_buffer_size",
        ],
    ),
    ("rows always have `sequence_len` tokens", &["pad_to_sequence_len"]),
    ("documents of a row are always kept apart", &["pretrain_multipack_attn"]),
    (
        "packing looks at a window of rows of its own (`pack.window`)",
        &[
            "pretrain_multipack_buffer_size",
            "sample_packing_bin_size",
            "sample_packing_eff_est",
            "sample_packing_group_size",
            "multipack_real_batches",
        ],
    ),
    ("training and validation rows are packed alike", &["eval_sample_packing"]),
    ("rows are shuffled after the datasets were put together", &["shuffle_before_merging_datasets"]),
    ("the validation side is a share of the data (`val_set_size`)", &["test_datasets"]),
    ("prepared data stays on this machine", &["push_dataset_to_hub", "hf_use_auth_token"]),
];

const TOP_LEVEL: &[&str] = &[
    "base_model",
    "chat_template",
    "chat_template_jinja",
    "dataset_exact_deduplication",
    "dataset_prepared_path",
    "datasets",
    "default_system_message",
    "eot_tokens",
    "excess_length_strategy",
    "min_sample_len",
    "pretraining_dataset",
    "pretraining_sample_concatenation",
    "sample_packing",
    "sample_packing_sequentially",
    "seed",
    "sequence_len",
    "shuffle_merged_datasets",
    "special_tokens",
    "tokenizer_config",
    "train_on_inputs",
    "val_set_size",
];

/// The keys of an Axolotl file that are about data, for suggestions.
pub fn known_keys() -> impl Iterator<Item = &'static str> {
    TOP_LEVEL.iter().chain(IGNORED.iter().flat_map(|(_, keys)| keys.iter())).copied()
}

/// What a whole file says about its datasets.
pub(crate) struct Shared {
    pub(crate) base: PathBuf,
    pub(crate) template: Option<String>,
    pub(crate) jinja: Option<String>,
    pub(crate) eot_tokens: Vec<String>,
    pub(crate) train_on_inputs: bool,
    pub(crate) system_prompt: Option<String>,
}

/// Translates an Axolotl file. Its paths are relative to `base`; one that does not exist and reads `OWNER/NAME` is on the hub.
///
/// # Errors
/// [`DataError::Pipeline`] for text that is no YAML, for a key of a dataset that is unknown (with the nearest known one), and for a
/// value that has no equivalent.
pub fn translate(yaml: &str, base: impl Into<PathBuf>) -> Result<Translation> {
    let mut keys = Keys::new("", parse(yaml)?);
    let ignored = keys.take_ignored(IGNORED);
    let jinja = keys.text("chat_template_jinja")?;
    let shared = Shared {
        base: base.into(),
        template: keys.text("chat_template")?.or_else(|| jinja.as_ref().map(|_| "jinja".to_owned())),
        jinja,
        eot_tokens: keys.texts("eot_tokens")?.unwrap_or_default(),
        train_on_inputs: keys.flag("train_on_inputs")?.unwrap_or(false),
        system_prompt: keys.text("default_system_message")?,
    };
    let tokenizer = (keys.text("tokenizer_config")?, keys.text("base_model")?);
    let tokenizer = tokenizer.0.or(tokenizer.1).ok_or_else(|| {
        keys.wrong("`base_model` is not set, and neither is `tokenizer_config`: the tokenizer of one of them is needed")
    })?;
    let tokenizer = on_hub(&shared.base, &tokenizer).map_or(tokenizer.clone(), |name| format!("hf://{name}"));
    let seed = keys.number("seed")?.unwrap_or(42);

    let datasets = keys.list("datasets")?;
    let pretraining = keys.list("pretraining_dataset")?;
    let is_pretraining = pretraining.is_some();
    let (name, blocks) = match (datasets, pretraining) {
        (Some(blocks), None) => ("datasets", blocks),
        (None, Some(blocks)) => ("pretraining_dataset", blocks),
        (None, None) => return Err(keys.wrong("there are no `datasets` and no `pretraining_dataset`")),
        (Some(_), Some(_)) => {
            return Err(keys.wrong("there are `datasets` and a `pretraining_dataset`: keep one of them"));
        }
    };
    if blocks.is_empty() {
        return Err(keys.wrong(&format!("`{name}` is empty")));
    }
    let mut ignored = ignored;
    let mut sets = Vec::new();
    for block in blocks {
        let set = Dataset::read(name, block, &shared)?;
        for key in &set.ignored {
            if !ignored.contains(key) {
                ignored.push(key.clone());
            }
        }
        sets.push(set);
    }
    let takes_system = |set: &Dataset| matches!(set.chat, Chat::Messages(_) | Chat::Sharegpt(_));
    if shared.system_prompt.is_some() && !sets.iter().any(takes_system) {
        let reason = "as in Axolotl, only messages get a system message: prompts made of columns and plain text have words of their own";
        ignored.push(IgnoredKey { key: "default_system_message".to_owned(), reason });
    }

    let mut pipeline = Pipeline { base: shared.base.clone(), ..Pipeline::new() };
    if keys.flag("dataset_exact_deduplication")?.unwrap_or(false) {
        pipeline = pipeline.step(Step::Dedup(Dedup::default()));
    }
    if keys.flag("shuffle_merged_datasets")?.unwrap_or(!is_pretraining) {
        pipeline = pipeline.step(Step::Shuffle(Shuffle { seed }));
    }
    match keys.decimal("val_set_size")? {
        Some(share) if share < 0.0 => {
            return Err(keys.wrong(&format!("`val_set_size` is {share}, and has to be 0 or a share, below 1")));
        }
        Some(share) if share >= 1.0 => {
            return Err(keys.wrong(&format!(
                "`val_set_size` is {share}, a number of rows: rows are set aside by a hash of their content, so give the share, \
                 between 0 and 1"
            )));
        }
        Some(share) if share > 0.0 => pipeline = pipeline.step(Step::Split(Split { validation: share, seed })),
        _ => {}
    }

    let column = put_sources(&mut pipeline, &sets)?;
    let special_tokens = keys.object("special_tokens")?.unwrap_or_default();
    let mut tokenize = Tokenize { column, ..Tokenize::new(tokenizer) };
    for (role, text) in special_tokens {
        match text {
            Value::String(text) => drop(tokenize.special_tokens.insert(role, text)),
            Value::Null => {}
            _ => return Err(keys.wrong(&format!("`special_tokens.{role}` is no text"))),
        }
    }
    pipeline = pipeline.tokenize(tokenize);
    if let Some(shortest) = keys.number("min_sample_len")? {
        pipeline = pipeline.filter(format!("array_length(input_ids) >= {shortest}"));
    }

    let sequence_len = usize::try_from(keys.number("sequence_len")?.unwrap_or(512)).unwrap_or(usize::MAX);
    let excess = keys.text("excess_length_strategy")?;
    let is_text = sets.iter().all(|set| matches!(set.chat, Chat::Completion(_)));
    let packing = keys.flag("sample_packing")?;
    let concatenation = keys.flag("pretraining_sample_concatenation")?;
    let packs = packing.unwrap_or(is_pretraining && concatenation.unwrap_or(true));
    let sequentially = keys.flag("sample_packing_sequentially")?.unwrap_or(false);
    let strategies = [None, Some("drop"), Some("truncate"), Some("raise")];
    if let Some(other) = excess.as_ref().filter(|_| !strategies.contains(&excess.as_deref())) {
        return Err(
            keys.wrong(&format!("`excess_length_strategy` is `{other}`, and has to be `drop`, `truncate` or `raise`"))
        );
    }
    let mut ignore = |key: &str, reason| ignored.push(IgnoredKey { key: key.to_owned(), reason });
    if is_text && excess.is_some() {
        ignore(
            "excess_length_strategy",
            "text without a conversation is cut into pieces, and nothing of it is left out",
        );
    }
    if sequentially && !packs {
        ignore("sample_packing_sequentially", "rows are not packed (`sample_packing`)");
    }
    let overlong = match excess.as_deref() {
        _ if is_text => Overlong::Cut,
        Some("raise") => Overlong::Raise,
        Some("truncate") => {
            pipeline = pipeline.truncate(Truncate::new(sequence_len));
            Overlong::Cut
        }
        _ => Overlong::Drop,
    };
    let strategy = match (packs, sequentially) {
        (false, _) => PackStrategy::Alone,
        (true, true) => PackStrategy::Sequential,
        (true, false) => PackStrategy::default(),
    };
    pipeline = pipeline.pack(Pack { strategy, overlong, ..Pack::new(sequence_len) });
    let output = keys.text("dataset_prepared_path")?.unwrap_or_else(|| "last_run_prepared".to_owned());
    let pipeline = pipeline.output(output);
    Ok(Translation { pipeline, ignored, others: keys.rest() })
}

/// Translates an Axolotl file whose paths are relative to the process, as Axolotl's are.
///
/// # Errors
/// [`DataError::Read`], and as [`translate`], with the file.
pub fn translate_file(path: impl AsRef<Path>) -> Result<Translation> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(reading(path))?;
    translate(&text, "").map_err(|error| error.in_pipeline(path))
}

/// Puts the sources into the pipeline, with what makes conversations of them, and returns the column of their text.
fn put_sources(pipeline: &mut Pipeline, sets: &[Dataset]) -> Result<String> {
    let first = &sets[0].chat;
    let alike = sets.iter().all(|set| set.chat == *first);
    let mut column = "text".to_owned();
    match first {
        // Text alone needs no conversation.
        Chat::Completion(completion) if alike => column.clone_from(&completion.field),
        chat if alike => pipeline.step.push(Step::Chat(chat.clone())),
        _ => {}
    }
    for set in sets {
        let own = (!alike).then(|| serde_json::to_value(&set.chat)).transpose();
        let own = own.map_err(|error| DataError::pipeline(error.to_string()))?;
        for source in &set.sources {
            let mut source = source.clone();
            source.extend(own.clone().map(|chat| ("chat".to_owned(), chat)));
            let read = serde_json::from_value::<Source>(Value::Object(source));
            pipeline.source.push(read.map_err(|error| DataError::pipeline(format!("a dataset: {error}")))?);
        }
    }
    Ok(column)
}

/// The text of a file as an object; YAML's merge keys are followed.
fn parse(yaml: &str) -> Result<Map<String, Value>> {
    let malformed = |error: serde_yaml_ng::Error| DataError::Pipeline {
        path: None,
        line: error.location().map(|at| at.line()),
        message: format!("it is no YAML: {error}"),
        nearest: None,
    };
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(yaml).map_err(malformed)?;
    value.apply_merge().map_err(malformed)?;
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(DataError::pipeline("it holds no keys at its top level")),
        Err(error) => Err(DataError::pipeline(format!("it holds what no Axolotl file does: {error}"))),
    }
}

/// The name on the hub that a path is, if it is none of this machine.
pub(crate) fn on_hub<'a>(base: &Path, path: &'a str) -> Option<&'a str> {
    let word = |part: &str| {
        let first = part.chars().next().is_some_and(char::is_alphanumeric);
        first && part.chars().all(|letter| letter.is_alphanumeric() || "-_.".contains(letter))
    };
    let parts: Vec<&str> = path.split('/').collect();
    // A name that says what it holds is that of a file, which may come later.
    let says = ["jsonl", "json", "ndjson", "parquet", "csv", "tsv", "txt", "md", "arrow", "gz", "zst", "bz2", "xz"];
    let is_file = path.rsplit_once('.').is_some_and(|(_, end)| says.contains(&end));
    let is_name = !is_file && matches!(parts.as_slice(), [owner, name] if word(owner) && word(name));
    (is_name && !base.join(path).exists()).then_some(path)
}
