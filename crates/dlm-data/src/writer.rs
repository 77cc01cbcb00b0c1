//! Packed rows to shards of both sides, on a thread of its own, with the journal of what is finished.

use crate::{
    checkpoint::Note,
    error::{DataError, Result},
    journal::{Journal, Origin},
    manifest::{Split, SplitInfo},
    pipeline::Pipeline,
    plan::VALIDATION,
    shard_writer::ShardWriter,
};
use datafusion::arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::{filter_record_batch, not},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
};

/// Writes shards of both sides and keeps the journal.
pub(crate) struct Writer {
    folder: PathBuf,
    origin: Origin,
    train: ShardWriter,
    validation: ShardWriter,
    rows: Arc<AtomicU64>,
}

impl Writer {
    /// A writer of a pipeline's output that goes on where a journal says.
    pub(crate) fn new(folder: &Path, pipeline: &Pipeline, origin: Origin, journal: Option<Journal>) -> Self {
        let sequence_len = pipeline.pack_step().map_or(1, |pack| pack.sequence_len);
        let shard_tokens =
            pipeline.output.as_ref().map_or_else(crate::pipeline::default_shard_tokens, |o| o.shard_tokens);
        let (train, validation) = journal.map_or_else(Default::default, |journal| (journal.train, journal.validation));
        let rows = train.iter().chain(&validation).map(|shard| shard.rows).sum();
        let writer = |split, finished| ShardWriter::new(folder, split, sequence_len, shard_tokens, finished);
        Self {
            train: writer(Split::Train, train),
            validation: writer(Split::Validation, validation),
            folder: folder.to_owned(),
            origin,
            rows: Arc::new(AtomicU64::new(rows)),
        }
    }

    /// Writes a batch, and the journal when that finished a shard.
    fn write(&mut self, batch: &RecordBatch, note: Note) -> Result<()> {
        let before = self.finished();
        let is_validation = batch[VALIDATION].as_boolean();
        let mut pieces = note.rows.into_iter();
        let is_train = not(is_validation).map_err(|error| failed(error.into()))?;
        self.train.write(&filtered(batch, &is_train)?, pieces.by_ref().take(is_train.true_count()))?;
        self.validation.write(&filtered(batch, is_validation)?, pieces)?;
        self.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        if self.finished() == before {
            return Ok(());
        }
        let mut checkpoint = note.checkpoint;
        for (state, writer) in checkpoint.sides.iter_mut().zip([&self.train, &self.validation]) {
            state.rows = writer.open_rows().to_vec();
        }
        let finished = |writer: &ShardWriter| writer.finished().to_vec();
        let (train, validation) = (finished(&self.train), finished(&self.validation));
        Journal { origin: self.origin.clone(), train, validation, checkpoint }.write(&self.folder)
    }

    fn finished(&self) -> usize {
        self.train.finished().len() + self.validation.finished().len()
    }

    fn finish(self) -> Result<(SplitInfo, SplitInfo)> {
        Ok((SplitInfo::of(self.train.finish()?), SplitInfo::of(self.validation.finish()?)))
    }
}

fn filtered(batch: &RecordBatch, side: &BooleanArray) -> Result<RecordBatch> {
    if side.true_count() == batch.num_rows() {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, side).map_err(|error| failed(error.into()))
}

fn failed(error: datafusion::error::DataFusionError) -> DataError {
    DataError::from_datafusion(error, "the pipeline failed")
}

/// A writer at work on a thread of its own, so that encoding and compressing do not keep the steps waiting.
pub(crate) struct WriterThread {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Result<Option<(SplitInfo, SplitInfo)>>>,
    rows: Arc<AtomicU64>,
}

enum Order {
    Write(Box<(RecordBatch, Note)>),
    Finish,
}

impl WriterThread {
    pub(crate) fn start(mut writer: Writer) -> Self {
        let (orders, mut receiver) = mpsc::channel(1);
        let rows = Arc::clone(&writer.rows);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(order) = receiver.blocking_recv() {
                match order {
                    Order::Write(rows) => writer.write(&rows.0, rows.1)?,
                    Order::Finish => return writer.finish().map(Some),
                }
            }
            Ok(None) // whoever gave the orders is gone: the last shard is no whole one
        });
        Self { orders, thread, rows }
    }

    /// Hands a batch over; false when the writer has failed, which [`finish`](Self::finish) tells about.
    pub(crate) async fn send(&self, batch: RecordBatch, note: Note) -> bool {
        self.orders.send(Order::Write(Box::new((batch, note)))).await.is_ok()
    }

    /// The number of rows written so far, while the writer is at work and after.
    pub(crate) fn rows(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rows)
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> Result<(SplitInfo, SplitInfo)> {
        let _ = self.orders.send(Order::Finish).await; // it fails when the writer has, as is seen below
        let finished = joined(self.thread.await)?;
        finished.ok_or_else(|| DataError::Invalid("writing was interrupted".to_owned()))
    }

    /// Waits until the writer has stopped, without finishing the last shard.
    pub(crate) async fn stop(self) -> Result<()> {
        drop(self.orders);
        joined(self.thread.await).map(drop)
    }
}

fn joined<T>(outcome: std::result::Result<Result<T>, JoinError>) -> Result<T> {
    outcome.unwrap_or_else(|error| Err(DataError::Invalid(format!("writing was interrupted: {error}"))))
}
