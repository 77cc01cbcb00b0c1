//! The rows of one file, a batch at a time, each with its number in the file.

use super::{
    SourceFile, bytes,
    caught::{caught, caught_items},
    csv,
    options::{FileFormat, OnError},
    quarantine::{Entry, Quarantine},
    records::{Chunk, Raw, Records},
    survey::{Bad, Layout, csv_header, row_error, utf8},
};
use crate::{
    error::{DataError, Result, parquet, reading},
    plan::ROW,
};
use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringBuilder},
        datatypes::{DataType, Field, Schema, SchemaRef},
        error::ArrowError,
        ipc::reader::{FileReader, StreamReader},
        json::ReaderBuilder,
    },
    parquet::arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
};
use std::{fs::File, io::BufReader, sync::Arc};

/// Bytes in a batch of long rows, roughly.
const BATCH_BYTES: usize = 1 << 20;

/// Batches whose first column is the number of each row in its file, counted from 0.
pub(crate) type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// Batches as the readers of Parquet and Arrow give them.
type ArrowBatches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send>;

/// How a file is read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) file: SourceFile,
    /// The file's source in the pipeline.
    pub(crate) source: usize,
    pub(crate) on_error: OnError,
    /// The wanted columns that the file has. Text formats give these types, the others their own.
    pub(crate) columns: SchemaRef,
    /// Rows in a batch.
    pub(crate) batch_rows: usize,
    pub(crate) quarantine: Arc<Quarantine>,
}

impl Reading {
    /// Opens the file.
    pub(crate) fn batches(self) -> Result<Batches> {
        match &self.file.layout {
            Layout::Parquet => self.parquet(),
            Layout::ArrowFile | Layout::ArrowStream => self.arrow(),
            Layout::Json(_) | Layout::Csv { .. } | Layout::Text(_) => self.records(),
        }
    }

    /// Leaves rows out, or says that they cannot be.
    fn refuse(&self, bad: &Bad, rows: Option<u64>, error: impl FnOnce() -> DataError) -> Result<()> {
        if self.on_error == OnError::Fail {
            return Err(error());
        }
        let Bad { row, line, message } = bad;
        self.quarantine.add(Entry {
            source: self.source,
            file: self.file.name.clone(),
            row: Some(row + 1),
            rows,
            line: *line,
            reason: message.clone(),
        });
        Ok(())
    }

