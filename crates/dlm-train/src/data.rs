//! Where rows come from: prepared data, or a list in memory.

use crate::error::{Result, TrainError};
use dlm_data::{Batch, Cursor, DataError, Document, Mixture, PreparedData, Reader, ReaderConfig, Window};
use dlm_diffusion::{IGNORE_INDEX, NoiseKey, Purpose};

/// Rows to train or evaluate on.
pub trait RowSource {
    /// How many there are.
    fn rows(&self) -> usize;

    /// Tokens in each, padding included.
    fn seq_len(&self) -> usize;

    /// One row, as a batch of its own.
    ///
    /// # Errors
    /// When it cannot be read.
    fn row(&self, row: usize) -> Result<Batch>;

    /// All rows in windows of one optimiser step, epoch after epoch, beginning at `cursor`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn windows(&self, config: &ReaderConfig, cursor: Cursor) -> Result<Box<dyn WindowSource + '_>>;
}

/// Windows of rows without end, see [`RowSource::windows`].
pub trait WindowSource {
    /// Optimiser steps in a pass over all rows; the last of them may be smaller.
    fn windows_per_epoch(&self) -> u64;

    /// The rows of the next optimiser step.
    ///
    /// # Errors
    /// When they cannot be read.
    fn next_window(&mut self) -> Result<Window>;
}

impl RowSource for Mixture {
    fn rows(&self) -> usize {
        Mixture::rows(self) as usize
    }

    fn seq_len(&self) -> usize {
        self.sequence_len()
    }

    fn row(&self, row: usize) -> Result<Batch> {
        Ok(Batch::of_row(&self.read_row(row as u64)?))
    }

    fn windows(&self, config: &ReaderConfig, cursor: Cursor) -> Result<Box<dyn WindowSource + '_>> {
        Ok(Box::new(reader(self.clone(), *config, cursor)?))
    }
}

impl RowSource for PreparedData {
    fn rows(&self) -> usize {
        PreparedData::rows(self) as usize
    }

    fn seq_len(&self) -> usize {
        self.sequence_len()
    }

    fn row(&self, row: usize) -> Result<Batch> {
        Mixture::from(self).row(row)
    }

    fn windows(&self, config: &ReaderConfig, cursor: Cursor) -> Result<Box<dyn WindowSource + '_>> {
        Ok(Box::new(reader(self.into(), *config, cursor)?))
    }
}

fn reader(data: Mixture, config: ReaderConfig, cursor: Cursor) -> Result<Reader> {
    match Reader::new(data, config, cursor) {
        Err(DataError::EmptySide { .. }) => Err(TrainError::NoRows),
        reader => Ok(reader?),
    }
}

impl WindowSource for Reader {
    fn windows_per_epoch(&self) -> u64 {
        Reader::windows_per_epoch(self)
    }

    fn next_window(&mut self) -> Result<Window> {
        Ok(Reader::next_window(self)?)
    }
}

/// Documents in memory, one a row: for examples, tests, and data that is made on the spot.
///
/// ```
/// use dlm_train::{MemoryRows, RowSource};
///
/// // Two documents; the second is a question of two tokens and its answer.
/// let rows = MemoryRows::new(6, &[(vec![1, 2, 3], vec![1, 2, 3]), (vec![4, 5, 6, 7], vec![-100, -100, 6, 7])])?;
/// assert_eq!((rows.rows(), rows.seq_len()), (2, 6));
/// assert_eq!(rows.row(1)?.segment_ids, [1, 1, 1, 1, 0, 0]);
/// # Ok::<(), dlm_train::TrainError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRows {
    seq_len: usize,
    documents: Vec<(Vec<i32>, Vec<i32>)>,
}

impl MemoryRows {
    /// Rows of `seq_len` tokens from the ids and labels of documents, which may be shorter but not longer.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a document that is empty, longer than a row, or has not one label for each token.
    pub fn new(seq_len: usize, documents: &[(Vec<i32>, Vec<i32>)]) -> Result<Self> {
        for (ids, labels) in documents {
            crate::config::expect("documents", ids.len(), "rows of 1 to `seq_len` tokens", |len| {
                (1..=seq_len).contains(&len)
            })?;
            crate::config::expect("labels", labels.len(), "as many as there are ids", |len| len == ids.len())?;
        }
        Ok(Self { seq_len, documents: documents.to_vec() })
    }

