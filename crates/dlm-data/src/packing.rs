//! The pack step in a plan: documents in, rows of equal length out.

use crate::{
    error::{DataError, Result},
    pack::{PackedRow, Packer},
    plan::{Account, ROW, VALIDATION},
    scan::RowMap,
    stage::Stage,
    step::Pack,
    tokenize::{INPUT_IDS, LABELS, int32_lists, list_of_int32},
};
use datafusion::{
    arrow::{
        array::{ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, RecordBatch},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef},
    },
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt, stream};
use std::{fmt, sync::Arc};

/// The columns of prepared data.
pub(crate) const SEGMENT_IDS: &str = "segment_ids";
pub(crate) const POSITION_IDS: &str = "position_ids";
pub(crate) const DOCUMENT_IDS: &str = "document_ids";
pub(crate) const DOCUMENT_OFFSETS: &str = "document_offsets";

/// The schema of a shard.
pub(crate) fn shard_schema() -> Schema {
    let int64 =
        |name: &str| Field::new(name, DataType::List(Arc::new(Field::new("item", DataType::Int64, false))), false);
    Schema::new(vec![
        list_of_int32(INPUT_IDS),
        list_of_int32(LABELS),
        list_of_int32(SEGMENT_IDS),
        list_of_int32(POSITION_IDS),
        int64(DOCUMENT_IDS),
        int64(DOCUMENT_OFFSETS),
    ])
}

/// The pack step in a plan. The validation side is packed by itself.
pub(crate) struct PackStage {
    pub(crate) step: Pack,
    pub(crate) pad_id: i32,
    /// Ids below this exist.
    pub(crate) vocab_size: usize,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
}

impl fmt::Debug for PackStage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PackStage({})", self.options())
    }
}

/// The pack step at work.
struct Packing {
    stage: Arc<PackStage>,
    input: SendableRecordBatchStream,
    /// Training, validation.
    packers: [Packer; 2],
    memory: MemoryReservation,
    done: bool,
}

impl Stage for PackStage {
    fn name(&self) -> &'static str {
        "Pack"
    }

    fn options(&self) -> String {
        let Pack { sequence_len, strategy, window, overlong } = &self.step;
        format!("sequence_len={sequence_len}, {strategy:?}, window={window}, overlong: {overlong:?}")
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = shard_schema().fields().to_vec();
        fields.push(Arc::new(Field::new(VALIDATION, DataType::Boolean, false)));
        Arc::new(Schema::new(fields))
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let packer = || Packer::new(self.step.clone(), self.pad_id);
        let schema = self.schema();
        let packing = Packing {
            packers: [packer(), packer()],
            input,
            memory: MemoryConsumer::new("packing").register(context.memory_pool()),
            done: false,
            stage: self,
        };
        let rows = stream::try_unfold(packing, |mut packing| async move {
            let batch = packing.next().await?;
            Ok(batch.map(|batch| (batch, packing)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

impl Packing {
    /// The next rows that are finished.
    async fn next(&mut self) -> datafusion::error::Result<Option<RecordBatch>> {
        while !self.done {
            let mut finished = [Vec::new(), Vec::new()];
            match self.input.next().await {
                Some(batch) => self.push(&batch?, &mut finished)?,
                None => {
                    self.done = true;
                    for (packer, finished) in self.packers.iter_mut().zip(&mut finished) {
                        finished.extend(packer.finish());
                    }
                }
            }
            // A token waits as an id and a label.
            let held: usize = self.packers.iter().map(Packer::held_tokens).sum();
            self.memory.try_resize(held * 2 * size_of::<i32>())?;
            if finished.iter().any(|rows| !rows.is_empty()) {
                return Ok(Some(to_batch(&finished, &self.stage.schema())));
            }
        }
        Ok(None)
    }

    fn push(&mut self, batch: &RecordBatch, finished: &mut [Vec<PackedRow>; 2]) -> Result<()> {
        let rows = batch[ROW].as_primitive::<Int64Type>();
        let (ids, labels) = (batch[INPUT_IDS].as_list::<i32>(), batch[LABELS].as_list::<i32>());
        let validation = batch.column_by_name(VALIDATION).map(AsArray::as_boolean);
        for i in 0..batch.num_rows() {
            let (ids, labels) = (ids.value(i), labels.value(i));
            let (ids, labels) = (ids.as_primitive::<Int32Type>().values(), labels.as_primitive::<Int32Type>().values());
            let exists = |id: &&i32| usize::try_from(**id).is_ok_and(|id| id < self.stage.vocab_size);
            if let Some(id) = ids.iter().find(|id| !exists(id)) {
                let message = format!("token id {id} is none of the tokenizer's {}", self.stage.vocab_size);
                return Err(self.stage.rows.error(rows.value(i), message));
            }
            let side = usize::from(validation.is_some_and(|validation| validation.value(i)));
            let (packed, dropped) = self.packers[side].push(rows.value(i), ids, labels);
            finished[side].extend(packed);
            self.stage.account.packed(ids.len(), dropped);
        }
        Ok(())
    }
}

/// Packed rows of both sides as a batch.
fn to_batch(sides: &[Vec<PackedRow>; 2], schema: &SchemaRef) -> RecordBatch {
    let rows = || sides.iter().flatten();
    let int64_lists = |list: fn(&PackedRow) -> &Vec<i64>| -> ArrayRef {
        let item = Arc::new(Field::new("item", DataType::Int64, false));
        let values: Vec<i64> = rows().flat_map(|row| list(row).iter().copied()).collect();
        let offsets = OffsetBuffer::from_lengths(rows().map(|row| list(row).len()));
        Arc::new(ListArray::new(item, offsets, Arc::new(Int64Array::from(values)), None))
    };
    let sides = sides.iter().zip([false, true]).flat_map(|(rows, side)| rows.iter().map(move |_| Some(side)));
    let columns: Vec<ArrayRef> = vec![
        int32_lists(rows().map(|row| row.ids.as_slice())),
        int32_lists(rows().map(|row| row.labels.as_slice())),
        int32_lists(rows().map(|row| row.segment_ids.as_slice())),
        int32_lists(rows().map(|row| row.position_ids.as_slice())),
        int64_lists(|row| &row.document_ids),
        int64_lists(|row| &row.document_offsets),
        Arc::new(sides.collect::<BooleanArray>()),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).expect("the columns are those of the schema")
}

/// The error for a step that asks for a column that is not there.
pub(crate) fn require(step: &str, schema: &Schema, column: &str) -> Result<()> {
    if schema.column_with_name(column).is_some() {
        return Ok(());
    }
    Err(DataError::UnknownColumn {
        step: step.to_owned(),
        column: column.to_owned(),
        columns: crate::error::visible(schema.fields().iter().map(|field| field.name().as_str())),
    })
}