    fn records(self) -> Result<Batches> {
        let content = bytes::open(&self.file.path, self.file.compression).map_err(reading(&self.file.shown()))?;
        let cut = match &self.file.layout {
            Layout::Json(cut) | Layout::Text(cut) => cut.clone(),
            Layout::Csv { separator, .. } => super::records::Cut::Csv { separator: *separator as u8 },
            Layout::Parquet | Layout::ArrowFile | Layout::ArrowStream => unreachable!("these are no text formats"),
        };
        let mut records = Records::new(content, cut);
        if let Layout::Csv { separator, .. } = &self.file.layout {
            csv_header(&mut records, *separator).map_err(|bad| self.row_error(&bad))?;
        }
        let mut ended = false;
        Ok(Box::new(std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let batch = match records.next_chunk(self.batch_rows, BATCH_BYTES) {
                Ok(chunk) => self.decode(&chunk?),
                Err(broken) => {
                    ended = true;
                    let bad = Bad::where_broken(broken, self.file.compression);
                    // The survey has quarantined it, unless the file changed since.
                    let is_known = self.file.bad.iter().any(|known| known.row == bad.row);
                    match self.on_error {
                        OnError::Skip if is_known => return None,
                        _ => {
                            self.refuse(&bad, None, || self.row_error(&bad)).and_then(|()| self.batch(&[], Vec::new()))
                        }
                    }
                }
            };
            Some(batch)
        })))
    }

    fn row_error(&self, bad: &Bad) -> DataError {
        row_error(self.file.format, self.file.shown(), bad)
    }

    fn decode(&self, chunk: &Chunk) -> Result<RecordBatch> {
        let first_bad = self.file.bad.partition_point(|bad| bad.row < chunk.first_row);
        let mut bad = self.file.bad[first_bad..].iter().map(|bad| bad.row).peekable();
        let good = |raw: &Raw<'_>| {
            while bad.next_if(|bad| *bad < raw.row).is_some() {}
            bad.peek() != Some(&raw.row)
        };
        let rows: Vec<Raw<'_>> = chunk.rows().filter(good).collect();
        match &self.file.layout {
            Layout::Json(_) => self.json(&rows),
            Layout::Csv { separator, header } => self.csv(&rows, *separator, header),
            _ => self.text(&rows),
        }
    }

    fn json(&self, rows: &[Raw<'_>]) -> Result<RecordBatch> {
        match json_columns(&self.columns, rows) {
            Ok(columns) => self.batch(&numbers(rows), columns),
            // The survey has read every row: this comes of rows that another reader reads otherwise. Each is tried by itself.
            Err(_) => {
                let mut good = Vec::with_capacity(rows.len());
                for raw in rows {
                    match json_columns(&self.columns, std::slice::from_ref(raw)) {
                        Ok(_) => good.push(*raw),
                        Err(error) => {
                            let bad = Bad { row: raw.row, line: Some(raw.line), message: error.to_string() };
                            self.refuse(&bad, Some(1), || self.row_error(&bad))?;
                        }
                    }
                }
                let columns = json_columns(&self.columns, &good).map_err(|error| {
                    let first = good.first().map_or(0, |raw| raw.row);
                    let message = format!("the rows from here on: {error}");
                    DataError::Damaged { path: self.file.shown(), row: first + 1, message }
                })?;
                self.batch(&numbers(&good), columns)
            }
        }
    }

    fn csv(&self, rows: &[Raw<'_>], separator: char, header: &[String]) -> Result<RecordBatch> {
        let wanted = self.columns.fields();
        let places: Vec<usize> =
            wanted.iter().filter_map(|field| header.iter().position(|name| name == field.name())).collect();
        let mut columns: Vec<csv::Column> = wanted.iter().map(|field| csv::Column::new(field.data_type())).collect();
        let mut good = Vec::with_capacity(rows.len());
        for raw in rows {
            let fields = utf8(*raw).and_then(|text| {
                let fields = csv::fields(text, separator);
                let fields = fields.and_then(|fields| match fields.len() == header.len() {
                    true => Ok(fields),
                    false => Err(format!("it has {} fields, and the first line names {}", fields.len(), header.len())),
                });
                fields.map_err(|message| Bad { row: raw.row, line: Some(raw.line), message })
            });
            match fields {
                Ok(fields) => {
                    places.iter().zip(&mut columns).for_each(|(place, column)| column.push(fields[*place].as_deref()));
                    good.push(*raw);
                }
                Err(bad) => self.refuse(&bad, Some(1), || self.row_error(&bad))?,
            }
        }
        self.batch(&numbers(&good), columns.iter_mut().map(csv::Column::finish).collect())
    }

    fn text(&self, rows: &[Raw<'_>]) -> Result<RecordBatch> {
        let (mut texts, mut paths) = (StringBuilder::new(), StringBuilder::new());
        let mut good = Vec::with_capacity(rows.len());
        for raw in rows {
            let is_too_long = i32::try_from(raw.bytes.len()).is_err();
            let text = if is_too_long {
                Err(Bad { row: raw.row, line: Some(raw.line), message: "a text has at most 2 GiB".to_owned() })
            } else {
                utf8(*raw)
            };
            match text {
                Ok(text) => {
                    texts.append_value(text);
                    paths.append_value(&self.file.name);
                    good.push(*raw);
                }
                Err(bad) => self.refuse(&bad, Some(1), || self.row_error(&bad))?,
            }
        }
        let (texts, paths): (ArrayRef, ArrayRef) = (Arc::new(texts.finish()), Arc::new(paths.finish()));
        let column = |field: &Arc<Field>| Arc::clone(if field.name() == "text" { &texts } else { &paths });
        self.batch(&numbers(&good), self.columns.fields().iter().map(column).collect())
    }

    /// A batch of these columns, with the numbers of its rows before them.
    fn batch(&self, numbers: &[i64], columns: Vec<ArrayRef>) -> Result<RecordBatch> {
        let columns = if columns.is_empty() {
            self.columns
                .fields()
                .iter()
                .map(|field| datafusion::arrow::array::new_empty_array(field.data_type()))
                .collect()
        } else {
            columns
        };
        numbered(numbers, &self.columns, columns).map_err(|error| DataError::Damaged {
            path: self.file.shown(),
            row: 1,
            message: error.to_string(),
        })
    }

    fn parquet(self) -> Result<Batches> {
        let shown = self.file.shown();
        let file = File::open(&self.file.path).map_err(reading(&shown))?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(parquet(&shown))?;
        let places = self.columns.fields().iter().filter_map(|field| metadata.schema().index_of(field.name()).ok());
        let mask = ProjectionMask::roots(metadata.parquet_schema(), places.collect::<Vec<_>>());
        let groups = metadata.metadata().row_groups().iter();
        let lengths: Vec<u64> = groups.map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).collect();
        // Group by group: what is damaged in one does not keep the others from being read.
        let mut first_row = 0;
        let groups = lengths.into_iter().enumerate().map(move |(group, length)| {
            let start = first_row;
            first_row += length;
            let open = || {
                let file = file.try_clone().map_err(|error| ArrowError::from_external_error(Box::new(error)))?;
                ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                    .with_projection(mask.clone())
                    .with_row_groups(vec![group])
                    .with_batch_size(self.batch_rows)
                    .build()
                    .map_err(ArrowError::from)
            };
            let batches: ArrowBatches = match open() {
                Ok(reader) => Box::new(reader),
                Err(error) => Box::new(std::iter::once(Err(error))),
            };
            self.clone().numbered_until_damage(batches, start, Some(start + length))
        });
        Ok(Box::new(groups.flatten()))
    }

    fn arrow(self) -> Result<Batches> {
        let shown = self.file.shown();
        let file = BufReader::with_capacity(1 << 18, File::open(&self.file.path).map_err(reading(&shown))?);
        let damaged =
            |error: ArrowError| DataError::Damaged { path: shown.clone(), row: 1, message: error.to_string() };
        let places = |schema: &Schema| {
            self.columns.fields().iter().filter_map(|field| schema.index_of(field.name()).ok()).collect::<Vec<_>>()
        };
        let whole = &self.file.schema;
        let batches: ArrowBatches = match &self.file.layout {
            Layout::ArrowFile => Box::new(caught(|| FileReader::try_new(file, Some(places(whole)))).map_err(damaged)?),
            _ => Box::new(caught(|| StreamReader::try_new(file, Some(places(whole)))).map_err(damaged)?),
        };
        // A batch of a file can be all of it: it is handed on in pieces, which share its memory.
        let rows = self.batch_rows;
        let pieces = caught_items(batches).flat_map(move |batch| match batch {
            Err(error) => vec![Err(error)],
            Ok(batch) => (0..batch.num_rows())
                .step_by(rows)
                .map(|start| Ok(batch.slice(start, rows.min(batch.num_rows() - start))))
                .collect(),
        });
        Ok(Box::new(self.numbered_until_damage(Box::new(pieces), 0, None)))
    }

    /// Numbers the rows of batches. Where reading fails, the rest up to `end` is left out.
    fn numbered_until_damage(
        self,
        mut batches: ArrowBatches,
        start: u64,
        end: Option<u64>,
    ) -> impl Iterator<Item = Result<RecordBatch>> + Send {
        let mut next_row = start;
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            match batches.next()? {
                Ok(batch) => {
                    let first = next_row;
                    next_row += batch.num_rows() as u64;
                    let numbers: Vec<i64> = (first..next_row).map(|row| row as i64).collect();
                    let batch = self.in_order(&batch).and_then(|columns| numbered(&numbers, &columns.0, columns.1));
                    Some(batch.map_err(|error| self.damage(next_row, error.to_string())))
                }
                Err(error) => {
                    ended = true;
                    let bad = Bad { row: next_row, line: None, message: error.to_string() };
                    let rest = end.map(|end| end.saturating_sub(next_row));
                    // What the survey found is in quarantine already.
                    if self.on_error == OnError::Skip && self.file.bad.iter().any(|known| known.row == next_row) {
                        return None;
                    }
                    match self.refuse(&bad, rest, || self.damage(next_row, bad.message.clone())) {
                        Ok(()) => None,
                        Err(error) => Some(Err(error)),
                    }
                }
            }
        })
    }

    fn damage(&self, row: u64, message: String) -> DataError {
        let path = self.file.shown();
        match self.file.format {
            FileFormat::Parquet => DataError::Parquet { path, message: format!("from row {} on: {message}", row + 1) },
            _ => DataError::Damaged { path, row: row + 1, message },
        }
    }

    /// The wanted columns of a batch, as the file has them.
    fn in_order(&self, batch: &RecordBatch) -> std::result::Result<(SchemaRef, Vec<ArrayRef>), ArrowError> {
        let schema = batch.schema();
        let places = self.columns.fields().iter().map(|field| schema.index_of(field.name()));
        let places = places.collect::<std::result::Result<Vec<_>, _>>()?;
        let columns = places.iter().map(|place| Arc::clone(batch.column(*place))).collect();
        Ok((Arc::new(schema.project(&places)?), columns))
    }
}

