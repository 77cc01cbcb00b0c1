//! One Parquet file of prepared rows, read a group of rows at a time.

use crate::{
    error::{DataError, Result, reading},
    manifest::ShardInfo,
    row_check::{Rules, faults},
    source::hex,
};
use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        datatypes::{ArrowPrimitiveType, Int32Type, Int64Type, Schema},
    },
    parquet::{
        arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        errors::ParquetError,
    },
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The key under which a shard says how many segments each of its rows has.
pub(crate) const SEGMENTS_KEY: &str = "dlm.segments_per_row";

/// A row as it lies in a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub input_ids: Vec<i32>,
    /// Labels, [`IGNORE_INDEX`](crate::IGNORE_INDEX) where there is no target.
    pub labels: Vec<i32>,
    /// Segments, 0 for padding.
    pub segment_ids: Vec<i32>,
    /// Positions within segments.
    pub position_ids: Vec<i32>,
    /// The document of each segment.
    pub document_ids: Vec<i64>,
    /// Where each segment begins in its document.
    pub document_offsets: Vec<i64>,
}

pub(crate) fn shard_error(path: &Path, error: &ParquetError) -> DataError {
    DataError::Shard { path: path.to_owned(), message: error.to_string() }
}

/// A shard that rows are read from.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    info: ShardInfo,
    metadata: ArrowReaderMetadata,
    /// The first row of each group, and the number of rows at the end.
    group_starts: Vec<u64>,
}

impl Shard {
    /// Checks the size and reads the footer of a shard.
    pub(crate) fn open(folder: &Path, info: &ShardInfo) -> Result<Self> {
        let path = folder.join(&info.path);
        let size = check_size(&path, info)?;
        let metadata = ArrowReaderMetadata::load(&size, ArrowReaderOptions::default())
            .map_err(|error| shard_error(&path, &error))?;
        let mut group_starts = vec![0];
        for group in metadata.metadata().row_groups() {
            let start = group_starts.last().copied().unwrap_or(0);
            group_starts.push(start + u64::try_from(group.num_rows()).unwrap_or(0));
        }
        let rows = group_starts.last().copied().unwrap_or(0);
        if rows != info.rows {
            let message = format!("it has {rows} rows, and the manifest says {}", info.rows);
            return Err(DataError::Shard { path, message });
        }
        Ok(Self { path, info: info.clone(), metadata, group_starts })
    }

    /// The segments of each row, as the footer says.
    pub(crate) fn segments_per_row(&self) -> Result<Vec<u32>> {
        let footer = self.metadata.metadata().file_metadata().key_value_metadata();
        let counts = footer.into_iter().flatten().find(|entry| entry.key == SEGMENTS_KEY);
        let counts = counts.and_then(|entry| entry.value.as_deref()).unwrap_or_default();
        let parsed = counts.split(',').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>();
        match parsed {
            Ok(counts) if counts.len() as u64 == self.info.rows => Ok(counts),
            _ => Err(self.damaged("its footer does not say how many segments each row has".to_owned())),
        }
    }

    /// The group that holds a row, and the row's place in it.
    pub(crate) fn group_of(&self, row: u64) -> (usize, usize) {
        let group = self.group_starts.partition_point(|start| *start <= row).saturating_sub(1);
        (group, usize::try_from(row - self.group_starts[group]).expect("a group fits in memory"))
    }

    /// Compares the whole file with its checksum.
    pub(crate) fn verify(&self) -> Result<()> {
        if file_hash(&self.path)? == self.info.sha256 {
            return Ok(());
        }
        Err(self.damaged("its content is not what the manifest's checksum says".to_owned()))
    }

    /// The columns.
    pub(crate) fn schema(&self) -> &Schema {
        self.metadata.schema()
    }

    /// Reads the rows of a group and checks them.
    pub(crate) fn read_group(&self, group: usize, sequence_len: usize, vocab_size: usize) -> Result<Vec<Row>> {
        let rows = self.rows_of(group)?;
        for (number, row) in (self.group_starts[group]..).zip(&rows) {
            if let Some((_, message)) = faults(row, Rules { sequence_len, vocab_size }).first() {
                return Err(self.damaged(format!("row {number}: {message}")));
            }
        }
        Ok(rows)
    }

    /// Gives out all rows, each with its number, without looking at them.
    pub(crate) fn for_each_row(&self, mut each: impl FnMut(u64, Row) -> Result<()>) -> Result<()> {
        for group in 0..self.group_starts.len() - 1 {
            (self.group_starts[group]..).zip(self.rows_of(group)?).try_for_each(|(number, row)| each(number, row))?;
        }
        Ok(())
    }

    fn rows_of(&self, group: usize) -> Result<Vec<Row>> {
        let file = File::open(&self.path).map_err(reading(&self.path))?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![group])
            .build()
            .map_err(|error| shard_error(&self.path, &error))?;
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|error| shard_error(&self.path, &error.into()))?;
            for i in 0..batch.num_rows() {
                let row = row_of(&batch, i)
                    .ok_or_else(|| self.damaged("its columns are not those of prepared data".to_owned()))?;
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn damaged(&self, message: String) -> DataError {
        DataError::Shard { path: self.path.clone(), message }
    }
}

/// The checksum of a file.
pub(crate) fn file_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).map_err(reading(path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(reading(path))? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Opens the file, whose size has to be the one in the manifest.
fn check_size(path: &Path, info: &ShardInfo) -> Result<File> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DataError::Shard { path: path.to_owned(), message: "it is not there".to_owned() });
        }
        other => other.map_err(reading(path))?,
    };
    let size = file.metadata().map_err(reading(path))?.len();
    if size != info.size_bytes {
        let message = format!("it has {size} bytes, and the manifest says {}", info.size_bytes);
        return Err(DataError::Shard { path: path.to_owned(), message });
    }
    Ok(file)
}

fn row_of(batch: &RecordBatch, i: usize) -> Option<Row> {
    Some(Row {
        input_ids: list::<Int32Type>(batch, "input_ids", i)?,
        labels: list::<Int32Type>(batch, "labels", i)?,
        segment_ids: list::<Int32Type>(batch, "segment_ids", i)?,
        position_ids: list::<Int32Type>(batch, "position_ids", i)?,
        document_ids: list::<Int64Type>(batch, "document_ids", i)?,
        document_offsets: list::<Int64Type>(batch, "document_offsets", i)?,
    })
}

fn list<T: ArrowPrimitiveType>(batch: &RecordBatch, column: &str, i: usize) -> Option<Vec<T::Native>> {
    let lists = batch.column_by_name(column)?.as_list_opt::<i32>()?;
    let values = lists.value(i);
    Some(values.as_primitive_opt::<T>()?.values().to_vec())
}
