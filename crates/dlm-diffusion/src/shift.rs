//! Where a prediction comes from in a checkpoint whose state at `i` predicts the token at `i + 1`.

use crate::{
    attention::{AttentionLayout, Visibility},
    blocks::BlockStart,
    check::{expect_kind, expect_shape},
    error::{DiffusionError, Result},
    packing::{PackingIsolation, segment_starts},
};
use tch::{Kind, Tensor};

/// The positions whose states predict the tokens at `wanted`, `[n]`, in the same order.
///
/// Models adapted from autoregressive ones (Axolotl; Dream, [arXiv:2508.15487](https://arxiv.org/abs/2508.15487)) predict the token
/// at `i` from the state at `max(i - 1, start)`. `start` is where the document of the token begins, so that nothing is
/// predicted across a border; under [`PackingIsolation::Row`], or without segments, it is where the row begins. A sequence of one
/// token is predicted from itself.
///
/// # Shapes
/// - `wanted`: flat indices `row * seq_len + position`, `[n]` of `Int64`
/// - `segment_ids`: `[batch, seq_len]` of `Int64`
///
/// # Errors
/// [`DiffusionError::ShapeMismatch`] or [`DiffusionError::KindMismatch`] for other shapes and kinds.
///
/// ```
/// use dlm_diffusion::{PackingIsolation, predicting_positions};
/// use tch::Tensor;
///
/// let wanted = Tensor::from_slice(&[0i64, 1, 2, 3]);
/// let segments = Tensor::from_slice2(&[[1i64, 1, 2, 2]]);
/// let by = |rule| predicting_positions(&wanted, 4, Some(&segments), rule).and_then(|p| Ok(Vec::<i64>::try_from(p)?));
/// assert_eq!(by(PackingIsolation::Document)?, [0, 0, 2, 2]);
/// assert_eq!(by(PackingIsolation::Row)?, [0, 0, 1, 2]);
/// # Ok::<(), dlm_diffusion::DiffusionError>(())
/// ```
pub fn predicting_positions(
    wanted: &Tensor,
    seq_len: i64,
    segment_ids: Option<&Tensor>,
    isolation: PackingIsolation,
) -> Result<Tensor> {
    expect_kind("wanted", wanted, Kind::Int64)?;
    if wanted.dim() != 1 {
        return Err(DiffusionError::ShapeMismatch { name: "wanted", found: wanted.size(), expected: "[n]".to_owned() });
    }
    if wanted.numel() == 0 {
        return Ok(wanted.shallow_clone());
    }
    let column = wanted.f_remainder(seq_len)?; // [n]
    let start = match segment_ids {
        Some(ids) if isolation == PackingIsolation::Document => {
            expect_kind("segment_ids", ids, Kind::Int64)?;
            expect_shape("segment_ids", ids, &[ids.size()[0], seq_len])?;
            segment_starts(ids).flatten(0, 1).f_index_select(0, wanted)?
        }
        _ => column.zeros_like(),
    };
    let predicting = (&column - 1).maximum(&start);
    Ok(wanted - column + predicting)
}

