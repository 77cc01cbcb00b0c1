//! The `truncate` and `chunk` steps: documents of tokens cut to a length.

use crate::{
    account::Account,
    answer::is_target,
    batch::IGNORE_INDEX,
    error::{DataError, Result},
    plan::ROW,
    scan::RowMap,
    stage::BatchStage,
    tokenize::{INPUT_IDS, LABELS, int32_lists},
};
use datafusion::arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt64Array},
    compute::take,
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef},
};
use serde::{Deserialize, Serialize};
use std::{ops::Range, sync::Arc};

/// Where a row's tokens begin in their document.
pub(crate) const OFFSET: &str = "__offset";
/// Whether the end of the document was cut off, so that a row's last token is not its last.
pub(crate) const END_CUT: &str = "__end_cut";

/// Cuts the rest of long documents off. What is cut off is counted in the manifest, and so is a document of which no target
/// is left: it teaches nothing and is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truncate {
    /// Tokens that stay, at most.
    pub max_tokens: usize,
    /// Which end is cut off.
    #[serde(default)]
    pub side: Side,
}

/// An end of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Its beginning.
    Left,
    /// Its end.
    #[default]
    Right,
}

/// Cuts long documents into pieces, each a document of its own that remembers its offset.
///
/// With an overlap a piece begins with the last tokens of the one before. There they are context and no targets, so that every
/// token is a target once; the manifest counts them as repeated. A prompt that fills the first piece is an error that names the
/// row, as it is for packing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Tokens in a piece, at most.
    pub max_tokens: usize,
    /// Tokens that a piece repeats.
    #[serde(default)]
    pub overlap: usize,
}

impl Truncate {
    /// Cuts off what comes after so many tokens.
    #[must_use]
    pub fn new(max_tokens: usize) -> Self {
        Self { max_tokens, side: Side::default() }
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        if self.max_tokens == 0 {
            return Err(DataError::pipeline("`truncate.max_tokens` is 0, and has to be 1 or more"));
        }
        Ok(())
    }

    fn kept(&self, len: usize) -> Range<usize> {
        let kept = len.min(self.max_tokens);
        match self.side {
            Side::Left => len - kept..len,
            Side::Right => 0..kept,
        }
    }
}

impl Chunk {
    /// Pieces of so many tokens without overlap.
    #[must_use]
    pub fn new(max_tokens: usize) -> Self {
        Self { max_tokens, overlap: 0 }
    }

    /// Says what is wrong with the options.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { max_tokens, overlap } = self;
        if overlap >= max_tokens {
            return Err(DataError::pipeline(format!(
                "`chunk.overlap` is {overlap}, and has to be less than `chunk.max_tokens`, {max_tokens}"
            )));
        }
        Ok(())
    }

    /// The pieces of a document; one without tokens is one piece.
    fn pieces(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let Self { max_tokens, overlap } = *self;
        let starts = (0..len.saturating_sub(overlap).max(1)).step_by(max_tokens - overlap);
        starts.map(move |start| start..len.min(start + max_tokens))
    }
}

/// The reason that the account has for documents that `truncate` leaves out because nothing to learn is left of them.
pub(crate) const NO_TARGET_LEFT: &str = "truncate: no target left";

/// Either of the two steps.
#[derive(Debug, Clone)]
pub(crate) enum Cut {
    Truncate(Truncate),
    Chunk(Chunk),
}

/// Cutting in a plan.
#[derive(Debug)]
pub(crate) struct CutStage {
    pub(crate) cut: Cut,
    pub(crate) input: SchemaRef,
    pub(crate) rows: Arc<RowMap>,
    pub(crate) account: Arc<Account>,
    pub(crate) threads: usize,
}

/// Rows after cutting, and what was lost and repeated on the way.
#[derive(Default)]
struct Pieces {
    rows: Vec<u64>,
    offsets: Vec<i64>,
    ends_cut: Vec<bool>,
    ids: Vec<Vec<i32>>,
    labels: Vec<Vec<i32>>,
    /// Row and tokens.
    cut_off: Vec<(usize, u64)>,
    without_target: Vec<(usize, u64)>,
    repeated: Vec<(usize, u64)>,
}

