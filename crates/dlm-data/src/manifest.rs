//! What prepared data says of itself: `manifest.json`, written last.

use crate::{
    answer_tail::AnswerTail,
    error::{DataError, Result, reading},
    ledger::StepAccount,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";
/// The version of the format that is written and read.
const FORMAT_VERSION: u32 = 1;

/// A side of prepared data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is set aside to measure by.
    Validation,
}

impl Split {
    /// The name of its folder.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// What prepared data says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the format.
    pub format_version: u32,
    /// The pipeline that made it, as TOML with every value spelt out.
    pub pipeline: String,
    /// SHA-256 of that text, without the output.
    pub pipeline_hash: String,
    /// SHA-256 over the names, sizes and checksums of all input files.
    pub input_fingerprint: String,
    /// Which files were read.
    pub inputs: Vec<InputFile>,
    /// What each `[[source]]` gave, in the order of the pipeline.
    #[serde(default)]
    pub sources: Vec<SourceInfo>,
    /// What the ids mean.
    pub tokenizer: TokenizerInfo,
    /// Tokens in a row.
    pub sequence_len: usize,
    /// What follows answers, where a step put something there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tail: Option<AnswerTail>,
    /// What became of rows and tokens.
    pub account: TokenAccount,
    /// The training side.
    pub train: SplitInfo,
    /// The validation side, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<SplitInfo>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its path, relative to the pipeline file where it lies below it.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// What a source gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Its path as the pipeline says it.
    pub path: String,
    /// Its weight, where sources are mixed by weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Rows that it gave, those that could not be read included; more than it has where it was begun again.
    pub rows: u64,
    /// Their share of the rows of all sources, between 0 and 1.
    pub share: f64,
    /// Rows and files of it that could not be read or used and were left out; `quarantine.jsonl` lists them.
    pub quarantined: u64,
}

/// The tokenizer, whose files lie in `tokenizer/` beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// SHA-256 of `tokenizer.json`.
    pub hash: String,
    /// Number of tokens, added ones included: every id is below it.
    pub vocab_size: usize,
    /// The token that fills rows up; the end token where the tokenizer has none for padding.
    pub pad_token_id: i32,
    /// The end token.
    pub eos_token_id: Option<i32>,
    /// The beginning token.
    pub bos_token_id: Option<i32>,
}

/// Where rows and tokens went. Tokens in are tokens out: `tokens` and the added ones are those in the shards (without padding)
/// and the dropped ones together. Checked when data is prepared, and by [`validate`](crate::validate).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAccount {
    /// Rows read from the sources.
    pub rows: u64,
    /// Rows that the steps left over, each a document.
    pub documents: u64,
    /// Tokens of all documents.
    pub tokens: u64,
    /// Documents without a token.
    pub dropped_empty_documents: u64,
    /// Documents longer than a row, where the pipeline drops those.
    pub dropped_overlong_documents: u64,
    /// Their tokens.
    pub dropped_overlong_tokens: u64,
    /// Documents of which no token is a target, such as prompts without an answer: they teach nothing.
    #[serde(default)]
    pub dropped_targetless_documents: u64,
    /// Their tokens.
    #[serde(default)]
    pub dropped_targetless_tokens: u64,
    /// Tokens of documents that a step behind `tokenize` removed.
    pub dropped_filtered_tokens: u64,
    /// Tokens that steps cut off documents, by the step's reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped_tokens: BTreeMap<String, u64>,
    /// Tokens that steps added to documents after they were tokenized, by the step's reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub added_tokens: BTreeMap<String, u64>,
    /// Messages with something in a field that the chat template leaves out, by the field.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ignored_fields: BTreeMap<String, u64>,
    /// Names in the options of `chat` that no message has, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
    /// What each step before `tokenize` left of the rows, behind the last `limit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepAccount>,
}

impl TokenAccount {
    /// Tokens that came in: those of the documents, and those that steps added.
    #[must_use]
    pub fn tokens_in(&self) -> u128 {
        self.added_tokens.values().map(|tokens| u128::from(*tokens)).sum::<u128>() + u128::from(self.tokens)
    }

    /// Tokens that were dropped, for whatever reason.
    #[must_use]
    pub fn tokens_dropped(&self) -> u128 {
        let cut = self.dropped_tokens.values().map(|tokens| u128::from(*tokens)).sum::<u128>();
        let whole = [self.dropped_overlong_tokens, self.dropped_targetless_tokens, self.dropped_filtered_tokens];
        cut + whole.into_iter().map(u128::from).sum::<u128>()
    }

    /// Says what does not add up when this many tokens were written.
    pub(crate) fn check(&self, written: u64) -> std::result::Result<(), String> {
        let (tokens_in, dropped) = (self.tokens_in(), self.tokens_dropped());
        if tokens_in == dropped + u128::from(written) {
            return Ok(());
        }
        Err(format!("{tokens_in} tokens came in, {written} were written and {dropped} dropped"))
    }
}

/// One side of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// Packed rows.
    pub rows: u64,
    /// Documents and pieces of documents in them.
    pub segments: u64,
    /// Tokens, padding not counted.
    pub tokens: u64,
    /// Tokens that are targets.
    pub label_tokens: u64,
    /// The files, in order.
    pub shards: Vec<ShardInfo>,
}

