//! Documents side by side in rows of equal length, kept apart by segment.

use crate::{
    batch::IGNORE_INDEX,
    first_fit::first_fit_decreasing,
    step::{Overlong, Pack, PackStrategy},
};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A document, or a piece of a longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Which document.
    pub document: i64,
    /// A second name of the document, for whoever has one: see [`Packer::push_keyed`].
    pub key: i64,
    /// Where the part of a document that was packed begins in the whole, in tokens: 0 unless a step has cut it.
    pub first: i64,
    /// Where the piece begins in that part.
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
    /// What it is made of.
    pub(crate) pieces: Vec<Piece>,
}

/// A fragment by name: which tokens, not the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, usize, usize)", into = "(i64, usize, usize)")]
pub(crate) struct Piece {
    /// The key of the document.
    pub(crate) document: i64,
    /// Where the piece begins in it, in tokens.
    pub(crate) offset: usize,
    /// Its tokens.
    pub(crate) len: usize,
}

impl From<(i64, usize, usize)> for Piece {
    fn from((document, offset, len): (i64, usize, usize)) -> Self {
        Self { document, offset, len }
    }
}

impl From<Piece> for (i64, usize, usize) {
    fn from(piece: Piece) -> Self {
        (piece.document, piece.offset, piece.len)
    }
}

