//! Documents side by side in rows of equal length, kept apart by segment.

use crate::{
    batch::IGNORE_INDEX,
    step::{Overlong, Pack, PackStrategy},
};
use std::collections::VecDeque;

/// A document, or a piece of a longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Which document.
    pub document: i64,
    /// Where the piece begins in its document, in tokens.
    pub offset: i64,
    /// Token ids.
    pub ids: Vec<i32>,
    /// Labels, as many.
    pub labels: Vec<i32>,
}

/// A packed row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedRow {
    /// Token ids, filled up with the padding token.
    pub ids: Vec<i32>,
    /// Labels, [`IGNORE_INDEX`] in the padding.
    pub labels: Vec<i32>,
    /// 1, 2, ... per fragment, 0 in the padding.
    pub segment_ids: Vec<i32>,
    /// 0, 1, ... in each fragment and in the padding.
    pub position_ids: Vec<i32>,
    /// The document of each segment.
    pub document_ids: Vec<i64>,
    /// The offset in it of each segment.
    pub document_offsets: Vec<i64>,
}

/// Which of the fragments of these lengths share a row: each goes into the first row that has room for it and fewer than
/// `most` fragments. One longer than `capacity` gets a row of its own, which no other shares.
#[must_use]
pub fn first_fit(lengths: &[usize], capacity: usize, most: usize) -> Vec<Vec<usize>> {
    fit(0..lengths.len(), lengths, capacity, most)
}

/// As [`first_fit`], the longest first; of equally long ones the earlier first.
#[must_use]
pub fn first_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    fit(order.into_iter(), lengths, capacity, usize::MAX)
}

/// Which of the fragments of these lengths share a row: each goes into the current row, or else begins the next.
#[must_use]
pub fn sequential(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (i, length) in lengths.iter().enumerate() {
        match rows.last_mut() {
            Some(row) if *length <= room => row.push(i),
            _ => {
                rows.push(vec![i]);
                room = capacity;
            }
        }
        room = room.saturating_sub(*length);
    }
    rows
}