impl BatchStage for CutStage {
    fn name(&self) -> &'static str {
        match self.cut {
            Cut::Truncate(_) => "Truncate",
            Cut::Chunk(_) => "Chunk",
        }
    }

    fn options(&self) -> String {
        match &self.cut {
            Cut::Truncate(Truncate { max_tokens, side }) => format!("max_tokens={max_tokens}, side={side:?}"),
            Cut::Chunk(Chunk { max_tokens, overlap }) => format!("max_tokens={max_tokens}, overlap={overlap}"),
        }
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = self.input.fields().to_vec();
        for (name, data_type) in [(OFFSET, DataType::Int64), (END_CUT, DataType::Boolean)] {
            if self.input.column_with_name(name).is_none() {
                fields.push(Arc::new(Field::new(name, data_type, false)));
            }
        }
        Arc::new(Schema::new(fields))
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn map(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let (ids, labels) = (batch[INPUT_IDS].as_list::<i32>(), batch[LABELS].as_list::<i32>());
        let rows = batch[ROW].as_primitive::<Int64Type>();
        let before = batch.column_by_name(OFFSET).map(AsArray::as_primitive::<Int64Type>);
        let cut_before = batch.column_by_name(END_CUT).map(AsArray::as_boolean);
        let mut pieces = Pieces::default();
        for i in 0..batch.num_rows() {
            let (ids, labels) = (ids.value(i), labels.value(i));
            let (ids, labels) = (ids.as_primitive::<Int32Type>().values(), labels.as_primitive::<Int32Type>().values());
            let first = before.map_or(0, |before| before.value(i));
            let is_cut = cut_before.is_some_and(|cut| cut.value(i));
            let room = self.expect_room(labels);
            room.map_err(|message| self.rows.error(rows.value(i), message))?;
            self.cut(i, (ids, labels), (first, is_cut), &mut pieces);
        }
        self.account.dropped_tokens(batch, "truncate: beyond max_tokens", std::mem::take(&mut pieces.cut_off));
        self.account.dropped_tokens(batch, NO_TARGET_LEFT, std::mem::take(&mut pieces.without_target));
        self.account.added_tokens(batch, "chunk: overlap", std::mem::take(&mut pieces.repeated));

        let indices = UInt64Array::from(pieces.rows);
        let schema = self.schema();
        let column = |field: &Arc<Field>| -> Result<ArrayRef> {
            Ok(match field.name().as_str() {
                INPUT_IDS => int32_lists(pieces.ids.iter().map(Vec::as_slice)),
                LABELS => int32_lists(pieces.labels.iter().map(Vec::as_slice)),
                OFFSET => Arc::new(Int64Array::from_iter_values(pieces.offsets.iter().copied())),
                END_CUT => Arc::new(BooleanArray::from(pieces.ends_cut.clone())),
                name => take(&batch[name], &indices, None)
                    .map_err(|error| DataError::from_datafusion(error.into(), self.name()))?,
            })
        };
        let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are those of the schema"))
    }
}

impl CutStage {
    /// Refuses a prompt that fills the first piece: cut off it, an answer answers nothing.
    fn expect_room(&self, labels: &[i32]) -> std::result::Result<(), String> {
        let Cut::Chunk(Chunk { max_tokens, .. }) = self.cut else { return Ok(()) };
        match labels.iter().position(|label| is_target(*label)) {
            Some(prompt) if prompt >= max_tokens => Err(format!(
                "its prompt has {prompt} tokens and leaves no room for an answer in pieces of {max_tokens}; a larger \
                 `chunk.max_tokens` has, and the step `filter = \"array_max(array_slice(labels, 1, {max_tokens})) >= 0\"` in front of it \
                 leaves such rows out"
            )),
            _ => Ok(()),
        }
    }

    /// Cuts a document that begins at `first` in its own and whose end may be cut off already.
    fn cut(&self, row: usize, (ids, labels): (&[i32], &[i32]), (first, is_cut): (i64, bool), pieces: &mut Pieces) {
        let mut push = |range: Range<usize>, context: usize| {
            let mut labels = labels[range.clone()].to_vec();
            labels[..context].fill(IGNORE_INDEX);
            pieces.rows.push(row as u64);
            pieces.offsets.push(first + i64::try_from(range.start).expect("a document fits in memory"));
            pieces.ends_cut.push(is_cut || range.end < ids.len());
            pieces.ids.push(ids[range].to_vec());
            pieces.labels.push(labels);
        };
        match &self.cut {
            Cut::Truncate(truncate) => {
                let kept = truncate.kept(ids.len());
                let has_target = |labels: &[i32]| labels.iter().any(|label| is_target(*label));
                if has_target(labels) && !has_target(&labels[kept.clone()]) {
                    pieces.without_target.push((row, ids.len() as u64));
                } else {
                    if kept.len() < ids.len() {
                        pieces.cut_off.push((row, (ids.len() - kept.len()) as u64));
                    }
                    push(kept, 0);
                }
            }
            Cut::Chunk(chunk) => {
                for piece in chunk.pieces(ids.len()) {
                    let context = if piece.start == 0 { 0 } else { chunk.overlap };
                    if context > 0 {
                        pieces.repeated.push((row, context as u64));
                    }
                    push(piece, context);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_a_document_and_repeat_what_is_asked(len in 0usize..60, max in 1usize..20, overlap in 0usize..20) {
            prop_assume!(overlap < max);
            let pieces: Vec<_> = Chunk { max_tokens: max, overlap }.pieces(len).collect();
            prop_assert_eq!((pieces[0].start, pieces[pieces.len() - 1].end), (0, len));
            for pair in pieces.windows(2) {
                prop_assert_eq!(pair[1].start, pair[0].end - overlap);
                prop_assert_eq!(pair[0].len(), max);
                prop_assert!(pair[1].len() > overlap, "a piece has something new");
            }
        }
    }

    #[test]
    fn truncation_keeps_one_end() {
        assert_eq!(Truncate::new(3).kept(5), 0..3);
        assert_eq!(Truncate { max_tokens: 3, side: Side::Left }.kept(5), 2..5);
        assert_eq!(Truncate::new(3).kept(2), 0..2);
    }
}
