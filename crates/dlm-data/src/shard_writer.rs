//! Packed rows of one side, written as shards.

use crate::{
    batch::IGNORE_INDEX,
    error::{DataError, Result},
    manifest::{ShardInfo, Split},
    pack::Piece,
    packing::{DOCUMENT_IDS, DOCUMENT_OFFSETS, POSITION_IDS, SEGMENT_IDS, shard_schema},
    shard::{HASHES_KEY, SEGMENTS_KEY, content_hash, shard_error},
    shard_file::ShardFile,
    tokenize::{INPUT_IDS, LABELS},
};
use datafusion::{
    arrow::{
        array::{AsArray, RecordBatch},
        compute::concat_batches,
        datatypes::{Int32Type, SchemaRef},
    },
    parquet::{
        arrow::ArrowWriter,
        basic::{Compression, Encoding, ZstdLevel},
        errors::ParquetError,
        file::{
            metadata::KeyValue,
            properties::{EnabledStatistics, WriterProperties},
        },
        schema::types::ColumnPath,
    },
};
use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Tokens in a row group: what is decompressed to read one row.
const GROUP_TOKENS: usize = 1 << 14;

/// Collects packed rows of one side and writes them as shards.
pub(crate) struct ShardWriter {
    folder: PathBuf,
    split: Split,
    rows_per_shard: usize,
    rows_per_group: usize,
    schema: SchemaRef,
    properties: WriterProperties,
    /// The shard that is being made.
    open: Option<OpenShard>,
    finished: Vec<ShardInfo>,
}

struct OpenShard {
    writer: ArrowWriter<ShardFile>,
    /// Rows that do not fill a group yet. Groups are written at once, so that the bytes do not depend on how rows arrive.
    group: Vec<RecordBatch>,
    group_rows: usize,
    /// What each row is made of.
    rows: Vec<Vec<Piece>>,
    /// The hash of the content of each row in a group that was written, 16 digits a row.
    hashes: String,
    tokens: u64,
    label_tokens: u64,
}

impl ShardWriter {
    /// A writer that goes on behind finished shards.
    pub(crate) fn new(
        folder: &Path,
        split: Split,
        sequence_len: usize,
        shard_tokens: usize,
        finished: Vec<ShardInfo>,
    ) -> Self {
        let rows_per_group = (GROUP_TOKENS / sequence_len).max(1);
        Self {
            folder: folder.to_owned(),
            split,
            rows_per_shard: (shard_tokens / sequence_len).max(1),
            rows_per_group,
            schema: Arc::new(shard_schema()),
            properties: properties(rows_per_group),
            open: None,
            finished,
        }
    }

    /// Adds packed rows, and says what each is made of.
    pub(crate) fn write(&mut self, rows: &RecordBatch, mut pieces: impl Iterator<Item = Vec<Piece>>) -> Result<()> {
        let mut start = 0;
        while start < rows.num_rows() {
            let open = self.opened()?;
            let (in_shard, in_group) = (open.rows.len(), open.group_rows);
            let room = (self.rows_per_shard - in_shard).min(self.rows_per_group - in_group);
            let count = room.min(rows.num_rows() - start);
            self.append(&rows.slice(start, count), pieces.by_ref().take(count))?;
            start += count;
            if in_shard + count == self.rows_per_shard {
                self.close()?;
            }
        }
        Ok(())
    }

    /// The shards that are finished.
    pub(crate) fn finished(&self) -> &[ShardInfo] {
        &self.finished
    }

    /// What the rows of the shard that is not finished are made of.
    pub(crate) fn open_rows(&self) -> &[Vec<Piece>] {
        self.open.as_ref().map_or(&[], |open| &open.rows)
    }

    /// Writes the last shard and says what was written.
    pub(crate) fn finish(mut self) -> Result<Vec<ShardInfo>> {
        self.close()?;
        Ok(self.finished)
    }