fn fit(order: impl Iterator<Item = usize>, lengths: &[usize], capacity: usize, most: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    for i in order {
        let length = lengths[i];
        match rows.iter_mut().find(|(room, row)| *room >= length && row.len() < most) {
            Some((room, row)) => {
                *room -= length;
                row.push(i);
            }
            None => rows.push((capacity.saturating_sub(length), vec![i])),
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Packs a stream of documents in bounded memory.
#[derive(Debug)]
pub struct Packer {
    options: Pack,
    pad_id: i32,
    /// Rows that may still take a fragment, oldest first.
    open: VecDeque<(usize, Vec<Fragment>)>,
    /// Fragments that wait to be sorted.
    waiting: Vec<Fragment>,
    waiting_tokens: usize,
}

impl Packer {
    /// A packer that fills rows up with `pad_id`.
    #[must_use]
    pub fn new(options: Pack, pad_id: i32) -> Self {
        Self { options, pad_id, open: VecDeque::new(), waiting: Vec::new(), waiting_tokens: 0 }
    }

    /// Takes a document in and returns the rows that are finished, and whether the document was dropped as overlong.
    ///
    /// # Panics
    /// When there are not as many labels as ids.
    pub fn push(&mut self, document: i64, ids: &[i32], labels: &[i32]) -> (Vec<PackedRow>, bool) {
        assert_eq!(ids.len(), labels.len(), "labels of document {document}");
        let len = self.options.sequence_len;
        if ids.len() > len && self.options.overlong == Overlong::Drop {
            return (Vec::new(), true);
        }
        let mut finished = Vec::new();
        for (piece, (ids, labels)) in ids.chunks(len).zip(labels.chunks(len)).enumerate() {
            let offset = i64::try_from(piece * len).expect("a document fits in memory");
            let fragment = Fragment { document, offset, ids: ids.to_vec(), labels: labels.to_vec() };
            self.place(fragment, &mut finished);
        }
        (finished, false)
    }

    /// The rows that are still open.
    pub fn finish(&mut self) -> Vec<PackedRow> {
        let mut finished = Vec::new();
        self.pack_waiting(&mut finished);
        finished.extend(std::mem::take(&mut self.open).into_iter().map(|(_, fragments)| self.row(&fragments)));
        finished
    }

    /// Tokens held back at the moment.
    #[must_use]
    pub fn held_tokens(&self) -> usize {
        let open = self.open.iter().map(|(room, _)| self.options.sequence_len - room);
        self.waiting_tokens + open.sum::<usize>()
    }

    fn place(&mut self, fragment: Fragment, finished: &mut Vec<PackedRow>) {
        let capacity = self.options.sequence_len;
        let len = fragment.ids.len();
        match self.options.strategy {
            PackStrategy::Alone => finished.push(self.row(&[fragment])),
            PackStrategy::FirstFitDecreasing => {
                self.waiting.push(fragment);
                self.waiting_tokens += len;
                if self.waiting_tokens >= self.options.window.saturating_mul(capacity) {
                    self.pack_waiting(finished);
                }
            }
            PackStrategy::FirstFit | PackStrategy::Sequential => {
                let window = if self.options.strategy == PackStrategy::Sequential { 1 } else { self.options.window };
                match self.open.iter_mut().find(|(room, _)| *room >= len) {
                    Some((room, fragments)) => {
                        *room -= len;
                        fragments.push(fragment);
                    }
                    None => self.open.push_back((capacity - len, vec![fragment])),
                }
                while self.open.len() > window {
                    let oldest = self.open.pop_front();
                    finished.extend(oldest.map(|(_, fragments)| self.row(&fragments)));
                }
            }
        }
    }

    fn pack_waiting(&mut self, finished: &mut Vec<PackedRow>) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_tokens = 0;
        let lengths: Vec<usize> = waiting.iter().map(|fragment| fragment.ids.len()).collect();
        let mut waiting: Vec<Option<Fragment>> = waiting.into_iter().map(Some).collect();
        for row in first_fit_decreasing(&lengths, self.options.sequence_len) {
            let fragments: Vec<Fragment> = row.into_iter().filter_map(|i| waiting[i].take()).collect();
            finished.push(self.row(&fragments));
        }
    }

    fn row(&self, fragments: &[Fragment]) -> PackedRow {
        let len = self.options.sequence_len;
        let mut row = PackedRow::default();
        for (segment, fragment) in (1..).zip(fragments) {
            row.ids.extend_from_slice(&fragment.ids);
            row.labels.extend_from_slice(&fragment.labels);
            row.segment_ids.resize(row.ids.len(), segment);
            row.position_ids.extend((0..).take(fragment.ids.len()));
            row.document_ids.push(fragment.document);
            row.document_offsets.push(fragment.offset);
        }
        row.position_ids.extend((0..).take(len - row.ids.len()));
        row.ids.resize(len, self.pad_id);
        row.labels.resize(len, IGNORE_INDEX);
        row.segment_ids.resize(len, 0);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const STRATEGIES: [PackStrategy; 4] =
        [PackStrategy::FirstFitDecreasing, PackStrategy::FirstFit, PackStrategy::Sequential, PackStrategy::Alone];

    proptest! {
        #[test]
        fn packing_loses_nothing_and_segments_are_well_formed(
            lengths in prop::collection::vec(1usize..40, 1..60),
            sequence_len in 2usize..20,
            window in 1usize..6,
            strategy in prop::sample::select(&STRATEGIES),
        ) {
            let mut packer = Packer::new(Pack { strategy, window, ..Pack::new(sequence_len) }, -1);
            let document = |i: usize| (0..lengths[i]).map(|at| (i * 100 + at) as i32).collect::<Vec<_>>();
            let mut rows = Vec::new();
            for i in 0..lengths.len() {
                rows.extend(packer.push(i as i64, &document(i), &document(i)).0);
                prop_assert!(packer.held_tokens() < (window + 1) * sequence_len + 40);
            }
            rows.extend(packer.finish());

            let mut found: BTreeMap<i64, BTreeMap<i64, Vec<i32>>> = BTreeMap::new();
            for row in &rows {
                prop_assert_eq!(row.ids.len(), sequence_len);
                for (at, segment) in row.segment_ids.iter().enumerate() {
                    let begins = at == 0 || row.segment_ids[at - 1] != *segment;
                    prop_assert_eq!(row.position_ids[at], if begins { 0 } else { row.position_ids[at - 1] + 1 });
                    if *segment == 0 {
                        prop_assert_eq!((row.ids[at], row.labels[at]), (-1, IGNORE_INDEX));
                        continue;
                    }
                    prop_assert_eq!(row.ids[at], row.labels[at]);
                    let which = (*segment - 1) as usize;
                    let pieces = found.entry(row.document_ids[which]).or_default();
                    pieces.entry(row.document_offsets[which]).or_default().push(row.ids[at]);
                }
            }
            for i in 0..lengths.len() {
                let pieces = &found[&(i as i64)];
                let mut offset = 0;
                for (start, piece) in pieces {
                    prop_assert_eq!(*start, offset);
                    offset += piece.len() as i64;
                }
                prop_assert_eq!(pieces.values().flatten().copied().collect::<Vec<_>>(), document(i));
            }
        }

        #[test]
        fn rows_take_what_fits_and_every_fragment_has_one_row(lengths in prop::collection::vec(1usize..30, 0..80)) {
            for rows in [first_fit(&lengths, 30, 5), first_fit_decreasing(&lengths, 30), sequential(&lengths, 30)] {
                let mut all: Vec<usize> = rows.iter().flatten().copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
                prop_assert!(rows.iter().all(|row| row.iter().map(|i| lengths[*i]).sum::<usize>() <= 30));
            }
        }
    }

    #[test]
    fn decreasing_order_fills_rows_that_the_given_order_leaves_half_empty() {
        let lengths = [4, 4, 6, 6];
        assert_eq!(first_fit(&lengths, 10, 9), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(first_fit_decreasing(&lengths, 10), [vec![2, 0], vec![3, 1]]);
        assert_eq!(sequential(&[4, 4, 6, 2, 20], 10), [vec![0, 1], vec![2, 3], vec![4]]);
    }

    #[test]
    fn overlong_documents_are_dropped_only_when_asked() {
        let mut packer = Packer::new(Pack { overlong: Overlong::Drop, ..Pack::new(4) }, 0);
        assert_eq!(packer.push(0, &[1; 5], &[1; 5]), (Vec::new(), true));
        assert_eq!(packer.push(1, &[1; 4], &[1; 4]), (Vec::new(), false));
        assert_eq!(packer.finish().len(), 1);
    }
}