    /// Rows in which every token is a target.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_texts(seq_len: usize, texts: &[Vec<i32>]) -> Result<Self> {
        let documents: Vec<_> = texts.iter().map(|ids| (ids.clone(), ids.clone())).collect();
        Self::new(seq_len, &documents)
    }

    /// The rows at these places of the epoch's order; `first_ordinal` is that of the first.
    fn batch(&self, rows: &[usize], first_ordinal: u64) -> Batch {
        let padded = |values: &[i32], pad: i32| {
            values.iter().copied().chain(std::iter::repeat(pad)).take(self.seq_len).collect()
        };
        let all = |of_row: &dyn Fn(usize) -> Vec<i32>| rows.iter().flat_map(|&row| of_row(row)).collect();
        let document = |(index, &row): (usize, &usize)| Document {
            row: index,
            segment: 1,
            start: 0,
            len: self.documents[row].0.len(),
            id: row as i64,
            offset: 0,
            occurrence: 0,
            ordinal: first_ordinal + index as u64,
        };
        Batch {
            rows: rows.len(),
            seq_len: self.seq_len,
            ids: all(&|row| padded(&self.documents[row].0, 0)),
            labels: all(&|row| padded(&self.documents[row].1, IGNORE_INDEX as i32)),
            segment_ids: all(&|row| padded(&vec![1; self.documents[row].0.len()], 0)),
            position_ids: all(&|row| padded(&(0..self.documents[row].0.len() as i32).collect::<Vec<_>>(), 0)),
            documents: rows.iter().enumerate().map(document).collect(),
        }
    }
}

impl RowSource for MemoryRows {
    fn rows(&self) -> usize {
        self.documents.len()
    }

    fn seq_len(&self) -> usize {
        self.seq_len
    }

    fn row(&self, row: usize) -> Result<Batch> {
        Ok(self.batch(&[row], 0))
    }

    fn windows(&self, config: &ReaderConfig, cursor: Cursor) -> Result<Box<dyn WindowSource + '_>> {
        if self.documents.is_empty() {
            return Err(TrainError::NoRows);
        }
        Ok(Box::new(MemoryWindows { rows: self, config: *config, cursor }))
    }
}

/// The rows of [`MemoryRows`] in windows; the cursor counts rows.
struct MemoryWindows<'a> {
    rows: &'a MemoryRows,
    config: ReaderConfig,
    cursor: Cursor,
}

impl MemoryWindows<'_> {
    fn window_len(&self) -> usize {
        self.config.micro_batch_size * self.config.micro_batches_per_window
    }
}

impl WindowSource for MemoryWindows<'_> {
    fn windows_per_epoch(&self) -> u64 {
        self.rows.rows().div_ceil(self.window_len()) as u64
    }

    fn next_window(&mut self) -> Result<Window> {
        let count = self.rows.rows();
        if self.cursor.position >= count as u64 {
            self.cursor = Cursor::at(self.cursor.epoch + 1, 0);
        }
        let Cursor { epoch, position, .. } = self.cursor;
        let order = if self.config.shuffle {
            NoiseKey::new(self.config.seed, Purpose::Length, epoch).permutation(count)
        } else {
            (0..count).collect()
        };
        let end = count.min(position as usize + self.window_len());
        let chunks = order[position as usize..end].chunks(self.config.micro_batch_size);
        let first = |index: usize| position + (index * self.config.micro_batch_size) as u64;
        let ours = chunks.enumerate().filter(|(index, _)| self.config.process.has(*index));
        let micro_batches = ours.map(|(index, rows)| self.rows.batch(rows, first(index))).collect();
        // Each row is one document.
        self.cursor = Cursor { epoch, position: end as u64, documents: Some(end as u64) };
        Ok(Window { epoch, micro_batches, cursor: self.cursor })
    }
}