/// One file of prepared rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// Its path, relative to the manifest.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Documents and pieces in them.
    pub segments: u64,
    /// Tokens, padding not counted.
    pub tokens: u64,
    /// Tokens that are targets.
    pub label_tokens: u64,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl SplitInfo {
    pub(crate) fn of(shards: Vec<ShardInfo>) -> Self {
        let sum = |number: fn(&ShardInfo) -> u64| shards.iter().map(number).sum();
        Self {
            rows: sum(|shard| shard.rows),
            segments: sum(|shard| shard.segments),
            tokens: sum(|shard| shard.tokens),
            label_tokens: sum(|shard| shard.label_tokens),
            shards,
        }
    }

    /// The share of the rows' places that hold tokens, between 0 and 1.
    #[must_use]
    pub fn packing_efficiency(&self, sequence_len: usize) -> f64 {
        self.tokens as f64 / (self.rows as f64 * sequence_len as f64).max(1.0)
    }
}

impl Manifest {
    pub(crate) const VERSION: u32 = FORMAT_VERSION;

    /// Reads the manifest of a folder with prepared data.
    ///
    /// # Errors
    /// [`DataError::NotPrepared`] when there is none, or none that can be read.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::find(folder)?.ok_or_else(|| DataError::NotPrepared {
            path: folder.to_owned(),
            message: format!("there is no `{MANIFEST}`"),
        })
    }

    /// The manifest of a folder, if it has one.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        let text = match fs::read(&path) {
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                return Ok(None);
            }
            other => other.map_err(reading(&path))?,
        };
        let parsed = Self::parse(&text);
        parsed.map(Some).map_err(|message| DataError::NotPrepared { path: folder.to_owned(), message })
    }

    /// Reads a manifest and checks what other code takes for granted.
    pub(crate) fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        let unreadable = |error: serde_json::Error| format!("`{MANIFEST}`: {error}");
        let Version { format_version: found } = serde_json::from_slice(text).map_err(unreadable)?;
        if found != FORMAT_VERSION {
            return Err(format!("its format has version {found}, and version {FORMAT_VERSION} is read"));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(unreadable)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// One side, if the data has it.
    #[must_use]
    pub fn split(&self, split: Split) -> Option<&SplitInfo> {
        match split {
            Split::Train => Some(&self.train),
            Split::Validation => self.validation.as_ref(),
        }
    }

    /// All files, in order.
    pub(crate) fn shards(&self) -> impl Iterator<Item = &ShardInfo> {
        [Some(&self.train), self.validation.as_ref()].into_iter().flatten().flat_map(|side| &side.shards)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest is made of texts and numbers");
        text.push(b'\n');
        text
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.sequence_len == 0 {
            return Err("`sequence_len` is 0".to_owned());
        }
        for shard in self.shards() {
            let path = Path::new(&shard.path);
            // A manifest names files of its own folder and nothing else.
            let is_inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !is_inside {
                return Err(format!("the shard `{}` lies outside the folder", shard.path));
            }
        }
        let counts: [fn(&ShardInfo) -> u64; 5] = [
            |shard| shard.rows,
            |shard| shard.segments,
            |shard| shard.tokens,
            |shard| shard.label_tokens,
            |shard| shard.size_bytes,
        ];
        for count in counts {
            if self.shards().try_fold(0u64, |sum, shard| sum.checked_add(count(shard))).is_none() {
                return Err("its counts are beyond every number".to_owned());
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// The folder of the tokenizer's files.
pub(crate) fn tokenizer_folder(folder: &Path) -> PathBuf {
    folder.join("tokenizer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn manifest() -> Value {
        let shard = |path: &str| {
            json!({
                "path": path, "rows": 2, "segments": 3, "tokens": 50, "label_tokens": 40, "size_bytes": 900, "sha256": "00",
            })
        };
        let side =
            |path: &str| json!({ "rows": 2, "segments": 3, "tokens": 50, "label_tokens": 40, "shards": [shard(path)] });
        json!({
            "format_version": 1, "pipeline": "", "pipeline_hash": "a", "input_fingerprint": "b",
            "inputs": [{ "path": "rows.jsonl", "rows": 9, "size_bytes": 99 }],
            "tokenizer": {
                "hash": "c", "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": null,
            },
            "sequence_len": 32,
            "account": {
                "rows": 9, "documents": 8, "tokens": 100, "dropped_empty_documents": 0,
                "dropped_overlong_documents": 0, "dropped_overlong_tokens": 0, "dropped_filtered_tokens": 0,
            },
            "train": side("train/00000.parquet"),
            "validation": side("validation/00000.parquet"),
        })
    }

    /// The addresses of all values, as JSON pointers.
    fn addresses(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(entries) => {
                entries.iter().for_each(|(key, value)| addresses(value, &format!("{at}/{key}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, value)| addresses(value, &format!("{at}/{i}"), found));
            }
            _ => {}
        }
    }

    fn odd_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(|number| json!(number)),
            any::<i64>().prop_map(|number| json!(number)),
            any::<f64>().prop_map(|number| json!(number)),
            Just(json!(u64::MAX)),
            ".*".prop_map(|text| json!(text)),
            Just(json!("../../etc/passwd")),
            Just(json!([])),
            Just(json!({})),
        ]
    }

    proptest! {
        #[test]
        fn no_manifest_makes_the_reader_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut value = manifest();
            for (which, odd) in changes {
                let mut all = Vec::new();
                addresses(&value, "", &mut all);
                *value.pointer_mut(&all[which.index(all.len())]).unwrap() = odd;
            }
            let mut text = value.to_string().into_bytes();
            for (at, byte) in flips {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text.truncate(cut.map_or(text.len(), |cut| cut.index(text.len())));
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(MANIFEST), &text).unwrap();
            let _ = Manifest::read(folder.path());
            let _ = crate::PreparedData::open(folder.path(), Split::Train);
            prop_assert!(!crate::validate(folder.path()).unwrap().is_sound(), "there are no shards");
        }
    }

    #[test]
    fn a_manifest_that_is_left_alone_is_read() {
        let text = manifest().to_string();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap().train.shards.len(), 1);
    }
}
