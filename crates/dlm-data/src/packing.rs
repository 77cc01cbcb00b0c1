//! The pack step in a plan: documents in, rows of equal length out.

use crate::{
    account::Account,
    answer::is_target,
    checkpoint::{Checkpoint, Note, Notes, Packed, Resume, Resumed, SideState, key, number_of},
    cut::OFFSET,
    error::{DataError, Result},
    number::NUMBER,
    pack::{Fragment, PackedRow, Packer, Piece},
    plan::{ROW, VALIDATION},
    scan::RowMap,
    stage::Stage,
    step::{Overlong, Pack},
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
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

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
    /// Where a killed preparation left off.
    pub(crate) resume: Arc<Resume>,
    /// Where packing stood when it gave out each of its batches.
    pub(crate) notes: Notes,
    pub(crate) packed: Arc<Mutex<Packed>>,
}

impl fmt::Debug for PackStage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PackStage({})", self.options())
    }
}

impl PackStage {
    /// Refuses a document that is too long to be of use.
    fn expect_room(&self, ids: &[i32], labels: &[i32]) -> Result<(), String> {
        let Pack { sequence_len, overlong, .. } = self.step;
        if ids.len() <= sequence_len {
            return Ok(());
        }
        let first_target = labels.iter().position(|label| is_target(*label));
        match (overlong, first_target) {
            (Overlong::Raise, _) => Err(format!("it has {} tokens, and a row has {sequence_len}", ids.len())),
            // Cut off its prompt, an answer answers nothing.
            (Overlong::Cut, Some(prompt)) if prompt >= sequence_len => Err(format!(
                "its prompt has {prompt} tokens and leaves no room for an answer in rows of {sequence_len}; a larger \
                 `pack.sequence_len` has, and `overlong = \"drop\"` leaves such rows out"
            )),
            _ => Ok(()),
        }
    }
}

/// The pack step at work.
struct Packing {
    stage: Arc<PackStage>,
    input: SendableRecordBatchStream,
    /// Training, validation.
    packers: [Packer; 2],
    memory: MemoryReservation,
    /// The document that comes next would have this number and part, if it comes of the same row as the last.
    next: (i64, i64),
    packed: Packed,
    /// The documents that a killed preparation had in hand, until all of them are here.
    wanted: HashMap<i64, Document>,
    is_restoring: bool,
    done: bool,
}

