//! What the reader hands out: rows of token ids with labels, segments and positions, and the documents in them.

/// The label of a token that is no target.
pub const IGNORE_INDEX: i32 = -100;

/// Rows of equal length, side by side in memory (row-major).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Tokens in a row, padding included.
    pub seq_len: usize,
    /// Token ids, `rows * seq_len`.
    pub ids: Vec<i32>,
    /// Target ids, [`IGNORE_INDEX`] where there is no target; `rows * seq_len`.
    pub labels: Vec<i32>,
    /// The segment a token belongs to, from 1 in each row; 0 for padding. `rows * seq_len`.
    pub segment_ids: Vec<i32>,
    /// Positions, from 0 in each segment; `rows * seq_len`.
    pub position_ids: Vec<i32>,
    /// The documents in the rows, row by row and segment by segment.
    pub documents: Vec<Document>,
}

/// A document, or a piece of one, in a row of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// The row in the batch.
    pub row: usize,
    /// The segment in the row, from 1.
    pub segment: i32,
    /// The column of its first token in the row.
    pub start: usize,
    /// Its number of tokens.
    pub len: usize,
    /// Which document: the number of its row over all sources; in a mixture, that of the dataset above bit 48.
    pub id: i64,
    /// Where a cut piece begins in its document, in tokens.
    pub offset: i64,
    /// How often its row came before in this epoch: 0 unless a dataset is given a larger share than it has rows.
    pub occurrence: u64,
    /// How many documents and pieces came before in this epoch's order.
    pub ordinal: u64,
}
