//! What prepared data says of itself: `manifest.json`, written last.

use crate::error::{DataError, Result, reading};
use serde::{Deserialize, Serialize};
use std::{
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
    /// SHA-256 over the names and contents of all input files.
    pub input_fingerprint: String,
    /// Which files were read.
    pub inputs: Vec<InputFile>,
    /// What the ids mean.
    pub tokenizer: TokenizerInfo,
    /// Tokens in a row.
    pub sequence_len: usize,
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

/// Where rows and tokens went: `tokens` are those in the shards (without padding) and the dropped ones together.
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
    /// Tokens of documents that a step behind `tokenize` removed.
    pub dropped_filtered_tokens: u64,
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
        let wrong = |message: String| DataError::NotPrepared { path: folder.to_owned(), message };
        let version: Version =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("`{MANIFEST}`: {error}")))?;
        if version.format_version != FORMAT_VERSION {
            let found = version.format_version;
            return Err(wrong(format!("its format has version {found}, and version {FORMAT_VERSION} is read")));
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| wrong(format!("`{MANIFEST}`: {error}")))?;
        manifest.check().map_err(wrong)?;
        Ok(Some(manifest))
    }

    /// One side, if the data has it.
    #[must_use]
    pub fn split(&self, split: Split) -> Option<&SplitInfo> {
        match split {
            Split::Train => Some(&self.train),
            Split::Validation => self.validation.as_ref(),
        }
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
        for shard in [Some(&self.train), self.validation.as_ref()].into_iter().flatten().flat_map(|side| &side.shards) {
            let path = Path::new(&shard.path);
            // A manifest names files of its own folder and nothing else.
            let is_inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !is_inside {
                return Err(format!("the shard `{}` lies outside the folder", shard.path));
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
