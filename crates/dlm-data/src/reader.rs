//! Prepared rows to batches: shuffled anew in every epoch, one optimiser step at a time, resumable at any of them.

use crate::{
    batch::{Batch, Document},
    cursor::Cursor,
    error::{DataError, Result},
    prepared::PreparedData,
    shard::Row,
    shuffle::Permutation,
};

/// How rows are grouped and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderConfig {
    /// Rows in a batch.
    pub micro_batch_size: usize,
    /// Batches in a window, which is one step of the optimiser (gradient accumulation).
    pub micro_batches_per_window: usize,
    /// Chooses the order of every epoch.
    pub seed: u64,
    /// Whether rows come in another order in every epoch; otherwise as they are stored.
    pub shuffle: bool,
}

/// What one step of the optimiser works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The batches. The last window of an epoch may have fewer, and its last batch fewer rows.
    pub micro_batches: Vec<Batch>,
    /// Where to go on after this window.
    pub cursor: Cursor,
}

/// Reads windows, epoch after epoch without end. Every epoch has every row once.
#[derive(Debug)]
pub struct Reader {
    data: PreparedData,
    config: ReaderConfig,
    cursor: Cursor,
    documents_per_row: Vec<u32>,
    /// The order of the cursor's epoch.
    order: Order,
    /// Documents in the rows of this epoch before the cursor.
    documents_before: u64,
}

/// The order of rows in an epoch.
#[derive(Debug)]
enum Order {
    Stored,
    Shuffled(Permutation),
}

impl Order {
    fn row(&self, place: u64) -> u64 {
        match self {
            Self::Stored => place,
            Self::Shuffled(permutation) => permutation.at(place),
        }
    }
}

impl Reader {
    /// A reader that goes on at `cursor`.
    ///
    /// Which row stands at a place is computed, so no row is read to get there; the documents before it are counted anew, at
    /// some nanoseconds a row.
    ///
    /// # Errors
    /// [`DataError::Invalid`] when a size is 0 or the cursor lies beyond the data; [`DataError::Shard`] when a footer is
    /// damaged.
    pub fn new(data: &PreparedData, config: ReaderConfig, cursor: Cursor) -> Result<Self> {
        if config.micro_batch_size == 0 || config.micro_batches_per_window == 0 {
            return Err(DataError::Invalid("a window needs at least one batch of at least one row".to_owned()));
        }
        if data.rows() == 0 {
            return Err(DataError::Invalid("there is no row to read".to_owned()));
        }
        if cursor.position > data.rows() {
            let (position, rows) = (cursor.position, data.rows());
            let message = format!("the cursor stands at row {position} of an epoch, and the data has {rows} rows");
            return Err(DataError::Invalid(message));
        }
        let mut reader = Self {
            documents_per_row: data.documents_per_row()?,
            data: data.clone(),
            config,
            cursor,
            order: Order::Stored,
            documents_before: 0,
        };
        reader.begin_epoch(cursor);
        Ok(reader)
    }

    /// Where the next window begins.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Windows in an epoch, a smaller last one included.
    #[must_use]
    pub fn windows_per_epoch(&self) -> u64 {
        self.data.rows().div_ceil(self.window_rows())
    }

    /// Reads the next window.
    ///
    /// # Errors
    /// [`DataError::Shard`] when a shard is damaged. The reader then stands where it stood.
    pub fn next_window(&mut self) -> Result<Window> {
        if self.cursor.position >= self.data.rows() {
            self.begin_epoch(Cursor { epoch: self.cursor.epoch + 1, position: 0 });
        }
        let end = (self.cursor.position + self.window_rows()).min(self.data.rows());
        let mut documents = self.documents_before;
        let mut micro_batches = Vec::new();
        let mut start = self.cursor.position;
        while start < end {
            let stop = (start + self.config.micro_batch_size as u64).min(end);
            micro_batches.push(self.batch(start..stop, &mut documents)?);
            start = stop;
        }
        self.documents_before = documents;
        self.cursor.position = end;
        Ok(Window { epoch: self.cursor.epoch, micro_batches, cursor: self.cursor })
    }

    fn window_rows(&self) -> u64 {
        (self.config.micro_batch_size as u64).saturating_mul(self.config.micro_batches_per_window as u64)
    }

    fn begin_epoch(&mut self, cursor: Cursor) {
        self.cursor = cursor;
        self.order = if self.config.shuffle {
            Order::Shuffled(Permutation::new(self.data.rows(), self.config.seed, cursor.epoch))
        } else {
            Order::Stored
        };
        let count = |place| {
            let row = usize::try_from(self.order.row(place)).expect("rows fit in memory");
            u64::from(self.documents_per_row[row])
        };
        self.documents_before = (0..cursor.position).map(count).sum();
    }

    fn batch(&self, places: std::ops::Range<u64>, documents: &mut u64) -> Result<Batch> {
        let mut batch = Batch { seq_len: self.data.sequence_len(), ..Batch::default() };
        for place in places {
            let row = self.data.read_row(self.order.row(place))?;
            append(&mut batch, &row, documents);
        }
        Ok(batch)
    }
}

/// Adds a row to a batch; `documents` counts those of the epoch so far.
fn append(batch: &mut Batch, row: &Row, documents: &mut u64) {
    let mut start = 0;
    for (segment, (id, offset)) in (1..).zip(row.document_ids.iter().zip(&row.document_offsets)) {
        let len = row.segment_ids[start..].iter().take_while(|found| **found == segment).count();
        batch.documents.push(Document {
            row: batch.rows,
            segment,
            start,
            len,
            id: *id,
            offset: *offset,
            occurrence: 0,
            ordinal: *documents,
        });
        *documents += 1;
        start += len;
    }
    batch.ids.extend_from_slice(&row.input_ids);
    batch.labels.extend_from_slice(&row.labels);
    batch.segment_ids.extend_from_slice(&row.segment_ids);
    batch.position_ids.extend_from_slice(&row.position_ids);
    batch.rows += 1;
}
