//! Documents that stand on both sides of the split, found in bounded memory.
//!
//! A document may lie in pieces over many rows. The hash of a document is the sum of the hashes of its tokens with their places,
//! so pieces can be added in any order. Documents are looked at in parts, by their ids, so many that each part fits in memory.

use crate::{
    error::Result,
    manifest::{Manifest, Split, SplitInfo},
    shard::{Row, Shard},
    shuffle::{keyed, mix},
};
use std::{collections::HashMap, path::Path};

/// Documents that are held at once: some 60 bytes each.
const DOCUMENTS_AT_ONCE: u64 = 1 << 22;

/// A document that stands on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leak {
    pub(crate) train: Place,
    pub(crate) validation: Place,
}

/// Where a document begins, or the first of its pieces that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    pub(crate) row: u64,
    pub(crate) document: i64,
}

/// The documents that stand on both sides. Shards that cannot be read are left out: others report those.
pub(crate) fn find(folder: &Path, manifest: &Manifest) -> Vec<Leak> {
    find_in_parts(folder, manifest, DOCUMENTS_AT_ONCE)
}

pub(crate) fn find_in_parts(folder: &Path, manifest: &Manifest, at_once: u64) -> Vec<Leak> {
    let Some(side) = &manifest.validation else { return Vec::new() };
    let parts = |side: &SplitInfo| SplitInfo::of(side.shards.clone()).segments.div_ceil(at_once.max(1)).max(1);
    let (train_parts, validation_parts) = (parts(&manifest.train), parts(side));
    let mut leaks = Vec::new();
    for part in 0..validation_parts {
        let validation = documents(folder, manifest, Split::Validation, part, validation_parts);
        let known: HashMap<u128, Place> = validation.into_values().collect();
        for part in 0..train_parts {
            let train = documents(folder, manifest, Split::Train, part, train_parts);
            let both = train.into_values().filter_map(|(hash, train)| {
                let validation = *known.get(&hash)?;
                Some(Leak { train, validation })
            });
            leaks.extend(both);
        }
    }
    leaks.sort_by_key(|leak| (leak.train, leak.validation));
    leaks
}

/// The documents of one part of a side: their hashes and where they are.
fn documents(folder: &Path, manifest: &Manifest, split: Split, part: u64, parts: u64) -> HashMap<i64, (u128, Place)> {
    let mut documents: HashMap<i64, (u128, Place)> = HashMap::new();
    let shards = manifest.split(split).map_or(&[][..], |side| &side.shards);
    for (shard, info) in shards.iter().enumerate() {
        let Ok(opened) = Shard::open(folder, info) else { continue };
        let read = opened.for_each_row(|row, content| {
            for (document, hash) in segment_hashes(&content) {
                if mix(document.cast_unsigned()) % parts == part {
                    let entry = documents.entry(document).or_insert((0, Place { shard, row, document }));
                    entry.0 = entry.0.wrapping_add(hash);
                }
            }
            Ok(())
        });
        let _: Result<()> = read;
    }
    documents
}

/// The document and the hash of each segment of a row.
fn segment_hashes(row: &Row) -> Vec<(i64, u128)> {
    let places = row.document_ids.iter().zip(&row.document_offsets);
    let mut hashes: Vec<(i64, u128)> = places.clone().map(|(document, _)| (*document, 0)).collect();
    for ((id, segment), position) in row.input_ids.iter().zip(&row.segment_ids).zip(&row.position_ids) {
        let which = usize::try_from(*segment).ok().and_then(|segment| segment.checked_sub(1));
        if let Some(which) = which.filter(|which| *which < hashes.len() && *which < row.document_offsets.len()) {
            let place = row.document_offsets[which].wrapping_add(i64::from(*position)).cast_unsigned();
            let id = u64::from(id.cast_unsigned());
            let token = u128::from(keyed(id, place)) << 64 | u128::from(keyed(!id, place));
            hashes[which].1 = hashes[which].1.wrapping_add(token);
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(segments: &[(i64, i64, &[i32])]) -> Row {
        let mut row = Row::default();
        for (segment, (document, offset, ids)) in (1..).zip(segments) {
            row.input_ids.extend(*ids);
            row.segment_ids.extend(ids.iter().map(|_| segment));
            row.position_ids.extend((0..).take(ids.len()));
            row.document_ids.push(*document);
            row.document_offsets.push(*offset);
        }
        row
    }

    #[test]
    fn the_hash_of_a_document_does_not_depend_on_where_it_was_cut() {
        let sum =
            |rows: &[Row]| rows.iter().flat_map(segment_hashes).fold(0u128, |sum, (_, hash)| sum.wrapping_add(hash));
        let whole = sum(&[row(&[(1, 0, &[5, 6, 7, 8])])]);
        assert_eq!(whole, sum(&[row(&[(1, 3, &[8]), (1, 0, &[5])]), row(&[(1, 1, &[6, 7])])]));
        assert_ne!(whole, sum(&[row(&[(1, 0, &[5, 7, 6, 8])])]));
        assert_ne!(whole, sum(&[row(&[(1, 0, &[5, 6, 7])])]));
        assert_ne!(whole, sum(&[row(&[(1, 1, &[5, 6, 7, 8])])]));
    }
}
