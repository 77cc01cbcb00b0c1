//! One Parquet file of prepared rows, read a group of rows at a time.

use crate::{
    error::{DataError, Result, reading},
    manifest::ShardInfo,
    row_check::{Rules, faults},
    shard_index::GroupIndex,
    source::hex,
};
use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        datatypes::{ArrowPrimitiveType, Int32Type, Int64Type, SchemaRef},
    },
    parquet::{
        arrow::{
            ProjectionMask,
            arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        errors::ParquetError,
        file::metadata::FileMetaData,
    },
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    hash::Hasher,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
    time::SystemTime,
};
use twox_hash::XxHash64;

/// The key under which a shard says how many segments each of its rows has.
pub(crate) const SEGMENTS_KEY: &str = "dlm.segments_per_row";
/// The key under which a shard has a hash of the content of each of its rows, 16 digits a row.
pub(crate) const HASHES_KEY: &str = "dlm.content_hash_per_row";

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

/// A hash of what a row says: equal rows have equal ones, whichever documents they came from.
pub(crate) fn content_hash(ids: &[i32], labels: &[i32], segment_ids: &[i32]) -> u64 {
    let mut hash = XxHash64::with_seed(0);
    for value in [ids, labels, segment_ids].into_iter().flatten() {
        hash.write_i32(value.to_le());
    }
    hash.finish()
}

pub(crate) fn shard_error(path: &Path, error: &ParquetError) -> DataError {
    DataError::Shard { path: path.to_owned(), message: error.to_string() }
}

/// A shard that rows are read from. Its footer is read when the first row is asked for, and kept in a small form.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    info: ShardInfo,
    footer: OnceLock<Footer>,
    /// When the file had last been written as its checksum was compared.
    verified: Mutex<Option<SystemTime>>,
}

/// What is kept of a footer.
#[derive(Debug)]
struct Footer {
    schema: SchemaRef,
    groups: GroupIndex,
    /// Absent where the footer does not have one for each row.
    segments_per_row: Option<Box<[u32]>>,
    /// Absent in a shard of an earlier version.
    hashes: Option<Box<[u64]>>,
}

