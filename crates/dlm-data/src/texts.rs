//! The text of a pipeline, before it is tokenized: what a tokenizer is trained on.

use crate::{
    error::{DataError, Result},
    pipeline::Pipeline,
    plan::{Resources, Until, lower},
    prepare::runtime,
};
use datafusion::{
    arrow::array::{Array, StringArray},
    execution::SendableRecordBatchStream,
};
use futures::StreamExt;

/// The texts of a pipeline, one at a time; reading and filtering go on meanwhile.
pub struct Texts {
    runtime: tokio::runtime::Runtime,
    batches: SendableRecordBatchStream,
    batch: StringArray,
    next: usize,
    rows: u64,
}

impl Pipeline {
    /// The column of text (that of the tokenize step, or `text`) after the steps before `chat`, `tokenize` and `pack`. Nulls are
    /// left out. Blocks, and must not be called from asynchronous code.
    ///
    /// # Errors
    /// [`DataError::UnknownColumn`] when there is no such column, and what is wrong with the sources or the steps.
    pub fn texts(&self, resources: &Resources) -> Result<Texts> {
        let runtime = runtime(resources)?;
        let plan = lower(self, resources, Until::Text)?;
        let batches = runtime.block_on(plan.frame.execute_stream());
        let batches = batches.map_err(|error| DataError::from_datafusion(error, "the pipeline failed"))?;
        let batch = StringArray::from(Vec::<&str>::new());
        Ok(Texts { runtime, batches, batch, next: 0, rows: plan.rows })
    }
}

impl Texts {
    /// Rows in the sources: an upper bound for the number of texts.
    #[must_use]
    pub fn source_rows(&self) -> u64 {
        self.rows
    }

    fn advance(&mut self) -> Option<Result<()>> {
        let batch = self.runtime.block_on(self.batches.next())?;
        let column = batch
            .map_err(|error| DataError::from_datafusion(error, "the pipeline failed"))
            .and_then(|batch| crate::row::strings(batch.column(0)).map_err(DataError::Invalid));
        Some(column.map(|column| {
            self.batch = column;
            self.next = 0;
        }))
    }
}

impl Iterator for Texts {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        loop {
            while self.next < self.batch.len() {
                let i = self.next;
                self.next += 1;
                if !self.batch.is_null(i) {
                    return Some(Ok(self.batch.value(i).to_owned()));
                }
            }
            if let Err(error) = self.advance()? {
                return Some(Err(error));
            }
        }
    }
}