/// [`predicting_positions`] for whatever a layout describes: in rows of noised and clean text the first token of a block is
/// predicted from the state that `block_start` says.
///
/// # Shapes
/// - `wanted`: flat indices `row * seq_len + position`, `[n]` of `Int64`; `seq_len` is the length of the rows, that is twice that of
///   the text under [`Visibility::NoisyAndClean`]
///
/// # Errors
/// Those of [`predicting_positions`].
pub fn predicting_positions_in(
    wanted: &Tensor,
    seq_len: i64,
    layout: &AttentionLayout,
    isolation: PackingIsolation,
    block_start: BlockStart,
) -> Result<Tensor> {
    let segment_ids = layout.segment_ids.as_ref();
    let Visibility::NoisyAndClean { block_length, seq_len: text } = layout.visibility else {
        return predicting_positions(wanted, seq_len, segment_ids, isolation);
    };
    if seq_len != 2 * text {
        let expected = format!("a row of {} tokens", 2 * text);
        return Err(DiffusionError::ShapeMismatch { name: "ids", found: vec![seq_len], expected });
    }
    if wanted.numel() == 0 {
        return Ok(wanted.shallow_clone());
    }
    expect_kind("wanted", wanted, Kind::Int64)?;
    // Where each token lies in the text, whichever half it is in.
    let column = wanted.f_remainder(seq_len)?; // [n]
    let in_text = column.f_remainder(text)?;
    let row = wanted.floor_divide_scalar(seq_len);
    let segments = segment_ids.map(|ids| ids.narrow(1, 0, text).contiguous());
    let (at, segments) = (&row * text + &in_text, segments.as_ref());
    let moved = predicting_positions(&at, text, segments, isolation)? - &at; // -1, or 0 where a text begins
    let plain = wanted + &moved;
    if block_start == BlockStart::Noisy {
        return Ok(plain);
    }
    let start = match segments {
        Some(ids) => segment_starts(ids).flatten(0, 1).f_index_select(0, &at)?,
        None => in_text.zeros_like(),
    };
    let begins_block = (&in_text - start).f_remainder(block_length.max(1))?.eq(0);
    let reads_clean = begins_block.logical_and(&moved.lt(0)).logical_and(&column.lt(text));
    Ok(plain + reads_clean.to_kind(Kind::Int64) * text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_token_is_predicted_from_the_one_before_it_in_its_document_or_from_itself(
            lens in proptest::collection::vec(proptest::collection::vec(1usize..5, 1..4), 1..4), row_isolation: bool,
        ) {
            let seq_len = lens.iter().map(|row| row.iter().sum::<usize>()).max().unwrap();
            let mut segments = vec![0i64; lens.len() * seq_len];
            for (row, lens) in lens.iter().enumerate() {
                let ids = lens.iter().enumerate().flat_map(|(i, &len)| vec![i as i64 + 1; len]);
                for (column, id) in ids.enumerate() {
                    segments[row * seq_len + column] = id;
                }
            }
            let ids = Tensor::from_slice(&segments).view([lens.len() as i64, seq_len as i64]);
            let wanted = Tensor::arange(segments.len() as i64, (Kind::Int64, tch::Device::Cpu));
            let isolation = if row_isolation { PackingIsolation::Row } else { PackingIsolation::Document };
            let found = predicting_positions(&wanted, seq_len as i64, Some(&ids), isolation).unwrap();
            for (i, found) in Vec::<i64>::try_from(found).unwrap().into_iter().enumerate() {
                let begins = i % seq_len == 0 || (!row_isolation && segments[i] != segments[i - 1]);
                prop_assert_eq!(found as usize, if begins { i } else { i - 1 });
            }
        }
    }

    #[test]
    fn a_sequence_of_one_token_is_predicted_from_itself() {
        let wanted = Tensor::from_slice(&[0i64, 1]);
        let found = predicting_positions(&wanted, 1, None, PackingIsolation::Row).unwrap();
        assert_eq!(Vec::<i64>::try_from(found).unwrap(), [0, 1]);
    }

    #[test]
    fn the_first_token_of_a_block_is_predicted_from_the_clean_or_the_noised_token_before_it() {
        // Two texts of 5 and 3 tokens in blocks of 2: noised in columns 0 to 7, clean in 8 to 15.
        let ids = Tensor::from_slice2(&[[1i64, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 2, 2, 2]]);
        let visibility = Visibility::NoisyAndClean { block_length: 2, seq_len: 8 };
        let layout = AttentionLayout::segments(&ids).unwrap().with_visibility(visibility);
        let wanted = Tensor::arange(16, (Kind::Int64, tch::Device::Cpu));
        let by = |start| {
            let found = predicting_positions_in(&wanted, 16, &layout, PackingIsolation::Document, start).unwrap();
            Vec::<i64>::try_from(found).unwrap()
        };
        let clean = [8, 8, 9, 10, 11, 13, 13, 14];
        assert_eq!(by(BlockStart::Noisy), [&[0, 0, 1, 2, 3, 5, 5, 6][..], &clean].concat());
        assert_eq!(by(BlockStart::Clean), [&[0, 0, 9, 2, 11, 5, 5, 14][..], &clean].concat());
    }

    #[test]
    fn segments_of_another_length_are_refused() {
        let segments = Tensor::zeros([1, 3], (Kind::Int64, tch::Device::Cpu));
        let found = predicting_positions(&Tensor::from_slice(&[0i64]), 4, Some(&segments), PackingIsolation::Document);
        assert!(matches!(found, Err(DiffusionError::ShapeMismatch { name: "segment_ids", .. })));
    }
}
