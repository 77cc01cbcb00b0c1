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
}