impl Fragment {
    pub(crate) fn piece(&self) -> Piece {
        let offset = usize::try_from(self.offset).expect("an offset is no negative number");
        Piece { document: self.key, offset, len: self.ids.len() }
    }
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
        let mut finished = Vec::new();
        let dropped = self.push_keyed(document, document, 0, ids, labels, &mut finished);
        (finished, dropped)
    }

    /// As [`push`](Self::push), with a second name for the document, unique among all, where `document` need not be, and the place
    /// where the tokens begin in the document, where a step has cut it.
    ///
    /// # Panics
    /// When there are not as many labels as ids.
    pub fn push_keyed(
        &mut self,
        document: i64,
        key: i64,
        first: i64,
        ids: &[i32],
        labels: &[i32],
        finished: &mut Vec<PackedRow>,
    ) -> bool {
        assert_eq!(ids.len(), labels.len(), "labels of document {document}");
        let capacity = self.options.sequence_len;
        if ids.len() > capacity && self.options.overlong == Overlong::Drop {
            return true;
        }
        let mut start = 0;
        while start < ids.len() {
            let end = ids.len().min(start + self.longest_piece());
            let offset = i64::try_from(start).expect("a document fits in memory");
            let (ids, labels) = (ids[start..end].to_vec(), labels[start..end].to_vec());
            self.place(Fragment { document, key, first, offset, ids, labels }, finished);
            start = end;
        }
        false
    }

    /// The longest piece that the next fragment may be.
    fn longest_piece(&self) -> usize {
        match (self.options.strategy, self.open.front()) {
            (PackStrategy::Concatenate, Some((room, _))) => *room,
            _ => self.options.sequence_len,
        }
    }

    /// The rows that are still open.
    pub fn finish(&mut self) -> Vec<PackedRow> {
        let mut finished = Vec::new();
        self.pack_waiting(&mut finished);
        finished.extend(std::mem::take(&mut self.open).into_iter().map(|(_, fragments)| self.row(&fragments)));
        finished
    }

    /// What is held back, by name: rows that may still take something, and what waits to be sorted.
    pub(crate) fn held(&self) -> (Vec<Vec<Piece>>, Vec<Piece>) {
        let pieces = |fragments: &[Fragment]| fragments.iter().map(Fragment::piece).collect::<Vec<_>>();
        (self.open.iter().map(|(_, fragments)| pieces(fragments)).collect(), pieces(&self.waiting))
    }

    /// Goes on from what another packer of the same options held back.
    pub(crate) fn hold(&mut self, open: Vec<Vec<Fragment>>, waiting: Vec<Fragment>) {
        let tokens = |fragments: &[Fragment]| fragments.iter().map(|fragment| fragment.ids.len()).sum::<usize>();
        self.waiting_tokens = tokens(&waiting);
        self.waiting = waiting;
        let with_room = |fragments: Vec<Fragment>| (self.options.sequence_len - tokens(&fragments), fragments);
        self.open = open.into_iter().map(with_room).collect();
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
            PackStrategy::Concatenate => {
                if self.open.is_empty() {
                    self.open.push_back((capacity, Vec::new()));
                }
                let (room, fragments) = &mut self.open[0];
                *room -= len;
                fragments.push(fragment);
                if *room == 0 {
                    let full = self.open.pop_front();
                    finished.extend(full.map(|(_, fragments)| self.row(&fragments)));
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

    /// The row that these fragments make.
    pub(crate) fn row(&self, fragments: &[Fragment]) -> PackedRow {
        let len = self.options.sequence_len;
        let mut row = PackedRow::default();
        for list in [&mut row.ids, &mut row.labels, &mut row.segment_ids, &mut row.position_ids] {
            list.reserve_exact(len);
        }
        for (segment, fragment) in (1..).zip(fragments) {
            row.ids.extend_from_slice(&fragment.ids);
            row.labels.extend_from_slice(&fragment.labels);
            row.segment_ids.resize(row.ids.len(), segment);
            row.position_ids.extend((0..).take(fragment.ids.len()));
            row.document_ids.push(fragment.document);
            row.document_offsets.push(fragment.first + fragment.offset);
            row.pieces.push(fragment.piece());
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

    const STRATEGIES: [PackStrategy; 5] = [
        PackStrategy::FirstFitDecreasing,
        PackStrategy::FirstFit,
        PackStrategy::Sequential,
        PackStrategy::Concatenate,
        PackStrategy::Alone,
    ];

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
        fn a_packer_that_is_restored_between_two_documents_goes_on_alike(
            lengths in prop::collection::vec(1usize..40, 1..60),
            sequence_len in 2usize..20,
            window in 1usize..6,
            strategy in prop::sample::select(&STRATEGIES),
            at in 0usize..60,
        ) {
            let options = Pack { strategy, window, ..Pack::new(sequence_len) };
            let document = |i: i64| (0..lengths[i as usize]).map(|at| i as i32 * 100 + at as i32).collect::<Vec<_>>();
            let push = |packer: &mut Packer, documents: std::ops::Range<usize>| -> Vec<PackedRow> {
                documents.flat_map(|i| packer.push(i as i64, &document(i as i64), &document(i as i64)).0).collect()
            };
            let at = at.min(lengths.len());
            let mut whole = Packer::new(options.clone(), -1);
            push(&mut whole, 0..at);

            let (open, waiting) = whole.held();
            let fragment = |piece: &Piece| {
                let ids = document(piece.document)[piece.offset..piece.offset + piece.len].to_vec();
                let (document, offset) = (piece.document, piece.offset as i64);
                Fragment { document, key: document, first: 0, offset, labels: ids.clone(), ids }
            };
            let fragments = |pieces: &Vec<Piece>| pieces.iter().map(fragment).collect::<Vec<_>>();
            let mut restored = Packer::new(options, -1);
            restored.hold(open.iter().map(fragments).collect(), fragments(&waiting));

            prop_assert_eq!(push(&mut restored, at..lengths.len()), push(&mut whole, at..lengths.len()));
            prop_assert_eq!(restored.finish(), whole.finish());
        }
    }

    #[test]
    fn concatenated_documents_leave_padding_in_the_last_row_only() {
        let mut packer = Packer::new(Pack { strategy: PackStrategy::Concatenate, ..Pack::new(4) }, 0);
        let mut rows = packer.push(7, &[1, 2, 3], &[1, 2, 3]).0;
        rows.extend(packer.push(8, &[4, 5, 6, 7, 8, 9], &[4, 5, 6, 7, 8, 9]).0);
        rows.extend(packer.finish());
        let ids: Vec<&[i32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        assert_eq!(ids, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 0, 0]]);
        let found: Vec<_> = rows.iter().map(|row| (row.document_ids.clone(), row.document_offsets.clone())).collect();
        assert_eq!(found, [(vec![7, 8], vec![0, 0]), (vec![8], vec![1]), (vec![8], vec![5])]);
        assert_eq!(rows[1].position_ids, [0, 1, 2, 3]);
    }

    #[test]
    fn overlong_documents_are_dropped_only_when_asked() {
        let mut packer = Packer::new(Pack { overlong: Overlong::Drop, ..Pack::new(4) }, 0);
        assert_eq!(packer.push(0, &[1; 5], &[1; 5]), (Vec::new(), true));
        assert_eq!(packer.push(1, &[1; 4], &[1; 4]), (Vec::new(), false));
        assert_eq!(packer.finish().len(), 1);
    }
}
