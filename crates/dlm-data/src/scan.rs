//! The rows of all sources as one DataFusion table: one file after the other, every row numbered.

use crate::{
    error::{DataError, reading},
    plan::ROW,
    source::{Format, SourceFile},
};
use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, new_null_array},
        compute::cast,
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    catalog::{Session, TableProvider},
    common::tree_node::TreeNodeRecursion,
    datasource::{
        TableType,
        file_format::file_compression_type::FileCompressionType,
        listing::PartitionedFile,
        physical_plan::{FileScanConfigBuilder, FileSource, JsonSource, ParquetSource},
        source::DataSourceExec,
    },
    error::Result,
    execution::{SendableRecordBatchStream, TaskContext, object_store::ObjectStoreUrl},
    logical_expr::Expr,
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::{RecordBatchReceiverStreamBuilder, RecordBatchStreamAdapter},
    },
};
use futures::{StreamExt, stream};
use std::{
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where every row came from, for error messages.
#[derive(Debug)]
pub(crate) struct RowMap {
    files: Arc<Vec<SourceFile>>,
}

impl RowMap {
    /// The error for a row that cannot be used, by its number over all sources.
    pub(crate) fn error(&self, row: i64, message: impl Into<String>) -> DataError {
        let mut within = u64::try_from(row).unwrap_or(0);
        let file = self.files.iter().find(|file| {
            let here = within < file.rows;
            within -= if here { 0 } else { file.rows };
            here
        });
        let path = file.map(|file| file.path.clone()).unwrap_or_default();
        DataError::Row { path, row: within + 1, message: message.into() }
    }
}

/// All files of a pipeline as one table.
#[derive(Debug)]
pub(crate) struct SourcesTable {
    files: Arc<Vec<SourceFile>>,
    schema: SchemaRef,
    rows_read: Arc<AtomicU64>,
}

impl SourcesTable {
    /// The table of these files, whose columns are `columns` and the row's number.
    pub(crate) fn new(files: Vec<SourceFile>, columns: &Schema) -> Self {
        let mut fields = vec![Arc::new(Field::new(ROW, DataType::Int64, false))];
        fields.extend(columns.fields().iter().cloned());
        Self { files: Arc::new(files), schema: Arc::new(Schema::new(fields)), rows_read: Arc::default() }
    }

    /// Where the rows come from.
    pub(crate) fn row_map(&self) -> RowMap {
        RowMap { files: Arc::clone(&self.files) }
    }

    /// The files.
    pub(crate) fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Counts the rows that are read.
    pub(crate) fn rows_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rows_read)
    }

    /// Rows in all files.
    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
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
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let (files, rows_read) = (Arc::clone(&self.files), Arc::clone(&self.rows_read));
        Ok(Arc::new(SourcesExec { files, schema, rows_read, properties: Arc::new(properties) }))
    }
}

/// Reads the files one after the other, which keeps the order of rows whatever the number of threads.
#[derive(Debug)]
struct SourcesExec {
    files: Arc<Vec<SourceFile>>,
    schema: SchemaRef,
    rows_read: Arc<AtomicU64>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for SourcesExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "SourcesExec: {} files", self.files.len())?;
        for file in self.files.iter().take(3) {
            write!(f, ", {} ({}, {} rows)", file.name, file.format.name(), file.rows)?;
        }
        if self.files.len() > 3 { f.write_str(", ...") } else { Ok(()) }
    }
}

impl ExecutionPlan for SourcesExec {
    fn name(&self) -> &'static str {
        "SourcesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (files, schema) = (Arc::clone(&self.files), Arc::clone(&self.schema));
        let rows_read = Arc::clone(&self.rows_read);
        // A task of its own reads ahead by two batches while the steps work.
        let mut receiver = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let sender = receiver.tx();
        receiver.spawn(async move {
            let mut next_row = 0;
            for file in files.iter() {
                let mut batches = open(file, &schema, &context)?;
                while let Some(batch) = batches.next().await {
                    let batch = align(&batch.map_err(|error| in_file(file, error))?, &schema, next_row)?;
                    next_row += i64::try_from(batch.num_rows()).expect("rows fit in memory");
                    rows_read.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                    if sender.send(Ok(batch)).await.is_err() {
                        return Ok(()); // nobody listens any more
                    }
                }
            }
            Ok(())
        });
        Ok(receiver.build())
    }
}

