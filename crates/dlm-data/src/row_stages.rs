//! Small stages that leave the columns alone: counting rows, numbering them, stopping after so many.

use crate::{ledger::StepCounter, stage::Stage};
use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, RecordBatch},
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use std::{fmt, pin::Pin, sync::Arc};

/// Rows on their way.
type Rows = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

/// A stage that is nothing but a change of the stream of rows.
pub(crate) struct RowStage {
    name: &'static str,
    options: String,
    schema: SchemaRef,
    change: Box<dyn Fn(SendableRecordBatchStream) -> Rows + Send + Sync>,
}

impl fmt::Debug for RowStage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}({})", self.name, self.options)
    }
}

impl Stage for RowStage {
    fn name(&self) -> &'static str {
        self.name
    }

    fn options(&self) -> String {
        self.options.clone()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), (self.change)(input))))
    }
}

/// Counts the rows that a step left.
pub(crate) fn tally(step: String, input: SchemaRef, counter: Arc<StepCounter>) -> RowStage {
    let change = move |input: SendableRecordBatchStream| -> Rows {
        let counter = Arc::clone(&counter);
        Box::pin(input.inspect_ok(move |batch| counter.passed(batch.num_rows())))
    };
    RowStage { name: "Tally", options: step, schema: input, change: Box::new(change) }
}

/// Lets the first rows through and then reads no more.
///
/// DataFusion's own limit would make a sort below it hold all these rows in memory; a sort below this one spills.
pub(crate) fn limit(rows: usize, input: SchemaRef) -> RowStage {
    let change = move |input: SendableRecordBatchStream| -> Rows {
        Box::pin(stream::try_unfold((input, rows), |(mut input, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let batch = input.next().await.transpose()?;
            Ok(batch.map(|batch| {
                let rows = left.min(batch.num_rows());
                (batch.slice(0, rows), (input, left - rows))
            }))
        }))
    };
    RowStage { name: "Limit", options: rows.to_string(), schema: input, change: Box::new(change) }
}

/// Numbers the rows from 0 in a column of ours, in place of such a column where there is one.
pub(crate) fn row_number(column: &'static str, input: &Schema) -> RowStage {
    let number = Arc::new(Field::new(column, DataType::Int64, false));
    let others = input.fields().iter().filter(|field| field.name() != column).cloned();
    let schema = Arc::new(Schema::new([number].into_iter().chain(others).collect::<Vec<_>>()));
    let output = Arc::clone(&schema);
    let change = move |input: SendableRecordBatchStream| -> Rows {
        let (schema, mut next) = (Arc::clone(&output), 0);
        Box::pin(input.map(move |batch| {
            let batch = batch?;
            let first = next;
            next += i64::try_from(batch.num_rows()).expect("rows fit in memory");
            let value = |field: &Arc<Field>| match field.name() {
                name if name == column => Arc::new(Int64Array::from_iter_values(first..next)) as ArrayRef,
                name => Arc::clone(&batch[name.as_str()]),
            };
            let columns = schema.fields().iter().map(value).collect();
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        }))
    };
    RowStage { name: "RowNumber", options: column.to_owned(), schema, change: Box::new(change) }
}
