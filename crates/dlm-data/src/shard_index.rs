//! Where the row groups of a shard lie: a footer in a small form, from which that of a single group is made when it is read.
//!
//! A dataset of a million rows has a hundred thousand groups. What the parquet crate keeps of each takes kilobytes; this takes
//! some hundred bytes, so that any group is a single read away.

use datafusion::parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    basic::Compression,
    errors::Result,
    file::metadata::{ColumnChunkMetaData, FileMetaData, ParquetMetaData, RowGroupMetaData},
    schema::types::SchemaDescPtr,
};
use std::sync::Arc;

/// The groups of one shard.
#[derive(Debug)]
pub(crate) struct GroupIndex {
    schema: SchemaDescPtr,
    version: i32,
    compression: Vec<Compression>,
    /// The first row of each group, and the number of rows at the end.
    starts: Vec<u64>,
    /// Group by group, column by column.
    chunks: Vec<Chunk>,
}

/// The part of one column that lies in one group.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    /// Where its first page lies in the file.
    start: u64,
    /// Bytes from there to its first page of data, where a dictionary stands before it.
    dictionary: Option<u32>,
    compressed: u32,
    uncompressed: u32,
    values: u32,
}

impl GroupIndex {
    /// Takes what is needed out of a footer; `None` where it says something impossible.
    pub(crate) fn of(metadata: &ParquetMetaData) -> Option<Self> {
        let mut starts = vec![0];
        let mut chunks = Vec::new();
        for group in metadata.row_groups() {
            starts.push(starts.last()? + u64::try_from(group.num_rows()).ok()?);
            for column in group.columns() {
                chunks.push(Chunk::of(column)?);
            }
        }
        let first = metadata.row_groups().first();
        let compression =
            first.map_or(Vec::new(), |group| group.columns().iter().map(ColumnChunkMetaData::compression).collect());
        let file = metadata.file_metadata();
        Some(Self { schema: file.schema_descr_ptr(), version: file.version(), compression, starts, chunks })
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The first row of a group.
    pub(crate) fn first_row(&self, group: usize) -> u64 {
        self.starts[group]
    }

    /// The group that holds a row, and the row's place in it.
    pub(crate) fn of_row(&self, row: u64) -> (usize, usize) {
        let group = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        (group, usize::try_from(row - self.starts[group]).expect("a group fits in memory"))
    }

    /// The footer of a file that has this group alone.
    pub(crate) fn metadata(&self, group: usize) -> Result<ArrowReaderMetadata> {
        let rows = (self.starts[group + 1] - self.starts[group]).cast_signed();
        let columns = self.compression.len();
        let mut builder = RowGroupMetaData::builder(Arc::clone(&self.schema)).set_num_rows(rows);
        let mut bytes = 0;
        for (column, chunk) in self.chunks[group * columns..(group + 1) * columns].iter().enumerate() {
            bytes += i64::from(chunk.uncompressed);
            let start = chunk.start.cast_signed();
            let described = ColumnChunkMetaData::builder(self.schema.column(column))
                .set_compression(self.compression[column])
                .set_num_values(chunk.values.into())
                .set_total_compressed_size(chunk.compressed.into())
                .set_total_uncompressed_size(chunk.uncompressed.into())
                .set_dictionary_page_offset(chunk.dictionary.map(|_| start))
                .set_data_page_offset(start + i64::from(chunk.dictionary.unwrap_or(0)));
            builder = builder.add_column_metadata(described.build()?);
        }
        let group = builder.set_total_byte_size(bytes).build()?;
        let file = FileMetaData::new(self.version, rows, None, None, Arc::clone(&self.schema), None);
        ArrowReaderMetadata::try_new(Arc::new(ParquetMetaData::new(file, vec![group])), ArrowReaderOptions::default())
    }
}

impl Chunk {
    fn of(column: &ColumnChunkMetaData) -> Option<Self> {
        let data = u64::try_from(column.data_page_offset()).ok()?;
        let dictionary = column.dictionary_page_offset().map(u64::try_from).transpose().ok()?;
        let start = dictionary.unwrap_or(data);
        let dictionary = dictionary.map(|start| u32::try_from(data.checked_sub(start)?).ok());
        Some(Self {
            start,
            dictionary: match dictionary {
                None => None,
                Some(distance) => Some(distance?),
            },
            compressed: u32::try_from(column.compressed_size()).ok()?,
            uncompressed: u32::try_from(column.uncompressed_size()).ok()?,
            values: u32::try_from(column.num_values()).ok()?,
        })
    }
}
