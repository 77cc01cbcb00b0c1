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
use futures::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// Counts the rows that a step left.
#[derive(Debug)]
pub(crate) struct TallyStage {
    pub(crate) step: String,
    pub(crate) input: SchemaRef,
    pub(crate) counter: Arc<StepCounter>,
}

impl Stage for TallyStage {
    fn name(&self) -> &'static str {
        "Tally"
    }

    fn options(&self) -> String {
        self.step.clone()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let counted = input.inspect_ok(move |batch| self.counter.passed(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, counted)))
    }
}

/// Lets the first rows through and then reads no more.
///
/// DataFusion's own limit would make a sort below it hold all these rows in memory; a sort below this one spills.
#[derive(Debug)]
pub(crate) struct LimitStage {
    pub(crate) rows: usize,
    pub(crate) input: SchemaRef,
}

impl Stage for LimitStage {
    fn name(&self) -> &'static str {
        "Limit"
    }

    fn options(&self) -> String {
        self.rows.to_string()
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.input)
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let first = stream::try_unfold((input, self.rows), |(mut input, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let batch = input.next().await.transpose()?;
            Ok(batch.map(|batch| {
                let rows = left.min(batch.num_rows());
                (batch.slice(0, rows), (input, left - rows))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, first)))
    }
}

/// Numbers the rows from 0 in a column of ours, in place of such a column where there is one.
#[derive(Debug)]
pub(crate) struct RowNumberStage {
    pub(crate) column: &'static str,
    pub(crate) input: SchemaRef,
}

impl Stage for RowNumberStage {
    fn name(&self) -> &'static str {
        "RowNumber"
    }

    fn options(&self) -> String {
        self.column.to_owned()
    }

    fn schema(&self) -> SchemaRef {
        let number = Arc::new(Field::new(self.column, DataType::Int64, false));
        let others = self.input.fields().iter().filter(|field| field.name() != self.column).cloned();
        Arc::new(Schema::new([number].into_iter().chain(others).collect::<Vec<_>>()))
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let mut next = 0;
        let numbered = input.map(move |batch| {
            let batch = batch?;
            let first = next;
            next += i64::try_from(batch.num_rows()).expect("rows fit in memory");
            let column = |field: &Arc<Field>| match field.name() {
                name if name == self.column => Arc::new(Int64Array::from_iter_values(first..next)) as ArrayRef,
                name => Arc::clone(&batch[name.as_str()]),
            };
            let schema = self.schema();
            let columns = schema.fields().iter().map(column).collect();
            Ok(RecordBatch::try_new(schema, columns)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, numbered)))
    }
}
