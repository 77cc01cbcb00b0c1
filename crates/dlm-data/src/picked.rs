//! Rows of which some stay, by what the earlier ones were: the costly part on several threads, the choice in the order of rows.

use crate::{error::Result, stage::map_in_order};
use datafusion::{
    arrow::{
        array::{ArrayRef, BooleanArray, RecordBatch},
        compute::filter_record_batch,
        datatypes::{Field, Schema},
    },
    execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::StreamExt;
use std::sync::Arc;

/// Makes a column `about` the rows of each batch on several threads, and keeps the rows that `stays` picks by it, batch after batch.
pub(crate) fn picked(
    input: SendableRecordBatchStream,
    threads: usize,
    about: Field,
    make: impl Fn(&RecordBatch) -> Result<ArrayRef> + Clone + Send + Sync + 'static,
    mut stays: impl FnMut(&ArrayRef) -> datafusion::error::Result<BooleanArray> + Send + 'static,
) -> SendableRecordBatchStream {
    let schema = input.schema();
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(about));
    let wider = Arc::new(Schema::new(fields));
    let output = Arc::clone(&wider);
    let looked_at = map_in_order(input, wider, threads, move |batch| {
        let columns = batch.columns().iter().cloned().chain([make(batch)?]).collect();
        Ok(RecordBatch::try_new(Arc::clone(&output), columns).expect("the columns are those of the schema"))
    });
    let rows = looked_at.map(move |batch| {
        let mut rows = batch?;
        let about = rows.remove_column(rows.num_columns() - 1);
        Ok(filter_record_batch(&rows, &stays(&about)?)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}
