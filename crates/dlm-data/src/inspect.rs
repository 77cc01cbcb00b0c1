//! Looking at prepared data: counts, lengths, and rows as text with prompts and answers told apart.

use crate::{
    batch::IGNORE_INDEX,
    error::Result,
    manifest::{Manifest, Split},
    prepared::PreparedData,
    shard::Row,
};
use dlm_tokenizer::{KeepSpecials, Tokenizer};
use serde::Serialize;
use std::path::Path;

/// What [`inspect`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// What the data says of itself.
    pub manifest: Manifest,
    /// The sides, training first.
    pub sides: Vec<SideInspection>,
}

/// One side of the data.
#[derive(Debug, Clone, Serialize)]
pub struct SideInspection {
    /// Which one.
    pub split: Split,
    /// Packed rows.
    pub rows: u64,
    /// Documents and pieces of documents.
    pub segments: u64,
    /// Tokens without padding.
    pub tokens: u64,
    /// The share of the rows' places that hold tokens, between 0 and 1.
    pub packing_efficiency: f64,
    /// The share of the tokens that are targets, between 0 and 1.
    pub label_share: f64,
    /// How many segments have how many tokens.
    pub lengths: Vec<LengthBucket>,
    /// The first rows.
    pub samples: Vec<DecodedRow>,
}

/// Segments of similar length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LengthBucket {
    /// The least number of tokens.
    pub from: usize,
    /// The greatest number of tokens.
    pub to: usize,
    /// How many segments have so many.
    pub segments: u64,
}

/// A row as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecodedRow {
    /// Its segments in order.
    pub segments: Vec<DecodedSegment>,
    /// Padding tokens at its end.
    pub padding: usize,
}

/// A document, or a piece of one, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DecodedSegment {
    /// Which document.
    pub document: i64,
    /// Where the piece begins in it, in tokens.
    pub offset: i64,
    /// Its tokens.
    pub tokens: usize,
    /// Its text; pieces with and without labels take turns.
    pub spans: Vec<Span>,
}

/// Text of which either all tokens are targets or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The text, special tokens spelled out.
    pub text: String,
    /// Whether it is for the model to produce.
    pub is_answer: bool,
}

/// Reads all rows of prepared data and says what is in them; the first `samples` rows of each side as text.
///
/// # Errors
/// [`DataError::NotPrepared`](crate::DataError::NotPrepared) and [`DataError::Shard`](crate::DataError::Shard), as a reader would find them.
pub fn inspect(folder: impl AsRef<Path>, samples: u64) -> Result<Inspection> {
    let folder = folder.as_ref();
    let manifest = Manifest::read(folder)?;
    let mut sides = Vec::new();
    for split in [Split::Train, Split::Validation] {
        if manifest.split(split).is_some_and(|side| side.rows > 0) {
            sides.push(side(&PreparedData::open(folder, split)?, split, samples)?);
        }
    }
    Ok(Inspection { manifest, sides })
}

fn side(data: &PreparedData, split: Split, samples: u64) -> Result<SideInspection> {
    let tokenizer = data.tokenizer()?;
    let mut lengths: Vec<u64> = Vec::new();
    let (mut segments, mut tokens, mut targets) = (0, 0, 0);
    let mut decoded = Vec::new();
    for i in 0..data.rows() {
        let row = data.read_row(i)?;
        for segment in segments_of(&row) {
            // Bucket b holds lengths from 2^b to 2^(b+1) - 1.
            let bucket = segment.ids.len().max(1).ilog2() as usize;
            lengths.resize(lengths.len().max(bucket + 1), 0);
            lengths[bucket] += 1;
            segments += 1;
            tokens += segment.ids.len() as u64;
            targets += segment.labels.iter().filter(|label| **label != IGNORE_INDEX).count() as u64;
        }
        if i < samples {
            decoded.push(decode(&row, &tokenizer)?);
        }
    }
    let places = (data.rows() * data.sequence_len() as u64).max(1);
    let buckets = lengths.into_iter().enumerate().filter(|(_, segments)| *segments > 0);
    Ok(SideInspection {
        split,
        rows: data.rows(),
        segments,
        tokens,
        packing_efficiency: tokens as f64 / places as f64,
        label_share: targets as f64 / tokens.max(1) as f64,
        lengths: buckets
            .map(|(bucket, segments)| LengthBucket { from: 1 << bucket, to: (2 << bucket) - 1, segments })
            .collect(),
        samples: decoded,
    })
}

/// A segment's part of a row.
struct SegmentOf<'a> {
    document: i64,
    offset: i64,
    ids: &'a [i32],
    labels: &'a [i32],
}

fn segments_of(row: &Row) -> impl Iterator<Item = SegmentOf<'_>> {
    let mut start = 0;
    (1..).zip(row.document_ids.iter().zip(&row.document_offsets)).map(move |(segment, (document, offset))| {
        let len = row.segment_ids[start..].iter().take_while(|found| **found == segment).count();
        let place = start..start + len;
        start += len;
        let (ids, labels) = (&row.input_ids[place.clone()], &row.labels[place]);
        SegmentOf { document: *document, offset: *offset, ids, labels }
    })
}

fn decode(row: &Row, tokenizer: &Tokenizer) -> Result<DecodedRow> {
    let mut segments = Vec::new();
    for segment in segments_of(row) {
        let mut spans = Vec::new();
        let mut start = 0;
        for run in segment.labels.chunk_by(|a, b| (*a == IGNORE_INDEX) == (*b == IGNORE_INDEX)) {
            let ids = segment.ids[start..start + run.len()].iter().map(|id| id.unsigned_abs());
            let text = tokenizer.decode(&ids.collect::<Vec<u32>>(), KeepSpecials::Yes)?;
            spans.push(Span { text, is_answer: run[0] != IGNORE_INDEX });
            start += run.len();
        }
        let SegmentOf { document, offset, ids, .. } = segment;
        segments.push(DecodedSegment { document, offset, tokens: ids.len(), spans });
    }
    let padding = row.segment_ids.iter().filter(|segment| **segment == 0).count();
    Ok(DecodedRow { segments, padding })
}
