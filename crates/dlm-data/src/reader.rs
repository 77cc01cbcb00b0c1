//! Prepared rows to batches: shuffled anew in every epoch, one optimiser step at a time, resumable at any of them.

use crate::{
    batch::{Batch, Document},
    cursor::Cursor,
    error::{DataError, Result},
    mixture::{EpochOrder, Mixture},
    read_ahead::ReadAhead,
    shard::Row,
};
use std::ops::Range;

/// How rows are grouped and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderConfig {
    /// Rows in a batch.
    pub micro_batch_size: usize,
    /// Batches in a window, which is one step of the optimiser: of all processes together.
    pub micro_batches_per_window: usize,
    /// Chooses the order of every epoch.
    pub seed: u64,
    /// Whether rows come in another order in every epoch; otherwise as they are stored, one dataset after the other.
    pub shuffle: bool,
    /// Which part of every window is handed out.
    pub process: Process,
    /// Windows that a thread of its own makes in advance; 0 makes each when it is asked for. What is handed out is the same.
    pub read_ahead: usize,
}

impl Default for ReaderConfig {
    /// Row by row, shuffled, in one process, nothing read ahead.
    fn default() -> Self {
        Self {
            micro_batch_size: 1,
            micro_batches_per_window: 1,
            seed: 0,
            shuffle: true,
            process: Process::default(),
            read_ahead: 0,
        }
    }
}

/// One of several processes that share the work on each window.
///
/// The batch `i` of a window belongs to the process of rank `i % world_size`: each batch to exactly one, whatever the numbers.
/// Batches are the same as in a single process, and so are the ids, occurrences and ordinals of their documents, from which noise
/// follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Which one, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
}

impl Default for Process {
    /// The only one.
    fn default() -> Self {
        Self { rank: 0, world_size: 1 }
    }
}

impl Process {
    /// Whether a batch of a window belongs to this process.
    #[must_use]
    pub fn has(&self, micro_batch: usize) -> bool {
        micro_batch % self.world_size == self.rank
    }
}

/// What one step of the optimiser works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The batches of this process. The last window of an epoch may have fewer, and its last batch fewer rows; a window with
    /// fewer batches than there are processes leaves some process with none.
    pub micro_batches: Vec<Batch>,
    /// Where to go on after this window.
    pub cursor: Cursor,
}

/// Reads windows, epoch after epoch without end. Of a single dataset every epoch has every row once; for several see [`Mixture`].
#[derive(Debug)]
pub struct Reader {
    maker: WindowMaker,
    /// The thread that makes windows in advance, once it was needed.
    ahead: Option<ReadAhead>,
}

impl Reader {
    /// A reader of one dataset or of a mixture that goes on at `cursor`.
    ///
    /// Nothing is read here. Which row stands at a place is computed, so getting there costs nothing either.
    ///
    /// # Errors
    /// [`DataError::Invalid`] when a size is 0, there is no such rank or the cursor lies beyond the data;
    /// [`DataError::EmptySide`] when there is no row.
    pub fn new(data: impl Into<Mixture>, config: ReaderConfig, cursor: Cursor) -> Result<Self> {
        let data = data.into();
        if config.micro_batch_size == 0 || config.micro_batches_per_window == 0 {
            return Err(DataError::Invalid("a window needs at least one batch of at least one row".to_owned()));
        }
        let Process { rank, world_size } = config.process;
        if rank >= world_size {
            return Err(DataError::Invalid(format!("there is no rank {rank} among {world_size} processes")));
        }
        if data.rows() == 0 {
            let empty = data.datasets().next().expect("a mixture has a dataset").0;
            return Err(DataError::EmptySide { path: empty.folder().to_owned(), split: empty.split() });
        }
        if cursor.position > data.rows() {
            let (position, rows) = (cursor.position, data.rows());
            let message = format!("the cursor stands at row {position} of an epoch, and the data has {rows} rows");
            return Err(DataError::Invalid(message));
        }
        Ok(Self { maker: WindowMaker::new(data, config, cursor), ahead: None })
    }