    fn opened(&mut self) -> Result<&mut OpenShard> {
        if self.open.is_none() {
            let path = self.path();
            let file = ShardFile::begin(&path)?;
            let writer = ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(self.properties.clone()))
                .map_err(|error| write_error(&path, error))?;
            let (group, rows) = (Vec::new(), Vec::new());
            let hashes = String::new();
            self.open = Some(OpenShard { writer, group, group_rows: 0, rows, hashes, tokens: 0, label_tokens: 0 });
        }
        Ok(self.open.as_mut().expect("it was opened above"))
    }

    fn append(&mut self, rows: &RecordBatch, pieces: impl Iterator<Item = Vec<Piece>>) -> Result<()> {
        let (path, rows_per_group) = (self.path(), self.rows_per_group);
        let columns = rows.project(&(0..self.schema.fields().len()).collect::<Vec<_>>());
        let columns = columns.map_err(|error| shard_error(&path, &error.into()))?;
        let open = self.opened()?;
        // The values of a list column lie side by side; a slice's begin somewhere among them.
        let count = |column: &str, counts: fn(i32) -> bool| {
            let lists = rows[column].as_list::<i32>();
            let (start, end) = (lists.value_offsets()[0] as usize, lists.value_offsets()[rows.num_rows()] as usize);
            let values = &lists.values().as_primitive::<Int32Type>().values()[start..end];
            values.iter().filter(|value| counts(**value)).count() as u64
        };
        open.tokens += count(SEGMENT_IDS, |segment| segment > 0);
        open.label_tokens += count(LABELS, |label| label != IGNORE_INDEX);
        open.rows.extend(pieces);
        open.group.push(columns);
        open.group_rows += rows.num_rows();
        if open.group_rows == rows_per_group {
            open.write_group().map_err(|error| write_error(&path, error))?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let path = self.path();
        let encoding = |error: ParquetError| write_error(&path, error);
        open.write_group().map_err(encoding)?;
        let counts = open.rows.iter().map(|pieces| pieces.len().to_string()).collect::<Vec<_>>();
        open.writer.append_key_value_metadata(KeyValue::new(SEGMENTS_KEY.to_owned(), counts.join(",")));
        open.writer.append_key_value_metadata(KeyValue::new(HASHES_KEY.to_owned(), std::mem::take(&mut open.hashes)));
        let (size_bytes, sha256) = open.writer.into_inner().map_err(encoding)?.finish()?;
        self.finished.push(ShardInfo {
            path: self.relative_path(),
            rows: open.rows.len() as u64,
            segments: open.rows.iter().map(|pieces| pieces.len() as u64).sum(),
            tokens: open.tokens,
            label_tokens: open.label_tokens,
            size_bytes,
            sha256,
        });
        Ok(())
    }

    fn relative_path(&self) -> String {
        format!("{}/{:05}.parquet", self.split.folder(), self.finished.len())
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.relative_path())
    }
}

impl OpenShard {
    fn write_group(&mut self) -> Result<(), ParquetError> {
        let Some(first) = self.group.first() else { return Ok(()) };
        let group = concat_batches(&first.schema(), &std::mem::take(&mut self.group))?;
        self.group_rows = 0;
        let [ids, labels, segment_ids] = [INPUT_IDS, LABELS, SEGMENT_IDS].map(|name| group[name].as_list::<i32>());
        for row in 0..group.num_rows() {
            let [ids, labels, segment_ids] = [ids, labels, segment_ids].map(|lists| lists.value(row));
            let values = [&ids, &labels, &segment_ids].map(|values| values.as_primitive::<Int32Type>().values());
            let _ = write!(self.hashes, "{:016x}", content_hash(values[0], values[1], values[2])); // into memory
        }
        self.writer.write(&group)
    }
}

/// What went wrong with writing a shard: mostly the disk.
fn write_error(path: &Path, error: ParquetError) -> DataError {
    let ParquetError::External(source) = error else { return shard_error(path, &error) };
    match source.downcast::<io::Error>() {
        Ok(source) => dlm_files::FileError { action: "write", path: path.to_owned(), source: *source }.into(),
        Err(source) => shard_error(path, &ParquetError::External(source)),
    }
}

/// How the columns are encoded: cheaply, and small enough.
///
/// Ids have too many values for a dictionary to pay; the compression finds what repeats in them. The numbers of the other columns
/// rise evenly or stay the same, so their differences take next to nothing. Nobody searches these columns, so there are no
/// statistics.
fn properties(rows_per_group: usize) -> WriterProperties {
    let even = [SEGMENT_IDS, POSITION_IDS, DOCUMENT_IDS, DOCUMENT_OFFSETS];
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(rows_per_group))
        .set_created_by("dlm".to_owned())
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true);
    let column = |name: &str| ColumnPath::new([name, "list", "item"].map(str::to_owned).to_vec());
    even.into_iter()
        .fold(properties, |all, name| all.set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED))
        .build()
}
