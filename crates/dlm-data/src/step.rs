//! The closed set of steps a pipeline is made of, and their options.

use crate::{answer_tail::AnswerTail, chat_options::Chat};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

pub use crate::{
    cut::{Chunk, Side, Truncate},
    decontaminate::{Decontaminate, Found},
    near_dedup::NearDedup,
    normalize::{Normalize, UnicodeForm, WhiteSpace},
    quality::{Quality, QualityRules},
    sample::Sample,
};

/// One step of a pipeline: rows in, rows out.
///
/// In TOML each is a table with one key, the step's name: `filter = "length(text) > 100"`, `pack = { sequence_len = 2048 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Keeps the rows for which an SQL expression is true.
    Filter(String),
    /// Replaces the columns by SQL expressions: `["prompt as instruction", "output"]`.
    Select(Vec<String>),
    /// Renames columns, all at once: `{ question = "instruction" }` calls `question` `instruction`.
    Rename(BTreeMap<String, String>),
    /// Adds or replaces columns by SQL expressions over the columns as they were: `{ text = "title || '\n' || body" }`.
    Map(BTreeMap<String, String>),
    /// The rows that a DataFusion SQL query finds in the rows so far, which it calls `rows`, in the order of its `order by`.
    ///
    /// A query that picks, changes and orders rows keeps where they came from. One that groups, joins, unites or unnests makes
    /// new ones, numbered in the order in which it gives them. Groups, joins and unions need an `order by`, for they have no
    /// certain order; one that leaves ties leaves their order open.
    Sql(String),
    /// Keeps the first rows and reads no further.
    Limit(usize),
    /// Keeps a random share or number of rows.
    Sample(Sample),
    /// Gives texts one spelling.
    Normalize(Normalize),
    /// Leaves out rows that published rules take for debris.
    Quality(Quality),
    /// Keeps the first of equal rows, or of nearly equal ones.
    Dedup(Dedup),
    /// Leaves out or reports rows that hold pieces of evaluation sets.
    Decontaminate(Decontaminate),
    /// Makes a conversation with prompts and answers out of columns.
    Chat(Chat),
    /// Turns the text or the conversation into token ids and labels.
    Tokenize(Tokenize),
    /// Puts tokens behind answers that teach where to stop.
    AnswerTail(AnswerTail),
    /// Cuts the rest of long documents off.
    Truncate(Truncate),
    /// Cuts long documents into pieces.
    Chunk(Chunk),
    /// Puts documents side by side into rows of equal length.
    Pack(Pack),
    /// Brings the rows into a random order.
    Shuffle(Shuffle),
    /// Sets documents aside for validation.
    Split(Split),
}

/// The names of all steps, as they are written in TOML.
pub(crate) const STEPS: [&str; 19] = [
    "filter",
    "select",
    "rename",
    "map",
    "sql",
    "limit",
    "sample",
    "normalize",
    "quality",
    "dedup",
    "decontaminate",
    "chat",
    "tokenize",
    "answer_tail",
    "truncate",
    "chunk",
    "pack",
    "shuffle",
    "split",
];

impl Step {
    /// The step's name, as it is written in TOML.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Filter(_) => "filter",
            Self::Select(_) => "select",
            Self::Rename(_) => "rename",
            Self::Map(_) => "map",
            Self::Sql(_) => "sql",
            Self::Limit(_) => "limit",
            Self::Sample(_) => "sample",
            Self::Normalize(_) => "normalize",
            Self::Quality(_) => "quality",
            Self::Dedup(_) => "dedup",
            Self::Decontaminate(_) => "decontaminate",
            Self::Chat(_) => "chat",
            Self::Tokenize(_) => "tokenize",
            Self::AnswerTail(_) => "answer_tail",
            Self::Truncate(_) => "truncate",
            Self::Chunk(_) => "chunk",
            Self::Pack(_) => "pack",
            Self::Shuffle(_) => "shuffle",
            Self::Split(_) => "split",
        }
    }

    /// Whether what it does with a row depends on that row alone, and the rows keep their order. Behind the last step for which
    /// that is not so, a killed preparation goes on where it was; up to there it starts over.
    pub(crate) fn is_row_wise(&self) -> bool {
        matches!(
            self,
            Self::Filter(_)
                | Self::Select(_)
                | Self::Rename(_)
                | Self::Map(_)
                | Self::Normalize(_)
                | Self::Chat(_)
                | Self::Tokenize(_)
                | Self::AnswerTail(_)
                | Self::Truncate(_)
                | Self::Chunk(_)
                | Self::Pack(_)
                | Self::Split(_)
        )
    }

    /// Whether a step behind `tokenize` keeps every document, so that the account of tokens has to add up without it.
    pub(crate) fn keeps_documents(&self) -> bool {
        matches!(
            self,
            Self::Tokenize(_)
                | Self::AnswerTail(_)
                | Self::Truncate(_)
                | Self::Chunk(_)
                | Self::Pack(_)
                | Self::Shuffle(_)
                | Self::Split(_)
        )
    }
}