impl Shard {
    /// Checks that the file is there and has its size; reads nothing of it.
    pub(crate) fn open(folder: &Path, info: &ShardInfo) -> Result<Self> {
        let path = folder.join(&info.path);
        let size = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DataError::Shard { path, message: "it is not there".to_owned() });
            }
            other => other.map_err(reading(&path))?.len(),
        };
        let shard = Self { path, info: info.clone(), footer: OnceLock::new(), verified: Mutex::default() };
        shard.check_size(size)?;
        Ok(shard)
    }

    /// The columns.
    pub(crate) fn schema(&self) -> Result<SchemaRef> {
        Ok(SchemaRef::clone(&self.footer()?.schema))
    }

    /// Documents and pieces in each of its rows, as the footer says.
    pub(crate) fn segments_per_row(&self) -> Result<&[u32]> {
        let counts = self.footer()?.segments_per_row.as_deref();
        counts.ok_or_else(|| self.damaged("its footer does not say how many segments each row has".to_owned()))
    }

    /// A hash of the content of each row: from the footer, or reckoned from the rows of a shard of an earlier version.
    pub(crate) fn content_hashes(&self, sequence_len: usize, vocab_size: usize) -> Result<Vec<u64>> {
        let footer = self.footer()?;
        if let Some(hashes) = &footer.hashes {
            return Ok(hashes.to_vec());
        }
        let mut hashes = Vec::new();
        for group in 0..footer.groups.len() {
            let rows = self.read_group(group, sequence_len, vocab_size)?;
            hashes.extend(rows.iter().map(|row| content_hash(&row.input_ids, &row.labels, &row.segment_ids)));
        }
        Ok(hashes)
    }

    /// The documents in each row, with the offset of the piece of each; nothing else of the rows is read.
    pub(crate) fn documents_of_rows(&self) -> Result<Vec<Vec<(i64, i64)>>> {
        const COLUMNS: [&str; 2] = ["document_ids", "document_offsets"];
        let builder = ParquetRecordBatchReaderBuilder::try_new(self.file()?);
        let builder = builder.map_err(|error| shard_error(&self.path, &error))?;
        let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
        let reader = builder.with_projection(mask).build().map_err(|error| shard_error(&self.path, &error))?;
        let mut documents = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|error| shard_error(&self.path, &error.into()))?;
            for i in 0..batch.num_rows() {
                let [ids, offsets] = COLUMNS.map(|column| list::<Int64Type>(&batch, column, i));
                let (ids, offsets) = ids.zip(offsets).ok_or_else(|| self.odd_columns())?;
                documents.push(ids.into_iter().zip(offsets).collect());
            }
        }
        Ok(documents)
    }

    /// The group that holds a row, and the row's place in it.
    pub(crate) fn group_of(&self, row: u64) -> Result<(usize, usize)> {
        Ok(self.footer()?.groups.of_row(row))
    }

    /// Compares the whole file with its checksum.
    pub(crate) fn verify(&self) -> Result<()> {
        self.file()?;
        self.verify_content()?;
        self.footer().map(|_| ())
    }

    /// Reads the rows of a group, once the file has its checksum; a file that was written to since is compared again.
    pub(crate) fn read_group(&self, group: usize, sequence_len: usize, vocab_size: usize) -> Result<Vec<Row>> {
        let file = self.file()?;
        let written = file.metadata().and_then(|metadata| metadata.modified()).map_err(reading(&self.path))?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if *verified != Some(written) {
            self.verify_content()?;
            *verified = Some(written);
        }
        drop(verified);
        let rows = self.rows_of(group, file)?;
        for (number, row) in (self.footer()?.groups.first_row(group)..).zip(&rows) {
            if let Some((_, message)) = faults(row, Rules { sequence_len, vocab_size }).first() {
                return Err(self.damaged(format!("row {number}: {message}")));
            }
        }
        Ok(rows)
    }

    /// Gives out all rows, each with its number, without looking at them.
    pub(crate) fn for_each_row(&self, mut each: impl FnMut(u64, Row) -> Result<()>) -> Result<()> {
        let groups = &self.footer()?.groups;
        for group in 0..groups.len() {
            let rows = self.rows_of(group, self.file()?)?;
            (groups.first_row(group)..).zip(rows).try_for_each(|(number, row)| each(number, row))?;
        }
        Ok(())
    }

    fn rows_of(&self, group: usize, file: File) -> Result<Vec<Row>> {
        let failed = |error| shard_error(&self.path, &error);
        let metadata = self.footer()?.groups.metadata(group).map_err(failed)?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).build().map_err(failed)?;
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|error| shard_error(&self.path, &error.into()))?;
            for i in 0..batch.num_rows() {
                rows.push(row_of(&batch, i).ok_or_else(|| self.odd_columns())?);
            }
        }
        Ok(rows)
    }

    fn verify_content(&self) -> Result<()> {
        if file_hash(&self.path)? == self.info.sha256 {
            return Ok(());
        }
        Err(self.damaged("its content is not what the manifest's checksum says".to_owned()))
    }

    /// Opens the file, whose size has to be the one in the manifest still.
    fn file(&self) -> Result<File> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.damaged("it is not there".to_owned()));
            }
            other => other.map_err(reading(&self.path))?,
        };
        self.check_size(file.metadata().map_err(reading(&self.path))?.len())?;
        Ok(file)
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size == self.info.size_bytes {
            return Ok(());
        }
        Err(self.damaged(format!("it has {size} bytes, and the manifest says {}", self.info.size_bytes)))
    }

    fn footer(&self) -> Result<&Footer> {
        if let Some(footer) = self.footer.get() {
            return Ok(footer);
        }
        let footer = self.read_footer()?;
        Ok(self.footer.get_or_init(|| footer)) // another thread may have been faster
    }

    fn read_footer(&self) -> Result<Footer> {
        let metadata = ArrowReaderMetadata::load(&self.file()?, ArrowReaderOptions::default())
            .map_err(|error| shard_error(&self.path, &error))?;
        let groups = GroupIndex::of(metadata.metadata())
            .ok_or_else(|| self.damaged("the places of its columns cannot be read".to_owned()))?;
        if groups.rows() != self.info.rows {
            return Err(self.damaged(format!(
                "it has {} rows, and the manifest says {}",
                groups.rows(),
                self.info.rows
            )));
        }
        let file = metadata.metadata().file_metadata();
        let segments_per_row = entry(file, SEGMENTS_KEY).and_then(|counts| {
            let counts: Box<[u32]> = counts.split(',').map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
            (counts.len() as u64 == self.info.rows).then_some(counts)
        });
        let hashes = entry(file, HASHES_KEY).and_then(|hashes| {
            let digits = hashes.as_bytes().chunks(16).map(|digits| std::str::from_utf8(digits).unwrap_or_default());
            let parsed = digits.map(|digits| u64::from_str_radix(digits, 16));
            let hashes: Box<[u64]> = parsed.collect::<std::result::Result<_, _>>().ok()?;
            (hashes.len() as u64 == self.info.rows).then_some(hashes)
        });
        Ok(Footer { schema: SchemaRef::clone(metadata.schema()), groups, segments_per_row, hashes })
    }

    fn odd_columns(&self) -> DataError {
        self.damaged("its columns are not those of prepared data".to_owned())
    }

    fn damaged(&self, message: String) -> DataError {
        DataError::Shard { path: self.path.clone(), message }
    }
}

/// An entry of the footer's free text.
fn entry<'a>(file: &'a FileMetaData, key: &str) -> Option<&'a str> {
    file.key_value_metadata()?.iter().find(|entry| entry.key == key)?.value.as_deref()
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