/// The batches of one file, with those of the wanted columns that it has.
fn open(file: &SourceFile, wanted: &SchemaRef, context: &Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
    if file.format == Format::Text {
        return Ok(text(file));
    }
    // JSON takes the common types at once; Parquet has its own, which `align` casts.
    let schema = match file.format {
        Format::Parquet => Arc::clone(&file.schema),
        _ => {
            let fields = file.schema.fields().iter();
            let known = fields.map(|field| wanted.field_with_name(field.name()).unwrap_or(field).clone());
            Arc::new(Schema::new(known.collect::<Vec<_>>()))
        }
    };
    let source: Arc<dyn FileSource> = match file.format {
        Format::Parquet => Arc::new(ParquetSource::new(Arc::clone(&schema))),
        _ => Arc::new(JsonSource::new(Arc::clone(&schema)).with_newline_delimited(file.format == Format::JsonLines)),
    };
    let columns: Vec<usize> = schema
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| wanted.column_with_name(field.name()).is_some())
        .map(|(i, _)| i)
        .collect();
    // A file is read for its number of rows even when none of its columns is wanted.
    let columns = if columns.is_empty() && !schema.fields().is_empty() { vec![0] } else { columns };
    let path = fs::canonicalize(&file.path).map_err(reading(&file.path))?;
    let location = datafusion::object_store::path::Path::from_filesystem_path(&path)
        .map_err(|error| DataError::Invalid(error.to_string()))?;
    let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
        .with_file(PartitionedFile::new_from_meta(datafusion::object_store::ObjectMeta {
            location,
            last_modified: Default::default(),
            size: file.size_bytes,
            e_tag: None,
            version: None,
        }))
        .with_file_compression_type(FileCompressionType::UNCOMPRESSED)
        .with_batch_size(Some(context.session_config().batch_size()))
        .with_projection_indices(Some(columns))?
        .build();
    DataSourceExec::from_data_source(config).execute(0, Arc::clone(context))
}

/// A text file as a batch of one document.
fn text(file: &SourceFile) -> SendableRecordBatchStream {
    let (path, name) = (file.path.clone(), file.name.clone());
    let schema = Arc::clone(&file.schema);
    let batch = stream::once(async move {
        let text = fs::read_to_string(&path).map_err(reading(&path))?;
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec![text])), Arc::new(StringArray::from(vec![name]))];
        Ok(RecordBatch::try_new(schema, columns)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&file.schema), batch))
}

/// Gives a batch of a file the columns of the table: null where the file has none, cast where it has another type.
fn align(batch: &RecordBatch, schema: &SchemaRef, first_row: i64) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let column = |field: &Arc<Field>| -> Result<ArrayRef> {
        if field.name() == ROW {
            let end = first_row + i64::try_from(rows).expect("rows fit in memory");
            return Ok(Arc::new(Int64Array::from_iter_values(first_row..end)));
        }
        Ok(match batch.column_by_name(field.name()) {
            None => new_null_array(field.data_type(), rows),
            Some(column) if column.data_type() == field.data_type() => Arc::clone(column),
            Some(column) => cast(column, field.data_type())?,
        })
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

fn in_file(file: &SourceFile, error: datafusion::error::DataFusionError) -> DataError {
    match DataError::from_datafusion(error, &format!("cannot read `{}`", file.path.display())) {
        DataError::DataFusion { source, .. } if file.format == Format::Parquet => {
            DataError::Parquet { path: file.path.clone(), message: source.to_string() }
        }
        other => other,
    }
}
