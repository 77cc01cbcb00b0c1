//! Looking at prepared data: counts, lengths, and rows as text with prompts and answers told apart.

use crate::{
    batch::IGNORE_INDEX,
    error::{DataError, Result},
    manifest::{Manifest, Split},
    prepared::PreparedData,
    shard::Row,
    shuffle::Permutation,
};
use dlm_tokenizer::{KeepSpecials, Tokenizer};
use serde::Serialize;
use std::path::Path;

/// Tokens that are turned into text to count its characters.
const MEASURED_TOKENS: u64 = 1 << 18;
/// Classes of how full rows are.
const FILL_BUCKETS: usize = 10;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectOptions {
    /// Rows of each side to show as text, from the first.
    pub samples: u64,
    /// The only side to look at; both where unset.
    pub split: Option<Split>,
}

impl Default for InspectOptions {
    /// Three rows of both sides.
    fn default() -> Self {
        Self { samples: 3, split: None }
    }
}

/// What [`inspect`] found. As JSON its keys are the names of the fields here.
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
    /// Places that hold no token.
    pub padding_tokens: u64,
    /// Tokens that are targets.
    pub label_tokens: u64,
    /// The share of the rows' places that hold tokens, between 0 and 1.
    pub packing_efficiency: f64,
    /// The share of the tokens that are targets, between 0 and 1.
    pub label_share: f64,
    /// Tokens in a character of text, special tokens not counted; of a part of large data. Absent where there is no text.
    pub tokens_per_character: Option<f64>,
    /// How long segments are.
    pub length: Lengths,
    /// How many segments have how many tokens.
    pub lengths: Vec<LengthBucket>,
    /// How many rows are how full.
    pub fill: Vec<FillBucket>,
    /// The first rows.
    pub samples: Vec<DecodedRow>,
}

/// Lengths of segments in tokens. Half of the segments are no longer than `median`, nine in ten no longer than `p90`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// The one in the middle.
    pub median: usize,
    /// The mean.
    pub mean: f64,
    /// The one behind nine tenths.
    pub p90: usize,
    /// The longest.
    pub max: usize,
}

/// Rows that are about equally full.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FillBucket {
    /// The least share of places with tokens, not included unless it is 0.
    pub from: f64,
    /// The greatest.
    pub to: f64,
    /// How many rows are so full.
    pub rows: u64,
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

/// Reads all rows of prepared data and says what is in them.
///
/// # Errors
/// [`DataError::NotPrepared`] and [`DataError::Shard`], as a reader would find them; [`DataError::NotPrepared`] as well when the side
/// asked for is not there.
pub fn inspect(folder: impl AsRef<Path>, options: &InspectOptions) -> Result<Inspection> {
    let folder = folder.as_ref();
    let manifest = Manifest::read(folder)?;
    let mut sides = Vec::new();
    for split in [Split::Train, Split::Validation] {
        let is_wanted = options.split.is_none_or(|wanted| wanted == split);
        if is_wanted && manifest.split(split).is_some_and(|side| side.rows > 0) {
            sides.push(side(&PreparedData::open(folder, split)?, options.samples)?);
        }
    }
    if let (Some(split), true) = (options.split, sides.is_empty()) {
        let message = format!("it has no rows on the `{}` side", split.folder());
        return Err(DataError::NotPrepared { path: folder.to_owned(), message });
    }
    Ok(Inspection { manifest, sides })
}

fn side(data: &PreparedData, samples: u64) -> Result<SideInspection> {
    let tokenizer = data.tokenizer()?;
    let places = data.sequence_len();
    // How many segments have each length, of which there are as many as a row has places.
    let mut lengths = vec![0u64; places + 1];
    let mut fill = vec![0u64; FILL_BUCKETS];
    let mut label_tokens = 0;
    let mut decoded = Vec::new();
    for i in 0..data.rows() {
        let row = data.read_row(i)?;
        let mut tokens = 0;
        for segment in segments_of(&row) {
            lengths[segment.ids.len()] += 1;
            tokens += segment.ids.len();
            label_tokens += segment.labels.iter().filter(|label| **label != IGNORE_INDEX).count() as u64;
        }
        fill[(tokens * FILL_BUCKETS).div_ceil(places).saturating_sub(1)] += 1;
        if i < samples {
            decoded.push(decode(&row, &tokenizer)?);
        }
    }
    let segments = lengths.iter().sum();
    let tokens: u64 = lengths.iter().zip(0..).map(|(count, length)| count * length).sum();
    let all_places = data.rows() * places as u64;
    let edge = |bucket: usize| bucket as f64 / FILL_BUCKETS as f64;
    let fill = fill.into_iter().enumerate();
    Ok(SideInspection {
        split: data.split(),
        rows: data.rows(),
        segments,
        tokens,
        padding_tokens: all_places - tokens,
        label_tokens,
        packing_efficiency: tokens as f64 / all_places.max(1) as f64,
        label_share: label_tokens as f64 / tokens.max(1) as f64,
        tokens_per_character: tokens_per_character(data, &tokenizer)?,
        length: summary(&lengths),
        lengths: buckets(&lengths),
        fill: fill.map(|(bucket, rows)| FillBucket { from: edge(bucket), to: edge(bucket + 1), rows }).collect(),
        samples: decoded,
    })
}