    /// Where the next window begins.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.maker.cursor
    }

    /// Windows in an epoch, a smaller last one included.
    #[must_use]
    pub fn windows_per_epoch(&self) -> u64 {
        self.maker.data.rows().div_ceil(self.maker.window_rows())
    }

    /// Goes to another place, in constant time (see [`Cursor::at`]).
    ///
    /// # Errors
    /// [`DataError::Invalid`] when it lies beyond the data; the reader then stands where it stood.
    pub fn skip_to(&mut self, cursor: Cursor) -> Result<()> {
        let WindowMaker { data, config, .. } = &self.maker;
        *self = Self::new(data, *config, cursor)?;
        Ok(())
    }

    /// Reads the next window.
    ///
    /// # Errors
    /// [`DataError::Shard`] when a shard is damaged. The reader then stands where it stood.
    pub fn next_window(&mut self) -> Result<Window> {
        if self.maker.config.read_ahead == 0 {
            return self.maker.next_window();
        }
        let ahead = match &mut self.ahead {
            Some(ahead) => ahead,
            None => self.ahead.insert(ReadAhead::start(self.maker.clone(), self.maker.config.read_ahead)?),
        };
        match ahead.next_window() {
            Ok(window) => {
                self.maker.cursor = window.cursor;
                Ok(window)
            }
            Err(error) => {
                // The thread has ended; the next try begins another one where this reader stands, in the order of that epoch: the
                // maker here has that of the epoch in which the thread began.
                self.ahead = None;
                let WindowMaker { data, config, cursor, .. } = &self.maker;
                self.maker = WindowMaker::new(data.clone(), *config, *cursor);
                Err(error)
            }
        }
    }
}

/// Makes one window after the other.
#[derive(Debug, Clone)]
pub(crate) struct WindowMaker {
    data: Mixture,
    config: ReaderConfig,
    cursor: Cursor,
    /// The order of the cursor's epoch.
    order: EpochOrder,
}

impl WindowMaker {
    fn new(data: Mixture, config: ReaderConfig, cursor: Cursor) -> Self {
        Self { order: EpochOrder::new(&data, config.seed, cursor.epoch, config.shuffle), data, config, cursor }
    }

    fn window_rows(&self) -> u64 {
        (self.config.micro_batch_size as u64).saturating_mul(self.config.micro_batches_per_window as u64)
    }

    /// The next window; where that fails, nothing has changed.
    pub(crate) fn next_window(&mut self) -> Result<Window> {
        if self.cursor.position >= self.data.rows() {
            *self = Self::new(self.data.clone(), self.config, Cursor::at(self.cursor.epoch + 1, 0));
        }
        let Cursor { epoch, position, documents } = self.cursor;
        let end = position.saturating_add(self.window_rows()).min(self.data.rows());
        let mut documents = match documents {
            Some(documents) => documents,
            None => self.documents_in(0..position)?,
        };
        let mut micro_batches = Vec::new();
        for (number, start) in (position..end).step_by(self.config.micro_batch_size).enumerate() {
            let places = start..(start + self.config.micro_batch_size as u64).min(end);
            if self.config.process.has(number) {
                micro_batches.push(self.batch(places, &mut documents)?);
            } else {
                documents += self.documents_in(places)?;
            }
        }
        self.cursor = Cursor { epoch, position: end, documents: Some(documents) };
        Ok(Window { epoch, micro_batches, cursor: self.cursor })
    }

    fn documents_in(&self, places: Range<u64>) -> Result<u64> {
        places.map(|place| self.data.documents_in(self.order.at(place)).map(u64::from)).sum()
    }

    fn batch(&self, places: Range<u64>, documents: &mut u64) -> Result<Batch> {
        let mut batch = Batch { seq_len: self.data.sequence_len(), ..Batch::default() };
        for place in places {
            let slot = self.order.at(place);
            batch.append(&self.data.read(slot)?, slot.occurrence, documents);
        }
        Ok(batch)
    }
}

impl Batch {
    /// One row by itself.
    #[must_use]
    pub fn of_row(row: &Row) -> Self {
        let mut batch = Self { seq_len: row.input_ids.len(), ..Self::default() };
        batch.append(row, 0, &mut 0);
        batch
    }

    /// Leaves only the first `rows` rows.
    pub fn truncate(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        for values in [&mut self.ids, &mut self.labels, &mut self.segment_ids, &mut self.position_ids] {
            values.truncate(self.rows * self.seq_len);
        }
        self.documents.retain(|document| document.row < rows);
    }

    /// Adds a row; `documents` counts those of the epoch so far.
    fn append(&mut self, row: &Row, occurrence: u64, documents: &mut u64) {
        let mut start = 0;
        for (segment, (id, offset)) in (1..).zip(row.document_ids.iter().zip(&row.document_offsets)) {
            let len = row.segment_ids[start..].iter().take_while(|found| **found == segment).count();
            self.documents.push(Document {
                row: self.rows,
                segment,
                start,
                len,
                id: *id,
                offset: *offset,
                occurrence,
                ordinal: *documents,
            });
            *documents += 1;
            start += len;
        }
        self.ids.extend_from_slice(&row.input_ids);
        self.labels.extend_from_slice(&row.labels);
        self.segment_ids.extend_from_slice(&row.segment_ids);
        self.position_ids.extend_from_slice(&row.position_ids);
        self.rows += 1;
    }
}