fn numbers(rows: &[Raw<'_>]) -> Vec<i64> {
    rows.iter().map(|raw| raw.row as i64).collect()
}

fn numbered(numbers: &[i64], schema: &Schema, columns: Vec<ArrayRef>) -> std::result::Result<RecordBatch, ArrowError> {
    let mut fields = vec![Arc::new(Field::new(ROW, DataType::Int64, false))];
    fields.extend(schema.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))));
    let mut all: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(numbers.to_vec()))];
    all.extend(columns);
    let options = RecordBatchOptions::new().with_row_count(Some(numbers.len()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), all, &options)
}

/// The wanted columns of JSON objects.
fn json_columns(schema: &SchemaRef, rows: &[Raw<'_>]) -> std::result::Result<Vec<ArrayRef>, ArrowError> {
    if rows.is_empty() || schema.fields().is_empty() {
        return Ok(Vec::new());
    }
    let mut decoder = ReaderBuilder::new(Arc::clone(schema)).with_batch_size(rows.len()).build_decoder()?;
    for raw in rows {
        decoder.decode(raw.bytes)?;
    }
    let batch = decoder.flush()?.ok_or_else(|| ArrowError::JsonError("no object was found".to_owned()))?;
    if batch.num_rows() != rows.len() {
        let message = format!("{} objects were found in {} rows", batch.num_rows(), rows.len());
        return Err(ArrowError::JsonError(message));
    }
    Ok(batch.columns().to_vec())
}
