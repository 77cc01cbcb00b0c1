//! Several documents in one row: what keeps them apart, and by what unit a loss is averaged.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What a packed row is to positions, the logits shift and the average over sequences.
///
/// Attention stays within segments either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingIsolation {
    /// Its documents side by side: positions restart, nothing is predicted across a border, every document is a unit. The loss of
    /// a packed row is then exactly that of its documents one by one.
    #[default]
    Document,
    /// One sequence, as Axolotl has it: positions run on, the shift crosses borders, every row is a unit.
    Row,
}

/// The column at which the segment of each token begins, `[batch, seq_len]` of `Int64`, from `segment_ids` of that shape.
///
/// A run of equal ids is a segment, padding too.
pub fn segment_starts(segment_ids: &Tensor) -> Tensor {
    let seq_len = segment_ids.size()[1];
    if seq_len == 0 {
        return segment_ids.zeros_like();
    }
    let columns = Tensor::arange(seq_len, (Kind::Int64, segment_ids.device()));
    let before = Tensor::cat(&[segment_ids.narrow(1, 0, 1), segment_ids.narrow(1, 0, seq_len - 1)], 1);
    let starts = segment_ids.ne_tensor(&before).to_kind(Kind::Int64) * columns; // 0 inside a segment
    starts.cummax(1).0
}

/// Positions that restart in each segment, `[batch, seq_len]` of `Int64`, from `segment_ids` of that shape.
pub fn segment_positions(segment_ids: &Tensor) -> Tensor {
    let columns = Tensor::arange(segment_ids.size()[1], (Kind::Int64, segment_ids.device()));
    columns - segment_starts(segment_ids)
}

/// The documents or rows of a batch, by which `sequence` and `batch` normalisation average.
#[derive(Debug)]
pub(crate) struct Units {
    /// A number for the unit of each token, `[batch * seq_len]`; tokens of no unit have a number that no unit has.
    ids: Tensor,
    /// Above every number.
    bound: i64,
    /// How many there are.
    pub(crate) count: u64,
}

impl Units {
    pub(crate) fn new(shape: (i64, i64), segment_ids: Option<&Tensor>, isolation: PackingIsolation) -> Self {
        let (batch, seq_len) = shape;
        let segments = segment_ids.filter(|ids| isolation == PackingIsolation::Document && ids.numel() > 0);
        let device = segments.map_or(tch::Device::Cpu, Tensor::device);
        let rows = Tensor::arange(batch, (Kind::Int64, device)).unsqueeze(1);
        let Some(segments) = segments else {
            return Self { ids: rows.expand([batch, seq_len], false).flatten(0, 1), bound: batch, count: batch as u64 };
        };
        let per_row = segments.max().int64_value(&[]) + 1;
        let (units, ids, _) = (rows * per_row + segments).flatten(0, 1).internal_unique2(true, true, false);
        let documents = units.remainder(per_row).count_nonzero(None); // the others are padding
        Self { ids, bound: units.size()[0], count: documents.int64_value(&[]) as u64 }
    }

    /// For each token of `positions` (flat indices), how many tokens of its unit `counted` (`[batch, seq_len]` of `Bool`) holds.
    pub(crate) fn sizes_at(&self, counted: &Tensor, positions: &Tensor) -> Tensor {
        let ids = self.ids.to_device(counted.device());
        let sizes = Tensor::zeros([self.bound], (Kind::Int64, counted.device()));
        let sizes = sizes.index_add(0, &ids, &counted.flatten(0, 1).to_kind(Kind::Int64)); // [bound]
        sizes.index_select(0, &ids.index_select(0, positions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_count_from_the_last_change_of_segment(row in proptest::collection::vec(0i64..3, 1..20)) {
            let ids = Tensor::from_slice(&row).unsqueeze(0);
            let positions = Vec::<i64>::try_from(segment_positions(&ids).flatten(0, 1)).unwrap();
            for (i, &position) in positions.iter().enumerate() {
                let expected = if i > 0 && row[i] == row[i - 1] { positions[i - 1] + 1 } else { 0 };
                prop_assert_eq!(position, expected);
            }
        }
    }

    #[test]
    fn documents_are_units_of_a_packed_batch_and_rows_are_units_under_row_isolation() {
        let segments = Tensor::from_slice2(&[[1i64, 1, 2, 0], [1, 2, 2, 2], [0, 0, 0, 0]]);
        let counted = Tensor::from_slice2(&[[true, false, true, false], [true, true, true, false], [false; 4]]);
        let everywhere = Tensor::arange(8, (Kind::Int64, tch::Device::Cpu));
        let sizes = |isolation| {
            let units = Units::new((3, 4), Some(&segments), isolation);
            (units.count, Vec::<i64>::try_from(units.sizes_at(&counted, &everywhere)).unwrap())
        };
        assert_eq!(sizes(PackingIsolation::Document), (4, vec![1, 1, 1, 0, 1, 2, 2, 2]));
        assert_eq!(sizes(PackingIsolation::Row), (3, vec![2, 2, 2, 2, 3, 3, 3, 3]));
    }

    #[test]
    fn without_segments_every_row_is_a_document() {
        assert_eq!(Units::new((5, 7), None, PackingIsolation::Document).count, 5);
    }
}
