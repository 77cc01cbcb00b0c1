//! The rows of all sources, in the order of the pipeline: one source after the other, or drawn by weight.

use super::{
    OpenSource, Sources,
    mix::Draws,
    options::FileFormat,
    read::{Batches, Reading},
};
use crate::{
    error::{DataError, Result},
    plan::ROW,
};
use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, new_null_array},
        compute::{CastOptions, interleave_record_batch},
        datatypes::{Field, Int64Type, Schema, SchemaRef},
        error::ArrowError,
    },
    common::nested_struct::cast_column,
    error::DataFusionError,
    physical_expr::utils::collect_columns,
};
use std::{collections::HashSet, sync::Arc};

/// Bytes that are held to put rows of several sources into one batch, roughly.
const HELD_BYTES: usize = 8 << 20;

/// Batches of rows with the columns of `wanted`, among them the row's number over all sources if it is wanted.
pub(crate) fn all(
    sources: Arc<Sources>,
    wanted: &SchemaRef,
    batch_rows: usize,
) -> Box<dyn Iterator<Item = Result<RecordBatch>> + Send> {
    let inner = with_number(wanted);
    let outer = Arc::clone(wanted);
    let numbered: Box<dyn Iterator<Item = Result<RecordBatch>> + Send> = if sources.mixture.is_some() {
        Box::new(Mixed::new(sources, inner, batch_rows))
    } else {
        let mut first = 0_i64;
        let count = sources.list.len();
        Box::new((0..count).flat_map(move |source| {
            let base = first;
            first += number(sources.given[source]);
            SourceRows::new(Arc::clone(&sources), source, Arc::clone(&inner), batch_rows)
                .map(move |batch| renumber(&batch?, |row| base + row))
        }))
    };
    Box::new(numbered.map(move |batch| project(&batch?, &outer).map_err(arrow)))
}

/// The wanted columns with the row's number before them, whether it is wanted or not.
fn with_number(wanted: &Schema) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new(ROW, datafusion::arrow::datatypes::DataType::Int64, false))];
    fields.extend(wanted.fields().iter().filter(|field| field.name() != ROW).cloned());
    Arc::new(Schema::new(fields))
}