/// Deduplication. Of rows with equal content the first stays, and the order of the others does not change.
///
/// A row that stays costs 20 to 40 bytes of memory, whatever its length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dedup {
    /// The columns that are compared; empty means all of them.
    pub on: Vec<String>,
    /// Looks for texts that are nearly the same instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<NearDedup>,
}

/// Tokenization of the text column or of what `chat` made.
///
/// Text that spells a special token stays text; only a chat template or a prompt's own wording makes special tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// A folder with `tokenizer.json`, relative to the pipeline file.
    pub tokenizer: PathBuf,
    /// The column to tokenize where no `chat` step made a conversation.
    #[serde(default = "text_column")]
    pub column: String,
    /// Ends each document with the tokenizer's end token. Unset: for text and Alpaca answers yes, for messages no, since
    /// a chat template ends its turns itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_eos: Option<bool>,
    /// Other special tokens than the tokenizer's own: `bos_token`, `eos_token`, `pad_token`, `unk_token`, each one of its tokens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub special_tokens: BTreeMap<String, String>,
}

fn text_column() -> String {
    "text".to_owned()
}

impl Tokenize {
    /// Tokenization with the tokenizer in that folder.
    #[must_use]
    pub fn new(tokenizer: impl Into<PathBuf>) -> Self {
        Self { tokenizer: tokenizer.into(), column: text_column(), add_eos: None, special_tokens: BTreeMap::new() }
    }
}

/// Packing of documents into rows.
///
/// A document longer than a row is cut into pieces, each a segment of its own that remembers its offset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Tokens in a row.
    pub sequence_len: usize,
    /// Which documents share a row.
    #[serde(default)]
    pub strategy: PackStrategy,
    /// Rows' worth of tokens that the first two strategies look at together. More fills rows better and needs 8 bytes of memory a token.
    #[serde(default = "default_window")]
    pub window: usize,
    /// What happens to documents longer than a row.
    #[serde(default)]
    pub overlong: Overlong,
}

fn default_window() -> usize {
    512
}

impl Pack {
    /// Packing into rows of that many tokens, everything else as by default.
    #[must_use]
    pub fn new(sequence_len: usize) -> Self {
        let (strategy, overlong) = Default::default();
        Self { sequence_len, strategy, window: default_window(), overlong }
    }
}

/// Which documents share a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackStrategy {
    /// The longest first, each into the first row with room: little padding.
    #[default]
    FirstFitDecreasing,
    /// In the given order, each into the first row with room (Axolotl's multipack).
    FirstFit,
    /// In the given order, each into the current row or else a new one.
    Sequential,
    /// In the given order, one behind the other, cut where a row ends: no padding but in the last row.
    Concatenate,
    /// Every document, or piece of one, in a row of its own.
    Alone,
}

impl PackStrategy {
    /// Whether it looks at a window of documents together.
    pub(crate) fn looks_ahead(self) -> bool {
        matches!(self, Self::FirstFitDecreasing | Self::FirstFit)
    }
}

/// What happens to documents longer than a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// They are cut into pieces; nothing is lost.
    #[default]
    Cut,
    /// They are left out, and counted in the manifest.
    Drop,
    /// They are an error.
    Raise,
}

/// A random order of the rows that depends on the seed and on nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shuffle {
    /// Chooses the order.
    pub seed: u64,
}

/// The validation split.
///
/// A hash of a document's tokens decides, so equal documents never stand on both sides, wherever the step is written. Documents
/// that `truncate` makes equal are equal; the pieces that `chunk` makes of one stay together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The expected share of the documents, between 0 and 1.
    pub validation: f64,
    /// Chooses another share of the same size.
    #[serde(default)]
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_steps_are_those_that_are_read() {
        let error = toml::from_str::<Step>("x = 1").unwrap_err().to_string();
        let known: Vec<&str> = error.split('`').skip(1).step_by(2).skip(1).collect();
        assert_eq!(known, STEPS);
    }
}
