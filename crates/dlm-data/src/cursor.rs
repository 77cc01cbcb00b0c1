//! Where a reader stands: what a checkpoint remembers of the data.

use serde::{Deserialize, Serialize};

/// A place in the endless sequence of epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// How often all rows have been read.
    pub epoch: u64,
    /// Rows of this epoch that have been read.
    pub position: u64,
    /// Documents in those rows; a reader that goes on here would otherwise have to count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<u64>,
}

impl Cursor {
    /// Any place: `position` rows into `epoch`.
    ///
    /// The rows there are found in constant time. The number of documents before them, which orders stratified timesteps, is
    /// counted from the footers of the shards, at some nanoseconds a row; the cursor that a window came with knows it.
    #[must_use]
    pub fn at(epoch: u64, position: u64) -> Self {
        Self { epoch, position, documents: (position == 0).then_some(0) }
    }
}
