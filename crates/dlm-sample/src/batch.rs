//! Canvases of different lengths as one input of a denoiser.

use crate::error::Result;
use dlm_diffusion::AttentionLayout;
use tch::Tensor;

/// One canvas in its present state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRow<'a> {
    pub(crate) ids: &'a [i64],
    pub(crate) segment_ids: Option<&'a [i64]>,
    pub(crate) position_ids: Option<&'a [i64]>,
    pub(crate) masked_positions: &'a [usize],
}

/// The tensors of a forward pass, on the CPU; a denoiser elsewhere fetches them.
#[derive(Debug)]
pub(crate) struct CanvasBatch {
    /// `[batch, seq_len]` of `Int64`, padded on the right.
    pub(crate) ids: Tensor,
    /// Full where no row is padded and none holds several documents, which costs no mask.
    pub(crate) attention: AttentionLayout,
    /// `[batch, seq_len]` of `Int64`, where a row's positions do not just count from 0.
    pub(crate) position_ids: Option<Tensor>,
    /// Flat indices of the masked positions, row after row, `[n]` of `Int64`.
    pub(crate) wanted: Tensor,
}

impl CanvasBatch {
    /// Pads with `pad_id`, any id that the model reads, in segment 0.
    pub(crate) fn new(rows: &[BatchRow<'_>], pad_id: i64) -> Result<Self> {
        let seq_len = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let shape = [rows.len() as i64, seq_len as i64];
        let to_tensor = |values: Vec<i64>| Tensor::f_from_slice(&values)?.f_view(shape);

        let ids: Vec<i64> = rows.iter().flat_map(|row| padded(row.ids.iter().copied(), pad_id, seq_len)).collect();

        let is_plain = rows.iter().all(|row| row.segment_ids.is_none() && row.ids.len() == seq_len);
        let attention = if is_plain {
            AttentionLayout::full()
        } else {
            let segments = rows.iter().flat_map(|row| {
                let one_document = || vec![1; row.ids.len()];
                padded(row.segment_ids.map_or_else(one_document, <[i64]>::to_vec), 0, seq_len)
            });
            AttentionLayout::segments(&to_tensor(segments.collect())?)?
        };

        let position_ids = if rows.iter().any(|row| row.position_ids.is_some()) {
            let positions = rows.iter().flat_map(|row| {
                let counted = || (0..row.ids.len() as i64).collect();
                padded(row.position_ids.map_or_else(counted, <[i64]>::to_vec), 0, seq_len)
            });
            Some(to_tensor(positions.collect())?)
        } else {
            None
        };

        let wanted = rows.iter().enumerate().flat_map(|(index, row)| {
            row.masked_positions.iter().map(move |position| (index * seq_len + position) as i64)
        });
        let wanted = Tensor::f_from_slice(&wanted.collect::<Vec<_>>())?;
        Ok(Self { ids: to_tensor(ids)?, attention, position_ids, wanted })
    }
}

fn padded(values: impl IntoIterator<Item = i64>, pad: i64, len: usize) -> impl Iterator<Item = i64> {
    values.into_iter().chain(std::iter::repeat(pad)).take(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(ids: &'a [i64], masked_positions: &'a [usize]) -> BatchRow<'a> {
        BatchRow { ids, segment_ids: None, position_ids: None, masked_positions }
    }

    #[test]
    fn shorter_rows_are_padded_on_the_right_in_segment_zero() {
        let packed = BatchRow { segment_ids: Some(&[1, 2]), position_ids: Some(&[0, 0]), ..row(&[4, 9], &[1]) };
        let batch = CanvasBatch::new(&[row(&[5, 9, 9], &[1, 2]), packed], 9).unwrap();
        assert_eq!(batch.ids, Tensor::from_slice2(&[[5i64, 9, 9], [4, 9, 9]]));
        assert_eq!(batch.attention.segment_ids.unwrap(), Tensor::from_slice2(&[[1i64, 1, 1], [1, 2, 0]]));
        assert_eq!(batch.position_ids.unwrap(), Tensor::from_slice2(&[[0i64, 1, 2], [0, 0, 0]]));
        assert_eq!(batch.wanted, Tensor::from_slice(&[1i64, 2, 4]));
    }

    #[test]
    fn rows_of_one_length_and_one_document_need_no_mask() {
        let batch = CanvasBatch::new(&[row(&[5, 9], &[1]), row(&[9, 4], &[0])], 9).unwrap();
        assert!(batch.attention.segment_ids.is_none() && batch.position_ids.is_none());
    }
}