fn project(batch: &RecordBatch, wanted: &SchemaRef) -> std::result::Result<RecordBatch, ArrowError> {
    let columns = wanted.fields().iter().map(|field| {
        batch.column_by_name(field.name()).cloned().ok_or_else(|| ArrowError::SchemaError(field.name().clone()))
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
    RecordBatch::try_new_with_options(Arc::clone(wanted), columns, &options)
}

/// A count of rows as the numbers of rows are. Sources with 2^48 rows or more have been refused.
fn number(rows: u64) -> i64 {
    rows.cast_signed()
}

fn numbers(batch: &RecordBatch) -> &Int64Array {
    batch.column(0).as_primitive::<Int64Type>()
}

fn renumber(batch: &RecordBatch, number: impl Fn(i64) -> i64) -> Result<RecordBatch> {
    let mut columns = batch.columns().to_vec();
    columns[0] = Arc::new(numbers(batch).unary::<_, Int64Type>(number));
    RecordBatch::try_new(batch.schema(), columns).map_err(arrow)
}

/// The rows of one source, numbered from 0.
struct SourceRows {
    sources: Arc<Sources>,
    source: usize,
    wanted: SchemaRef,
    /// The columns of the files that are needed for those.
    needed: HashSet<String>,
    batch_rows: usize,
    next_file: usize,
    /// The number of the next file's first row.
    next_base: i64,
    base: i64,
    batches: Option<Batches>,
}

impl SourceRows {
    fn new(sources: Arc<Sources>, source: usize, wanted: SchemaRef, batch_rows: usize) -> Self {
        let open = &sources.list[source];
        let mut needed = HashSet::new();
        for field in wanted.fields() {
            match &open.columns {
                None => _ = needed.insert(field.name().clone()),
                Some(columns) => {
                    for (_, expression) in columns.iter().filter(|(name, _)| name == field.name()) {
                        needed.extend(collect_columns(expression).into_iter().map(|column| column.name().to_owned()));
                    }
                }
            }
        }
        Self { sources, source, wanted, needed, batch_rows, next_file: 0, next_base: 0, base: 0, batches: None }
    }

    fn open(&self) -> &OpenSource {
        &self.sources.list[self.source]
    }

    /// Opens the next file; false when there is none.
    fn next_file(&mut self) -> Result<bool> {
        let open = &self.sources.list[self.source];
        let limit = number(open.rows);
        let Some(file) = open.files.get(self.next_file).filter(|_| self.next_base < limit) else { return Ok(false) };
        self.base = self.next_base;
        self.next_base += number(file.rows);
        self.next_file += 1;
        if file.rows == 0 {
            self.batches = None;
            return Ok(true);
        }
        let fields = file.schema.fields().iter().filter(|field| self.needed.contains(field.name()));
        let typed = fields.map(|field| match file.format {
            FileFormat::Parquet | FileFormat::Arrow => Arc::clone(field),
            // Text has the type that it is read as.
            _ => open
                .input
                .field_with_name(field.name())
                .map_or_else(|_| Arc::clone(field), |field| Arc::new(field.clone())),
        });
        let reading = Reading {
            columns: Arc::new(Schema::new(typed.collect::<Vec<_>>())),
            file: file.clone(),
            source: open.number,
            on_error: open.on_error,
            batch_rows: self.batch_rows,
            quarantine: Arc::clone(&self.sources.quarantine),
        };
        self.batches = Some(reading.batches()?);
        Ok(true)
    }

    /// Gives a batch of a file the wanted columns: null where the file has none, cast where it has another type.
    fn align(&self, batch: &RecordBatch) -> datafusion::error::Result<RecordBatch> {
        let rows = batch.num_rows();
        let typed = |name: &str, field: &Field| -> datafusion::error::Result<ArrayRef> {
            match batch.column_by_name(name) {
                None => Ok(new_null_array(field.data_type(), rows)),
                Some(column) => cast(column, field),
            }
        };
        let mapped = match &self.open().columns {
            None => None,
            Some(columns) => {
                // Expressions name columns by their place: those that nobody needs are null there.
                let input = &self.open().input;
                let all = input.fields().iter().map(|field| typed(field.name(), field));
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                let all = all.collect::<datafusion::error::Result<Vec<_>>>()?;
                Some((columns, RecordBatch::try_new_with_options(Arc::clone(input), all, &options)?))
            }
        };
        let column = |field: &Arc<Field>| match &mapped {
            _ if field.name() == ROW => {
                let numbers = numbers(batch).unary::<_, Int64Type>(|row| self.base + row);
                Ok(Arc::new(numbers) as ArrayRef)
            }
            None => typed(field.name(), field),
            Some((columns, input)) => match columns.iter().find(|(name, _)| name == field.name()) {
                None => Ok(new_null_array(field.data_type(), rows)),
                Some((_, expression)) => cast(&expression.evaluate(input)?.into_array(rows)?, field),
            },
        };
        let columns = self.wanted.fields().iter().map(column).collect::<datafusion::error::Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.wanted), columns, &options)?)
    }
}

impl Iterator for SourceRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        loop {
            let Some(batch) = self.batches.as_mut().and_then(Iterator::next) else {
                match self.next_file() {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => {
                        self.next_file = usize::MAX;
                        return Some(Err(error));
                    }
                }
            };
            let context = || {
                let file = &self.open().files[self.next_file - 1];
                format!("cannot read `{}`", file.shown().display())
            };
            let batch = batch
                .and_then(|batch| self.align(&batch).map_err(|error| DataError::from_datafusion(error, &context())));
            match batch {
                Ok(batch) if batch.num_rows() == 0 => {}
                Ok(batch) => {
                    let limit = number(self.open().rows);
                    let within = numbers(&batch).values().partition_point(|row| *row < limit);
                    if within < batch.num_rows() {
                        self.batches = None;
                        self.next_file = usize::MAX;
                    }
                    return Some(Ok(batch.slice(0, within))).filter(|_| within > 0);
                }
                failed => return Some(failed),
            }
        }
    }
}

