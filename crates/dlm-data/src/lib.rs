//! From files to batches of token ids.
//!
//! A [`Pipeline`] says where rows come from, what happens to them and where they go. It is built in Rust, read from TOML or
//! changed by overrides; it lowers to one DataFusion plan, which [`Pipeline::explain`] shows and [`Pipeline::prepare`] runs.
//! What comes out is a folder of Parquet shards with a [`Manifest`]: rows of equal length in which documents stand side by
//! side, kept apart by segment. A [`Reader`] hands them out in windows of one optimiser step, shuffled anew in every epoch and
//! resumable at any [`Cursor`], also of several datasets mixed by weight ([`Mixture`]) and divided among processes. This crate never sees a tensor.
//!
//! ```
//! # use std::fs;
//! use dlm_data::{Cursor, Pack, Pipeline, PrepareOptions, PreparedData, Reader, ReaderConfig, Split, Tokenize};
//! # let folder = std::env::temp_dir().join(format!("dlm-data-doc-{}", std::process::id()));
//! # fs::create_dir_all(&folder)?;
//! # let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
//!
//! // Three documents, one of them twice.
//! let lines = ["The tide comes in.", "The tide goes out.", "The tide comes in.", "Gulls wait."];
//! let lines: Vec<String> = lines.iter().map(|text| format!("{{\"text\": \"{text}\"}}")).collect();
//! fs::write(folder.join("tides.jsonl"), lines.join("\n"))?;
//!
//! let report = Pipeline::new()
//!     .relative_to(&folder)
//!     .source("tides.jsonl")
//!     .dedup(["text"])
//!     .tokenize(Tokenize::new(golden))
//!     .pack(Pack::new(32))
//!     .output("prepared")
//!     .prepare(&PrepareOptions::default(), |_| ())?;
//! assert_eq!(report.manifest.account.documents, 3);
//!
//! let data = PreparedData::open(&report.output, Split::Train)?;
//! let config = ReaderConfig { micro_batch_size: 2, ..ReaderConfig::default() };
//! let mut reader = Reader::new(&data, config, Cursor::default())?;
//! let window = reader.next_window()?;
//! assert_eq!(window.micro_batches[0].seq_len, 32);
//! # fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The way of a document: [`Conversation`] says what is prompt and what is answer, [`Encoder`] makes [`Tokens`] of it, [`Packer`]
//! puts those into rows. Each can be used without the others.

mod account;
mod answer;
mod answer_tail;
pub mod axolotl;
mod batch;
mod builder;
mod chat;
mod chat_fields;
mod chat_options;
mod chat_stage;
mod checkpoint;
mod cursor;
mod cut;
mod decontaminate;
mod document_check;
mod error;
mod exact_dedup;
mod explain;
mod first_fit;
mod functions;
mod group_cache;
mod hold;
mod hold_out;
mod inspect;
mod journal;
mod leaf;
mod leak;
mod ledger;
mod limits;
mod lower_rows;
mod lower_tokens;
mod manifest;
mod memory;
mod messages;
mod minhash;
mod mixture;
mod near_dedup;
mod normalize;
mod number;
mod order;
mod overrides;
mod pack;
mod packing;
mod picked;
mod pipeline;
mod plan;
mod prepare;
mod prepared;
mod quality;
mod read_ahead;
mod reader;
mod remarks;
mod remote;
mod row;
mod row_check;
mod row_stages;
mod sample;
mod scan;
mod shard;
mod shard_file;
mod shard_index;
mod shard_writer;
mod shuffle;
mod source;
mod spelling;
mod sql;
mod stage;
mod step;
mod suggest;
mod text_functions;
mod text_stats;
mod texts;
mod tokenize;
mod turn_end_check;
mod unigram;
mod validate;
mod warnings;
mod wording;
mod words;
mod workshop;
mod writer;

pub use answer::{EndLabel, TurnEnd};
pub use answer_tail::AnswerTail;
pub use batch::{Batch, Document, IGNORE_INDEX};
pub use chat::{ChatFormat, Conversation, Piece};
pub use chat_options::{
    Alpaca, AlpacaStyle, Chat, Completion, InputOutput, Messages, PromptCompletion, TrainOnEnd, UserDefined,
};
pub use cursor::Cursor;
pub use error::{DataError, Result};
pub use explain::explain;
pub use first_fit::{first_fit, first_fit_decreasing, sequential};
pub use hold_out::{HeldOut, Part};
pub use inspect::{
    DecodedRow, DecodedSegment, FillBucket, InspectOptions, Inspection, LengthBucket, Lengths, SideInspection, Span,
    inspect,
};
pub use ledger::StepAccount;
pub use limits::{Limits, SizeError, parse_size};
pub use manifest::{
    InputFile, MANIFEST, Manifest, ShardInfo, SourceInfo, Split, SplitInfo, TokenAccount, TokenizerInfo,
};
pub use mixture::Mixture;
pub use pack::{Fragment, PackedRow, Packer};
pub use pipeline::{Output, Pipeline};
pub use plan::Resources;
pub use prepare::{Existing, PrepareOptions, PrepareReport, Progress, prepare};
pub use prepared::PreparedData;
pub use reader::{Process, Reader, ReaderConfig, Window};
pub use remote::{Remote, Retry};
pub use row_check::Fault;
pub use shard::Row;
pub use shuffle::Permutation;
pub use source::{FileFormat, Mix, MixStop, OnError, QUARANTINE, Source, TextDocument};
pub use step::{
    Chunk, Decontaminate, Dedup, Found, NearDedup, Normalize, Overlong, Pack, PackStrategy, Quality, QualityRules,
    Sample, Shuffle, Side, Split as SplitStep, Step, Tokenize, Truncate, UnicodeForm, WhiteSpace,
};
pub use texts::Texts;
pub use tokenize::{Encoder, Tokens};
pub use unigram::unigram_entropy;
pub use validate::{Validation, Violation, validate};
