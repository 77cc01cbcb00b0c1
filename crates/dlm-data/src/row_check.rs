//! What is wrong with a row of prepared data, if anything.

use crate::{batch::IGNORE_INDEX, shard::Row};
use serde::Serialize;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// The manifest cannot be read, or contradicts itself.
    Manifest,
    /// The account of tokens does not add up.
    Account,
    /// The tokenizer is not the one in the manifest.
    Tokenizer,
    /// A shard is missing, cut off, or changed.
    Shard,
    /// A shard has other columns.
    Schema,
    /// A shard has other counts than the manifest says.
    Counts,
    /// The lists of a row are not as long as a row.
    Length,
    /// An id is none of the vocabulary's.
    Vocabulary,
    /// A label is neither the id beside it nor none.
    Labels,
    /// Segments are not 1, 2, ... with padding at the end.
    Segments,
    /// Positions do not start over with each segment.
    Positions,
    /// Documents and offsets are not one a segment.
    Documents,
    /// A document stands on both sides of the split.
    Leak,
    /// A file that does not belong there.
    Leftover,
}

/// What a row has to fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) sequence_len: usize,
    pub(crate) vocab_size: usize,
}

/// Everything that is wrong with a row, the first of each kind.
pub(crate) fn faults(row: &Row, rules: Rules) -> Vec<(Fault, String)> {
    let Rules { sequence_len, vocab_size } = rules;
    let lengths = [&row.input_ids, &row.labels, &row.segment_ids, &row.position_ids].map(Vec::len);
    if lengths != [sequence_len; 4] {
        let message = format!("its lists have the lengths {lengths:?}, and rows have {sequence_len} tokens");
        return vec![(Fault::Length, message)];
    }
    let exists = |id: i32| usize::try_from(id).is_ok_and(|id| id < vocab_size);
    let mut faults = Vec::new();
    let mut note = |fault, found: Option<String>| faults.extend(found.map(|message| (fault, message)));
    let unknown = row.input_ids.iter().find(|id| !exists(**id));
    note(Fault::Vocabulary, unknown.map(|id| format!("token id {id} is none of the vocabulary's {vocab_size}")));
    note(Fault::Labels, labels(row));
    note(Fault::Segments, segments(row));
    note(Fault::Positions, positions(row));
    note(Fault::Documents, documents(row));
    faults
}

fn labels(row: &Row) -> Option<String> {
    let misfits = |at: &usize| {
        let label = row.labels[*at];
        label != IGNORE_INDEX && (label != row.input_ids[*at] || row.segment_ids[*at] == 0)
    };
    let at = (0..row.labels.len()).find(misfits)?;
    let (label, id) = (row.labels[at], row.input_ids[at]);
    Some(match row.segment_ids[at] {
        0 => format!("padding token {at} has the label {label}"),
        _ => format!("token {at} has the label {label}, which is neither its id {id} nor {IGNORE_INDEX}"),
    })
}

fn segments(row: &Row) -> Option<String> {
    let mut last = 0;
    for (at, segment) in row.segment_ids.iter().copied().enumerate() {
        let is_padding = at > 0 && last == 0;
        let goes_on = at > 0 && segment == last;
        let begins = !is_padding && segment == last + 1;
        let ends = at > 0 && segment == 0;
        if !(goes_on || begins || ends) {
            return Some(match at {
                0 => format!("it begins with segment {segment}"),
                _ => format!("segment {segment} follows segment {last} at token {at}"),
            });
        }
        last = segment;
    }
    None
}

fn positions(row: &Row) -> Option<String> {
    let expected = |at: usize| {
        let begins = at == 0 || row.segment_ids[at] != row.segment_ids[at - 1];
        if begins { 0 } else { row.position_ids[at - 1].wrapping_add(1) }
    };
    let at = (0..row.position_ids.len()).find(|at| row.position_ids[*at] != expected(*at))?;
    Some(format!("token {at} has position {}, and should have {}", row.position_ids[at], expected(at)))
}

fn documents(row: &Row) -> Option<String> {
    let segments = row.segment_ids.iter().copied().max().unwrap_or(0);
    let (ids, offsets) = (row.document_ids.len(), row.document_offsets.len());
    if [ids, offsets] != [usize::try_from(segments).unwrap_or(0); 2] {
        return Some(format!("it has {segments} segments, {ids} document ids and {offsets} offsets"));
    }
    let offset = row.document_offsets.iter().find(|offset| **offset < 0)?;
    Some(format!("a piece begins at {offset}, before its document does"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { sequence_len: 6, vocab_size: 10 };

    fn row() -> Row {
        Row {
            input_ids: vec![1, 2, 3, 4, 0, 0],
            labels: vec![-100, 2, 3, 4, -100, -100],
            segment_ids: vec![1, 1, 2, 2, 0, 0],
            position_ids: vec![0, 1, 0, 1, 0, 1],
            document_ids: vec![7, 8],
            document_offsets: vec![0, 6],
        }
    }

    fn found(change: impl FnOnce(&mut Row)) -> Vec<Fault> {
        let mut row = row();
        change(&mut row);
        faults(&row, RULES).into_iter().map(|(fault, _)| fault).collect()
    }

    #[test]
    fn each_fault_is_found_and_a_sound_row_has_none() {
        assert_eq!(found(|_| ()), []);
        assert_eq!(found(|row| row.labels.truncate(5)), [Fault::Length]);
        assert_eq!(found(|row| row.input_ids[5] = 10), [Fault::Vocabulary]);
        assert_eq!(found(|row| row.input_ids[0] = -1), [Fault::Vocabulary]);
        assert_eq!(found(|row| row.labels[1] = 3), [Fault::Labels]);
        assert_eq!(found(|row| row.labels[5] = 0), [Fault::Labels]);
        assert_eq!(found(|row| row.segment_ids = vec![1, 1, 1, 1, 0, 0]), [Fault::Positions, Fault::Documents]);
        assert_eq!(found(|row| row.segment_ids = vec![1, 1, 3, 3, 0, 0]), [Fault::Segments, Fault::Documents]);
        assert!(found(|row| row.segment_ids = vec![1, 1, 0, 0, 2, 2]).contains(&Fault::Segments));
        assert!(found(|row| row.segment_ids = vec![0, 0, 1, 1, 2, 2]).contains(&Fault::Segments));
        assert!(found(|row| row.segment_ids = vec![2, 2, 1, 1, 0, 0]).contains(&Fault::Segments));
        assert_eq!(found(|row| row.position_ids[2] = 2), [Fault::Positions]);
        assert_eq!(found(|row| row.document_ids.truncate(1)), [Fault::Documents]);
        assert_eq!(found(|row| row.document_offsets[0] = -1), [Fault::Documents]);
    }
}
