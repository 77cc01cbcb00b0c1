//! One Parquet file of prepared rows: written whole, read a group of rows at a time.

use crate::{
    batch::IGNORE_INDEX,
    error::{DataError, Result, reading},
    manifest::{ShardInfo, Split},
    packing::shard_schema,
    source::hex,
};
use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        datatypes::{ArrowPrimitiveType, Int32Type, Int64Type, SchemaRef},
    },
    parquet::{
        arrow::{
            ArrowWriter,
            arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        },
        basic::{Compression, Encoding, ZstdLevel},
        errors::ParquetError,
        file::{metadata::KeyValue, properties::WriterProperties},
        schema::types::ColumnPath,
    },
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Tokens in a row group: what is decompressed to read one row.
const GROUP_TOKENS: usize = 1 << 16;
/// The key under which a shard says how many segments each of its rows has.
const SEGMENTS_KEY: &str = "dlm.segments_per_row";

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

/// Collects packed rows of one side and writes them as shards.
pub(crate) struct ShardWriter {
    folder: PathBuf,
    split: Split,
    sequence_len: usize,
    rows_per_shard: usize,
    schema: SchemaRef,
    /// The shard that is being made, in memory.
    open: Option<OpenShard>,
    finished: Vec<ShardInfo>,
}

struct OpenShard {
    writer: ArrowWriter<Vec<u8>>,
    segments_per_row: Vec<String>,
    tokens: u64,
    label_tokens: u64,
    segments: u64,
}

impl ShardWriter {
    pub(crate) fn new(folder: &Path, split: Split, sequence_len: usize, shard_tokens: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            split,
            sequence_len,
            rows_per_shard: (shard_tokens / sequence_len).max(1),
            schema: Arc::new(shard_schema()),
            open: None,
            finished: Vec::new(),
        }
    }

    /// Adds packed rows.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let mut start = 0;
        while start < rows.num_rows() {
            let room = self.rows_per_shard - self.open.as_ref().map_or(0, |open| open.segments_per_row.len());
            let count = room.min(rows.num_rows() - start);
            self.append(&rows.slice(start, count))?;
            start += count;
            if count == room {
                self.close()?;
            }
        }
        Ok(())
    }

    /// Writes the last shard and says what was written.
    pub(crate) fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.close()?;
        Ok(self.finished)
    }

    fn append(&mut self, rows: &RecordBatch) -> Result<()> {
        let path = self.path();
        let encoding = |error: ParquetError| shard_error(&path, &error);
        if self.open.is_none() {
            let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&self.schema), Some(self.properties()))
                .map_err(encoding)?;
            let segments_per_row = Vec::new();
            self.open = Some(OpenShard { writer, segments_per_row, tokens: 0, label_tokens: 0, segments: 0 });
        }
        let open = self.open.as_mut().expect("it was opened above");
        let columns = rows.project(&(0..self.schema.fields().len()).collect::<Vec<_>>());
        open.writer.write(&columns.map_err(|error| encoding(error.into()))?).map_err(encoding)?;
        let values =
            |column: &str, i: usize| rows[column].as_list::<i32>().value(i).as_primitive::<Int32Type>().clone();
        for i in 0..rows.num_rows() {
            let segment_ids = values("segment_ids", i);
            let segments = segment_ids.values().iter().copied().max().unwrap_or(0);
            open.segments_per_row.push(segments.to_string());
            open.segments += u64::from(segments.unsigned_abs());
            open.tokens += segment_ids.values().iter().filter(|segment| **segment > 0).count() as u64;
            let labels = values("labels", i);
            open.label_tokens += labels.values().iter().filter(|label| **label != IGNORE_INDEX).count() as u64;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let path = self.path();
        let counts = open.segments_per_row.join(",");
        open.writer.append_key_value_metadata(KeyValue::new(SEGMENTS_KEY.to_owned(), counts));
        let bytes = open.writer.into_inner().map_err(|error| shard_error(&path, &error))?;
        dlm_files::write(&path, &bytes)?;
        self.finished.push(ShardInfo {
            path: self.relative_path(),
            rows: open.segments_per_row.len() as u64,
            segments: open.segments,
            tokens: open.tokens,
            label_tokens: open.label_tokens,
            size_bytes: bytes.len() as u64,
            sha256: hex(&Sha256::digest(&bytes)),
        });
        Ok(())
    }

    fn relative_path(&self) -> String {
        format!("{}/{:05}.parquet", self.split.folder(), self.finished.len())
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.relative_path())
    }

    fn properties(&self) -> WriterProperties {
        let positions = ColumnPath::new(["position_ids", "list", "item"].map(str::to_owned).to_vec());
        WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some((GROUP_TOKENS / self.sequence_len).max(1)))
            .set_created_by("dlm".to_owned())
            // Positions rise by one: their differences are nearly all the same.
            .set_column_dictionary_enabled(positions.clone(), false)
            .set_column_encoding(positions, Encoding::DELTA_BINARY_PACKED)
            .build()
    }
}

fn shard_error(path: &Path, error: &ParquetError) -> DataError {
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
        let mut hash = Sha256::new();
        let mut file = File::open(&self.path).map_err(reading(&self.path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(reading(&self.path))? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        if hex(&hash.finalize()) == self.info.sha256 {
            return Ok(());
        }
        Err(self.damaged("its content is not what the manifest's checksum says".to_owned()))
    }

    /// Reads the rows of a group.
    pub(crate) fn read_group(&self, group: usize, sequence_len: usize, vocab_size: usize) -> Result<Vec<Row>> {
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
                check(&row, sequence_len, vocab_size).map_err(|message| {
                    self.damaged(format!("row {}: {message}", self.group_starts[group] + i as u64))
                })?;
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn damaged(&self, message: String) -> DataError {
        DataError::Shard { path: self.path.clone(), message }
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

/// Says what is wrong with a row that does not hold together.
fn check(row: &Row, sequence_len: usize, vocab_size: usize) -> std::result::Result<(), String> {
    let lengths = [&row.input_ids, &row.labels, &row.segment_ids, &row.position_ids].map(Vec::len);
    if lengths != [sequence_len; 4] {
        return Err(format!("its lists have the lengths {lengths:?}, and rows have {sequence_len} tokens"));
    }
    let exists = |id: i32| usize::try_from(id).is_ok_and(|id| id < vocab_size);
    if let Some(id) = row.input_ids.iter().find(|id| !exists(**id)) {
        return Err(format!("token id {id} is none of the vocabulary's {vocab_size}"));
    }
    if let Some(label) = row.labels.iter().find(|label| **label != IGNORE_INDEX && !exists(**label)) {
        return Err(format!("label {label} is none of the vocabulary's {vocab_size}"));
    }
    let mut segment = 0;
    for (at, next) in row.segment_ids.iter().enumerate() {
        let begins = at == 0 || *next != row.segment_ids[at - 1];
        let follows = if begins { *next == segment + 1 || (*next == 0 && at > 0) } else { true };
        if !follows || (at > 0 && row.segment_ids[at - 1] == 0 && *next != 0) {
            return Err(format!("segment {next} follows segment {segment} at token {at}"));
        }
        segment = *next;
    }
    let segments = row.segment_ids.iter().copied().max().unwrap_or(0);
    let segments = usize::try_from(segments).unwrap_or(0);
    if row.document_ids.len() != segments || row.document_offsets.len() != segments {
        let (ids, offsets) = (row.document_ids.len(), row.document_offsets.len());
        return Err(format!("it has {segments} segments, {ids} document ids and {offsets} offsets"));
    }
    Ok(())
}