/// A document that is needed again.
struct Document {
    row: i64,
    /// Where it begins in the row that it was cut from.
    first: i64,
    ids: Vec<i32>,
    labels: Vec<i32>,
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
            next: (0, 0),
            packed: Packed::default(),
            wanted: HashMap::new(),
            is_restoring: self.resume.get().is_some(),
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
                    self.restore(&mut finished)?;
                    for (packer, finished) in self.packers.iter_mut().zip(&mut finished) {
                        finished.extend(packer.finish());
                    }
                }
            }
            // What is known of documents that are packed needs not be kept one by one.
            self.stage.account.settle(number_of(self.next_key()));
            *self.stage.packed.lock().unwrap_or_else(PoisonError::into_inner) = self.packed;
            // A token waits as an id and a label.
            let held: usize = self.packers.iter().map(Packer::held_tokens).sum();
            let wanted: usize = self.wanted.values().map(|document| document.ids.len()).sum();
            self.memory.try_resize((held + wanted) * 2 * size_of::<i32>())?;
            if finished.iter().any(|rows| !rows.is_empty()) {
                self.leave_note(&finished);
                return Ok(Some(to_batch(&finished, &self.stage.schema())));
            }
        }
        Ok(None)
    }

    fn push(&mut self, batch: &RecordBatch, finished: &mut [Vec<PackedRow>; 2]) -> Result<()> {
        let rows = batch[ROW].as_primitive::<Int64Type>();
        let numbers = batch[NUMBER].as_primitive::<Int64Type>();
        let (ids, labels) = (batch[INPUT_IDS].as_list::<i32>(), batch[LABELS].as_list::<i32>());
        let validation = batch.column_by_name(VALIDATION).map(AsArray::as_boolean);
        let offsets = batch.column_by_name(OFFSET).map(AsArray::as_primitive::<Int64Type>);
        for i in 0..batch.num_rows() {
            let first = offsets.map_or(0, |offsets| offsets.value(i));
            let (ids, labels) = (ids.value(i), labels.value(i));
            let (ids, labels) = (ids.as_primitive::<Int32Type>().values(), labels.as_primitive::<Int32Type>().values());
            let exists = |id: &&i32| usize::try_from(**id).is_ok_and(|id| id < self.stage.vocab_size);
            if let Some(id) = ids.iter().find(|id| !exists(id)) {
                let message = format!("token id {id} is none of the tokenizer's {}", self.stage.vocab_size);
                return Err(self.stage.rows.error(rows.value(i), message));
            }
            self.stage.expect_room(ids, labels).map_err(|message| self.stage.rows.error(rows.value(i), message))?;
            let key = self
                .key(numbers.value(i))
                .ok_or_else(|| self.stage.rows.error(rows.value(i), "it was cut into more than a million documents"))?;
            if self.is_restoring && self.keep_for_restoring(key, (rows.value(i), first), ids, labels) {
                continue;
            }
            self.restore(finished)?;
            let tokens = ids.len() as u64;
            self.packed.tokens += tokens;
            if !ids.is_empty() && !labels.iter().any(|label| is_target(*label)) {
                self.packed.targetless_documents += 1;
                self.packed.targetless_tokens += tokens;
                continue;
            }
            let side = usize::from(validation.is_some_and(|validation| validation.value(i)));
            let dropped = self.packers[side].push_keyed(rows.value(i), key, first, ids, labels, &mut finished[side]);
            self.packed.overlong_documents += u64::from(dropped);
            self.packed.overlong_tokens += if dropped { tokens } else { 0 };
        }
        Ok(())
    }

    /// The key of the document that comes next, whose row has this number.
    fn key(&mut self, number: i64) -> Option<i64> {
        let part = if self.next.0 == number { self.next.1 } else { 0 };
        self.next = (number, part + 1);
        key(number, part)
    }

    /// Documents with smaller keys have been packed.
    fn next_key(&self) -> i64 {
        let (number, part) = self.next;
        match self.stage.resume.get() {
            // What comes first are documents of before the kill.
            Some(resumed) if number < resumed.next_number() => resumed.checkpoint.next_key,
            _ => key(number, part).or_else(|| key(number + 1, 0)).unwrap_or(i64::MAX),
        }
    }

    /// Takes a document that was packed before the kill; says no to the first that was not.
    fn keep_for_restoring(&mut self, key: i64, (row, first): (i64, i64), ids: &[i32], labels: &[i32]) -> bool {
        let Some(resumed) = self.stage.resume.get().filter(|resumed| key < resumed.checkpoint.next_key) else {
            return false;
        };
        if resumed.needs_key(key) {
            self.wanted.insert(key, Document { row, first, ids: ids.to_vec(), labels: labels.to_vec() });
        }
        true
    }

    /// Puts things as they were before the kill, once everything that is needed for it is here.
    fn restore(&mut self, finished: &mut [Vec<PackedRow>; 2]) -> Result<()> {
        if !std::mem::take(&mut self.is_restoring) {
            return Ok(());
        }
        let stage = Arc::clone(&self.stage);
        let Some(resumed) = stage.resume.get() else { return Ok(()) };
        self.packed = resumed.checkpoint.packed;
        let sides = self.packers.iter_mut().zip(finished).zip(&resumed.checkpoint.sides);
        for ((packer, finished), state) in sides {
            let fragments = |pieces: &Vec<Piece>| {
                pieces.iter().map(|piece| fragment(piece, &self.wanted, resumed)).collect::<Result<Vec<_>>>()
            };
            for row in &state.rows {
                finished.push(packer.row(&fragments(row)?));
            }
            packer.hold(state.open.iter().map(fragments).collect::<Result<_>>()?, fragments(&state.waiting)?);
        }
        self.wanted = HashMap::new();
        Ok(())
    }

    /// Says where packing stands as it gives out these rows.
    fn leave_note(&self, finished: &[Vec<PackedRow>; 2]) {
        let next_key = self.next_key();
        let sides = self.packers.each_ref().map(|packer| {
            let (open, waiting) = packer.held();
            SideState { rows: Vec::new(), open, waiting }
        });
        let totals = self.stage.account.settle(number_of(next_key));
        let checkpoint = Checkpoint { next_key, totals, packed: self.packed, sides };
        let rows = finished.iter().flatten().map(|row| row.pieces.clone()).collect();
        self.stage.notes.lock().unwrap_or_else(PoisonError::into_inner).push_back(Note { checkpoint, rows });
    }
}

/// A piece with its tokens.
fn fragment(piece: &Piece, documents: &HashMap<i64, Document>, resumed: &Resumed) -> Result<Fragment> {
    let lost = || {
        let (found, needed) = (documents.len(), resumed.needed());
        DataError::Invalid(format!(
            "the killed preparation cannot be continued: of {needed} documents that it was working on {found} came back"
        ))
    };
    let document = documents.get(&piece.document).ok_or_else(lost)?;
    let end = piece.offset.checked_add(piece.len).filter(|end| *end <= document.ids.len()).ok_or_else(lost)?;
    Ok(Fragment {
        document: document.row,
        key: piece.document,
        first: document.first,
        offset: i64::try_from(piece.offset).expect("a document fits in memory"),
        ids: document.ids[piece.offset..end].to_vec(),
        labels: document.labels[piece.offset..end].to_vec(),
    })
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