/// The order statistics of lengths, given how often each occurs.
fn summary(counts: &[u64]) -> Lengths {
    let segments: u64 = counts.iter().sum();
    let tokens: u64 = counts.iter().zip(0..).map(|(count, length)| count * length).sum();
    // The length of the segment with this rank, from 1 for the shortest.
    let at_rank = |rank: u64| {
        let mut seen = 0;
        let mut reaches = |count: &u64| {
            seen += count;
            seen >= rank
        };
        counts.iter().position(&mut reaches).unwrap_or(0)
    };
    if segments == 0 {
        return Lengths::default();
    }
    Lengths {
        min: at_rank(1),
        median: at_rank(segments.div_ceil(2)),
        mean: tokens as f64 / segments as f64,
        p90: at_rank((segments * 9).div_ceil(10)),
        max: at_rank(segments),
    }
}

/// Lengths in classes that double: from 2^b to 2^(b+1) - 1 tokens, or to those of a row. Empty ones between others are kept.
fn buckets(counts: &[u64]) -> Vec<LengthBucket> {
    let mut buckets: Vec<LengthBucket> = Vec::new();
    for (length, count) in counts.iter().enumerate().skip(1) {
        let from = 1 << length.ilog2();
        match buckets.last_mut() {
            Some(bucket) if bucket.from == from => bucket.segments += count,
            _ => buckets.push(LengthBucket { from, to: (2 * from - 1).min(counts.len() - 1), segments: *count }),
        }
    }
    let filled = |bucket: &LengthBucket| bucket.segments > 0;
    let first = buckets.iter().position(filled).unwrap_or(0);
    let end = buckets.iter().rposition(filled).map_or(0, |last| last + 1);
    buckets.truncate(end);
    buckets.split_off(first.min(end))
}

/// Tokens in a character, of rows scattered over the data.
fn tokens_per_character(data: &PreparedData, tokenizer: &Tokenizer) -> Result<Option<f64>> {
    let special = tokenizer.special();
    let specials: Vec<i32> = [&special.bos, &special.eos, &special.pad]
        .into_iter()
        .flatten()
        .filter_map(|token| i32::try_from(token.id).ok())
        .collect();
    let order = Permutation::new(data.rows().max(1), 0, 0);
    let (mut tokens, mut characters) = (0, 0);
    for place in 0..data.rows() {
        if tokens >= MEASURED_TOKENS {
            break;
        }
        for segment in segments_of(&data.read_row(order.at(place))?) {
            let ids: Vec<u32> =
                segment.ids.iter().filter(|id| !specials.contains(id)).map(|id| id.unsigned_abs()).collect();
            tokens += ids.len() as u64;
            characters += tokenizer.decode(&ids, KeepSpecials::No)?.chars().count();
        }
    }
    Ok((characters > 0).then(|| tokens as f64 / characters as f64))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each length occurs: 1, 1, 2, 3, 9.
    const COUNTS: [u64; 12] = [0, 2, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0];

    #[test]
    fn lengths_are_summarised_by_their_ranks() {
        assert_eq!(summary(&COUNTS), Lengths { min: 1, median: 2, mean: 16.0 / 5.0, p90: 9, max: 9 });
        assert_eq!(summary(&[0, 0]), Lengths::default());
    }

    #[test]
    fn classes_of_lengths_double_and_keep_the_gaps_between_them() {
        let bucket = |from, to, segments| LengthBucket { from, to, segments };
        assert_eq!(buckets(&COUNTS), [bucket(1, 1, 2), bucket(2, 3, 2), bucket(4, 7, 0), bucket(8, 11, 1)]);
        assert_eq!(buckets(&[0, 0, 0]), []);
    }
}