fn cast(column: &ArrayRef, field: &Field) -> datafusion::error::Result<ArrayRef> {
    if column.data_type() == field.data_type() {
        return Ok(Arc::clone(column));
    }
    // A value that does not fit is an error rather than null.
    cast_column(column, field.data_type(), &CastOptions { safe: false, ..CastOptions::default() })
}

/// The rows of several sources, drawn by weight. A row's number is that of its draw.
struct Mixed {
    sources: Arc<Sources>,
    wanted: SchemaRef,
    batch_rows: usize,
    draws: Draws,
    drawn: i64,
    at: Vec<Place>,
    has_failed: bool,
}

/// Where a source is read.
struct Place {
    rows: SourceRows,
    batch: Option<RecordBatch>,
    next: usize,
}

impl Mixed {
    fn new(sources: Arc<Sources>, wanted: SchemaRef, batch_rows: usize) -> Self {
        let rows = |source| SourceRows::new(Arc::clone(&sources), source, Arc::clone(&wanted), batch_rows);
        let at = (0..sources.list.len()).map(|source| Place { rows: rows(source), batch: None, next: 0 }).collect();
        let draws = sources.mixture.as_ref().expect("these sources have weights").draws();
        Self { sources, wanted, batch_rows, draws, drawn: 0, at, has_failed: false }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut held: Vec<RecordBatch> = Vec::new();
        let mut slots: Vec<Option<usize>> = vec![None; self.at.len()];
        let (mut places, mut ordinals): (Vec<(usize, usize)>, Vec<i64>) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while places.len() < self.batch_rows && (places.is_empty() || bytes < HELD_BYTES) {
            let Some((source, row)) = self.draws.next() else { break };
            let row = number(row);
            let ordinal = self.drawn;
            self.drawn += 1;
            let place = &mut self.at[source];
            if row == 0 && ordinal > 0 {
                // The source begins again, or for the first time.
                let (sources, wanted) = (Arc::clone(&self.sources), Arc::clone(&self.wanted));
                *place =
                    Place { rows: SourceRows::new(sources, source, wanted, self.batch_rows), batch: None, next: 0 };
                slots[source] = None;
            }
            while place.batch.as_ref().is_none_or(|batch| place.next == batch.num_rows()) {
                let Some(batch) = place.rows.next().transpose()? else { break };
                bytes += batch.get_array_memory_size();
                place.batch = Some(batch);
                place.next = 0;
                slots[source] = None;
            }
            // A row that was left out leaves its draw without one.
            let Some(batch) = place.batch.as_ref().filter(|batch| place.next < batch.num_rows()) else { continue };
            if numbers(batch).value(place.next) != row {
                continue;
            }
            let slot = *slots[source].get_or_insert_with(|| {
                held.push(batch.clone());
                held.len() - 1
            });
            places.push((slot, place.next));
            ordinals.push(ordinal);
            place.next += 1;
        }
        if places.is_empty() {
            return Ok(None);
        }
        let batch = interleave_record_batch(&held.iter().collect::<Vec<_>>(), &places).map_err(arrow)?;
        let mut columns = batch.columns().to_vec();
        columns[0] = Arc::new(Int64Array::from(ordinals));
        RecordBatch::try_new(batch.schema(), columns).map(Some).map_err(arrow)
    }
}

impl Iterator for Mixed {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        if self.has_failed {
            return None;
        }
        let batch = self.next_batch().transpose();
        self.has_failed = matches!(batch, Some(Err(_)));
        batch
    }
}

fn arrow(error: ArrowError) -> DataError {
    DataError::from_datafusion(DataFusionError::from(error), "the rows of the sources")
}
