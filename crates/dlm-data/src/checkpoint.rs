//! How far a preparation has come, written down whenever a shard is finished, so that a killed one goes on from there.
//!
//! A checkpoint holds no tokens. What packing had in hand is named by document, offset and length; the documents named are
//! tokenized again, and everything else that was finished is skipped.

use crate::{account::Totals, pack::Piece};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

/// The state of packing between two documents, and of the shards that it fills.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    /// Documents with smaller keys have been packed.
    pub(crate) next_key: i64,
    /// The sums over all documents before that of `next_key`.
    pub(crate) totals: Totals,
    /// What packing did with the documents it got.
    pub(crate) packed: Packed,
    /// Training, validation.
    pub(crate) sides: [SideState; 2],
}

/// What packing did with the documents it got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Packed {
    /// Tokens of all of them.
    pub(crate) tokens: u64,
    /// Documents that were dropped as longer than a row.
    pub(crate) overlong_documents: u64,
    /// Their tokens.
    pub(crate) overlong_tokens: u64,
    /// Documents that were dropped because none of their tokens is a target.
    pub(crate) targetless_documents: u64,
    /// Their tokens.
    pub(crate) targetless_tokens: u64,
}

/// What one side had in hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SideState {
    /// The rows of the shard that is not finished.
    pub(crate) rows: Vec<Vec<Piece>>,
    /// Rows that may still take something.
    pub(crate) open: Vec<Vec<Piece>>,
    /// What waits to be sorted.
    pub(crate) waiting: Vec<Piece>,
}

/// Documents of one number, one behind the other, that a step made out of one: so many at most.
const PARTS: i64 = 1 << 20;

/// The key of a document: its number, and which part of it where a step made several out of one.
pub(crate) fn key(number: i64, part: i64) -> Option<i64> {
    (part < PARTS).then(|| number.checked_mul(PARTS)).flatten()?.checked_add(part)
}

/// The number in a key.
pub(crate) fn number_of(key: i64) -> i64 {
    key / PARTS
}

impl SideState {
    /// Everything in hand.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.rows.iter().chain(&self.open).flatten().chain(&self.waiting)
    }
}

/// Where a killed preparation left off, if it did. Shared by the steps, and known once the plan is about to run.
#[derive(Debug, Default)]
pub(crate) struct Resume(OnceLock<Resumed>);

/// A checkpoint, and the documents that it needs again.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) checkpoint: Checkpoint,
    numbers: HashSet<i64>,
    keys: HashSet<i64>,
}

impl Resume {
    /// Goes on from a checkpoint.
    pub(crate) fn from(&self, checkpoint: Checkpoint) {
        let keys: HashSet<i64> =
            checkpoint.sides.iter().flat_map(SideState::pieces).map(|piece| piece.document).collect();
        let numbers = keys.iter().copied().map(number_of).collect();
        self.0.set(Resumed { checkpoint, numbers, keys }).expect("a plan runs once");
    }

    /// The checkpoint, if there is one.
    pub(crate) fn get(&self) -> Option<&Resumed> {
        self.0.get()
    }
}

impl Resumed {
    /// Documents below this number are finished with, unless they are needed again.
    pub(crate) fn next_number(&self) -> i64 {
        number_of(self.checkpoint.next_key)
    }

    /// Whether a document has to be tokenized.
    pub(crate) fn needs_number(&self, number: i64) -> bool {
        number >= self.next_number() || self.numbers.contains(&number)
    }

    /// Whether packing had this document in hand.
    pub(crate) fn needs_key(&self, key: i64) -> bool {
        self.keys.contains(&key)
    }

    /// How many documents packing had in hand.
    pub(crate) fn needed(&self) -> usize {
        self.keys.len()
    }
}

/// A batch of packed rows leaves a note behind: where packing stood when it gave it out.
#[derive(Debug)]
pub(crate) struct Note {
    /// Without the rows of unfinished shards, of which packing knows nothing.
    pub(crate) checkpoint: Checkpoint,
    /// What the rows of the batch are made of: of the training side first, then of the validation side.
    pub(crate) rows: Vec<Vec<Piece>>,
}

/// Notes, one for each batch in their order.
pub(crate) type Notes = Arc<std::sync::Mutex<std::collections::VecDeque<Note>>>;
