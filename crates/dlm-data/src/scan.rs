//! The rows of all sources as one DataFusion table: one file after the other, every row numbered.

use crate::{
    error::DataError,
    leaf::{Leaf, LeafExec},
    plan::ROW,
    row::strings,
    source::{Entry, OnError, OpenSource, SourceFile, Sources, all_rows},
};
use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{Array, AsArray, RecordBatch, StringArray},
        datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
    },
    catalog::{Session, TableProvider},
    datasource::TableType,
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::Expr,
    physical_plan::{ExecutionPlan, stream::RecordBatchReceiverStreamBuilder},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where every row came from, for error messages.
#[derive(Debug)]
pub(crate) struct RowMap {
    sources: Arc<Sources>,
    /// The step that made the rows, where they are none of a file.
    made_by: Option<String>,
}

impl RowMap {
    /// The rows that a step made out of these.
    pub(crate) fn made_by(&self, step: &str) -> Self {
        Self { sources: Arc::clone(&self.sources), made_by: Some(step.to_owned()) }
    }

    /// The step that made the rows, where they are none of a file.
    pub(crate) fn maker(&self) -> Option<&str> {
        self.made_by.as_deref()
    }

    /// What is listed of a row that cannot be used and is left out; the error for one that cannot be.
    pub(crate) fn leave_out(&self, row: i64, reason: String) -> Result<Entry, DataError> {
        match self.find(row) {
            (Some((source, file)), within) if source.on_error == OnError::Skip => {
                let (file, row) = (file.name.clone(), Some(within + 1));
                Ok(Entry { source: source.number, file, row, rows: Some(1), line: None, reason })
            }
            _ => Err(self.error(row, reason)),
        }
    }

    /// The error for a row that cannot be used, by its number over all sources.
    pub(crate) fn error(&self, row: i64, message: impl Into<String>) -> DataError {
        let (found, within) = self.find(row);
        let file = found.map(|(_, file)| file);
        if let Some(step) = &self.made_by {
            return DataError::MadeRow { step: step.clone(), row: within + 1, message: message.into() };
        }
        let path = file.map(SourceFile::shown).unwrap_or_default();
        DataError::Row { path, row: within + 1, message: message.into() }
    }

    /// The texts of a column.
    ///
    /// # Errors
    /// [`DataError::Row`] for the first that is null.
    pub(crate) fn texts(&self, batch: &RecordBatch, column: &str) -> Result<StringArray, DataError> {
        let texts = strings(&batch[column]).map_err(DataError::Invalid)?;
        match (0..texts.len()).find(|i| texts.is_null(*i)) {
            None => Ok(texts),
            Some(i) => {
                let row = batch[ROW].as_primitive::<Int64Type>().value(i);
                Err(self.error(row, format!("`{column}` is null")))
            }
        }
    }

    /// The numbers of the sources that these rows came from.
    pub(crate) fn sources_of(&self, rows: &[i64]) -> Vec<usize> {
        let source = |row: &i64| {
            let mut within = u64::try_from(*row).unwrap_or(0);
            if let Some(mixture) = &self.sources.mixture {
                return mixture.source_of(within);
            }
            let found = self.sources.given.iter().position(|given| {
                let here = within < *given;
                within -= if here { 0 } else { *given };
                here
            });
            found.unwrap_or(0)
        };
        rows.iter().map(source).collect()
    }

    /// The file of a row, and its number in it.
    fn find(&self, row: i64) -> (Option<(&OpenSource, &SourceFile)>, u64) {
        let mut within = u64::try_from(row).unwrap_or(0);
        if self.made_by.is_some() {
            return (None, within);
        }
        let source = match &self.sources.mixture {
            // The draws are repeated up to the one that gave the row.
            Some(mixture) => mixture.draws().nth(usize::try_from(within).unwrap_or(usize::MAX)).map(|(source, row)| {
                within = row;
                source
            }),
            None => self.sources.given.iter().position(|given| {
                let here = within < *given;
                within -= if here { 0 } else { *given };
                here
            }),
        };
        let found = source.map(|source| &self.sources.list[source]).and_then(|source| {
            let file = source.files.iter().find(|file| {
                let here = within < file.rows;
                within -= if here { 0 } else { file.rows };
                here
            });
            file.map(|file| (source, file))
        });
        (found, within)
    }
}

/// All files of a pipeline as one table.
#[derive(Debug)]
pub(crate) struct SourcesTable {
    sources: Arc<Sources>,
    schema: SchemaRef,
    rows_read: Arc<AtomicU64>,
}

impl SourcesTable {
    /// The table of these sources: their columns and the row's number. The rows that are read are counted.
    pub(crate) fn new(sources: Arc<Sources>, rows_read: Arc<AtomicU64>) -> Self {
        let mut fields = vec![Arc::new(Field::new(ROW, DataType::Int64, false))];
        fields.extend(sources.schema.fields().iter().cloned());
        Self { sources, schema: Arc::new(Schema::new(fields)), rows_read }
    }

    /// Where the rows come from.
    pub(crate) fn row_map(&self) -> RowMap {
        RowMap { sources: Arc::clone(&self.sources), made_by: None }
    }
}

#[async_trait]
impl TableProvider for SourcesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let (sources, rows_read) = (Arc::clone(&self.sources), Arc::clone(&self.rows_read));
        Ok(Arc::new(LeafExec::new(AllSources { sources, schema, rows_read })))
    }
}

/// Reads the files in one thread, which keeps the order of rows whatever the number of threads of the steps.
#[derive(Debug)]
struct AllSources {
    sources: Arc<Sources>,
    schema: SchemaRef,
    rows_read: Arc<AtomicU64>,
}

impl Leaf for AllSources {
    const NAME: &'static str = "SourcesExec";

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn describe(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let files = self.sources.files().count();
        write!(f, "{files} files")?;
        for file in self.sources.files().take(3) {
            write!(f, ", {} ({}, {} rows)", file.name, file.format.name(), file.rows)?;
        }
        if files > 3 {
            f.write_str(", ...")?;
        }
        if self.sources.mixture.is_some() {
            for (source, given) in self.sources.list.iter().zip(&self.sources.given) {
                let weight = source.weight.unwrap_or_default();
                write!(f, "; {given} rows of {} by weight {weight}", source.path)?;
            }
        }
        Ok(())
    }

    fn rows(&self, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (sources, schema) = (Arc::clone(&self.sources), Arc::clone(&self.schema));
        let rows_read = Arc::clone(&self.rows_read);
        let batch_rows = context.session_config().batch_size();
        // A thread of its own reads ahead by two batches while the steps work.
        let mut receiver = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let sender = receiver.tx();
        receiver.spawn_blocking(move || {
            for batch in all_rows(sources, &schema, batch_rows) {
                let batch = batch?;
                rows_read.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                if sender.blocking_send(Ok(batch)).is_err() {
                    return Ok(()); // nobody listens any more
                }
            }
            Ok(())
        });
        Ok(receiver.build())
    }
}
