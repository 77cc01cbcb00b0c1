//! Documents get numbers before they are tokenized, and those that a killed preparation was done with are left out.

use crate::{checkpoint::Resume, stage::Stage};
use datafusion::{
    arrow::{
        array::{BooleanArray, Int64Array, RecordBatch},
        compute::filter_record_batch,
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt, future};
use std::sync::Arc;

/// The number of a document among those that are tokenized, in their order. Behind it every step looks at one row at a time.
pub(crate) const NUMBER: &str = "__number";

/// The numbering in a plan.
#[derive(Debug)]
pub(crate) struct NumberStage {
    pub(crate) input: SchemaRef,
    /// Where a killed preparation left off.
    pub(crate) resume: Arc<Resume>,
}

impl Stage for NumberStage {
    fn name(&self) -> &'static str {
        "Number"
    }

    fn options(&self) -> String {
        "in the given order".to_owned()
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = self.input.fields().to_vec();
        fields.push(Arc::new(Field::new(NUMBER, DataType::Int64, false)));
        Arc::new(Schema::new(fields))
    }

    fn run(
        self: Arc<Self>,
        input: SendableRecordBatchStream,
        _: &Arc<TaskContext>,
    ) -> datafusion::error::Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let mut next = 0;
        let stage = Arc::clone(&self);
        let numbered = input
            .map(move |batch| stage.map(&batch?, &mut next))
            .filter(|batch| future::ready(batch.as_ref().map_or(true, |batch| batch.num_rows() > 0)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, numbered)))
    }
}

impl NumberStage {
    fn map(&self, batch: &RecordBatch, next: &mut i64) -> datafusion::error::Result<RecordBatch> {
        let start = *next;
        *next += i64::try_from(batch.num_rows()).expect("rows fit in memory");
        let numbers: Int64Array = (start..*next).collect::<Vec<_>>().into();
        let wanted = self.resume.get().filter(|resumed| start < resumed.next_number()).map(|resumed| {
            numbers.iter().map(|number| number.map(|number| resumed.needs_number(number))).collect::<BooleanArray>()
        });
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(numbers));
        let numbered = RecordBatch::try_new(self.schema(), columns)?;
        match wanted {
            None => Ok(numbered),
            Some(wanted) => Ok(filter_record_batch(&numbered, &wanted)?),
        }
    }
}
