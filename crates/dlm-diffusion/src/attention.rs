//! Who may look at whom: attention described by a few facts instead of a dense mask.

use crate::{
    check::expect_kind,
    error::{DiffusionError, Result},
    noise::NoiseKey,
    packing::segment_starts,
};
use tch::{Device, Kind, Tensor};

/// In which directions a token looks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Visibility {
    /// Both ways: what a denoiser needs.
    #[default]
    Bidirectional,
    /// Backwards and at itself: what an autoregressive model was trained with.
    Causal,
    /// Both ways inside its block and at all blocks before: how block diffusion reads clean text. Blocks are counted from the
    /// beginning of each segment; the last one may be shorter.
    BlockCausal {
        /// Tokens of a block, at least 1.
        block_length: i64,
    },
    /// A row holds a text twice, noised and then clean, and a block is denoised given the clean blocks before it: block diffusion
    /// in one pass (BD3-LM, [arXiv:2503.09573](https://arxiv.org/abs/2503.09573), section 3.2).
    ///
    /// A noised token looks at the noised tokens of its block and at the clean ones of earlier blocks; a clean one at the clean ones
    /// of its own and earlier blocks. With blocks as long as the text this is plain masked diffusion.
    NoisyAndClean {
        /// Tokens of a block, at least 1.
        block_length: i64,
        /// Tokens of the text: the row has twice as many.
        seq_len: i64,
    },
    /// Backwards, at itself, and at a random share of the later tokens: half way from an autoregressive model to a denoiser
    /// (DiffuLLaMA, [arXiv:2410.17891](https://arxiv.org/abs/2410.17891), section 3.2).
    ///
    /// Which pairs are seen follows from the key and the positions inside the segment, so packing does not change it.
    Annealed {
        /// Share of the later tokens that are seen.
        share: f64,
        /// What the draws follow from; by habit of [`Purpose::Annealing`](crate::Purpose::Annealing) with the step as its epoch.
        key: NoiseKey,
    },
}

impl Visibility {
    /// What is seen after `step` of `steps` steps of annealing: causal at first, bidirectional from the last step on.
    #[must_use]
    pub fn annealed(step: u64, steps: u64, key: NoiseKey) -> Self {
        match step as f64 / steps as f64 {
            _ if step >= steps => Self::Bidirectional,
            share if share > 0.0 => Self::Annealed { share, key },
            _ => Self::Causal,
        }
    }
}

/// Longest segment that annealed attention tells apart.
const MAX_POSITIONS: u64 = 1 << 24;

/// Which keys each query of a batch attends to.
///
/// A description, not a mask: full attention has no tensor at all, and a dense mask is built only by
/// [`dense_mask`](Self::dense_mask), for kernels that need one. [`allow`](Self::allow) is its definition.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct AttentionLayout {
    /// The document of each token, `[batch, seq_len]` of `Int64`: 1, 2, ... and 0 for padding; `None` is one document without padding.
    pub segment_ids: Option<Tensor>,
    /// In which directions a token looks.
    pub visibility: Visibility,
}

impl AttentionLayout {
    /// Every token attends to every other one of its row.
    #[must_use]
    pub fn full() -> Self {
        Self::default()
    }

    /// Every token attends to itself and to those before it.
    #[must_use]
    pub fn causal() -> Self {
        Self { visibility: Visibility::Causal, ..Self::default() }
    }

    /// Tokens attend within their segment; padding (segment 0) neither attends nor is attended to.
    ///
    /// A padding mask of ones and zeros is the case of one segment.
    ///
    /// # Errors
    /// [`DiffusionError::ShapeMismatch`] or [`DiffusionError::KindMismatch`] when `segment_ids` is not `[batch, seq_len]` of `Int64`.
    pub fn segments(segment_ids: &Tensor) -> Result<Self> {
        if segment_ids.dim() != 2 {
            let expected = "[batch, seq_len]".to_owned();
            return Err(DiffusionError::ShapeMismatch { name: "segment_ids", found: segment_ids.size(), expected });
        }
        expect_kind("segment_ids", segment_ids, Kind::Int64)?;
        Ok(Self { segment_ids: Some(segment_ids.shallow_clone()), ..Self::default() })
    }

    /// The same layout, looking in other directions.
    #[must_use]
    pub fn with_visibility(mut self, visibility: Visibility) -> Self {
        self.visibility = visibility;
        self
    }

    /// Whether `query` attends to `key` in `row`: the definition that every kernel has to meet.
    ///
    /// Reads single elements; meant for tests and small inputs.
    #[must_use]
    pub fn allow(&self, row: i64, query: i64, key: i64) -> bool {
        let same_segment = self.segment_ids.as_ref().is_none_or(|ids| {
            let segment = ids.int64_value(&[row, query]);
            segment > 0 && segment == ids.int64_value(&[row, key])
        });
        same_segment
            && match self.visibility {
                Visibility::Bidirectional => true,
                Visibility::Causal => key <= query,
                Visibility::BlockCausal { block_length } => {
                    self.position(row, key, 0) / block_length <= self.position(row, query, 0) / block_length
                }
                Visibility::NoisyAndClean { block_length, seq_len } => {
                    let place = |column: i64| {
                        let is_clean = column >= seq_len;
                        let half = if is_clean { seq_len } else { 0 };
                        (is_clean, self.position(row, column, half) / block_length)
                    };
                    match (place(query), place(key)) {
                        ((false, query), (false, key)) => query == key,
                        ((false, query), (true, key)) => query > key,
                        ((true, query), (true, key)) => query >= key,
                        ((true, _), (false, _)) => false,
                    }
                }
                Visibility::Annealed { share, key: noise } => {
                    let (query, key) = (self.position(row, query, 0), self.position(row, key, 0));
                    key <= query || f64::from(noise.uniform(query as u64 * MAX_POSITIONS + key as u64)) < share
                }
            }
    }

    /// The position of a column inside its segment, whose part of the row begins at `first`.
    fn position(&self, row: i64, column: i64, first: i64) -> i64 {
        let Some(ids) = &self.segment_ids else { return column - first };
        let id = |column: i64| ids.int64_value(&[row, column]);
        (first..column).rev().take_while(|&before| id(before) == id(column)).count() as i64
    }

    /// The same rule as booleans, broadcastable to `[batch, heads, seq_len, seq_len]`; `None` when everything is allowed.
    ///
    /// Costs `batch * seq_len * seq_len` bytes with segments, `seq_len * seq_len` without. With
    /// [`NoisyAndClean`](Visibility::NoisyAndClean) `seq_len` is the length of the row, twice that of the text.
    #[must_use]
    pub fn dense_mask(&self, seq_len: i64, device: Device) -> Option<Tensor> {
        let segment_ids = self.segment_ids.as_ref().map(|ids| ids.to_device(device));
        let seen = self.seen(segment_ids.as_ref(), seq_len, device).map(|seen| seen.unsqueeze(1));
        let segments = segment_ids.map(|ids| {
            let same = ids.unsqueeze(2).eq_tensor(&ids.unsqueeze(1)); // [batch, query, key]
            same.logical_and(&ids.gt(0).unsqueeze(2)).unsqueeze(1)
        });
        match (segments, seen) {
            (Some(segments), Some(seen)) => Some(segments.logical_and(&seen)),
            (segments, seen) => segments.or(seen),
        }
    }

    /// What the visibility alone allows, `[batch or 1, query, key]`; `None` for everything.
    fn seen(&self, segment_ids: Option<&Tensor>, seq_len: i64, device: Device) -> Option<Tensor> {
        // Positions inside segments, `[batch or 1, len]`, of the first `len` columns.
        let positions = |len: i64| {
            let columns = Tensor::arange(len, (Kind::Int64, device)).unsqueeze(0);
            segment_ids.map_or_else(|| columns.shallow_clone(), |ids| &columns - segment_starts(&ids.narrow(1, 0, len)))
        };
        let blocks = |len: i64, block_length: i64| positions(len).floor_divide_scalar(block_length.max(1));
        match self.visibility {
            Visibility::Bidirectional => None,
            Visibility::Causal => Some(Tensor::ones([1, seq_len, seq_len], (Kind::Bool, device)).tril(0)),
            Visibility::BlockCausal { block_length } => {
                let block = blocks(seq_len, block_length);
                Some(block.unsqueeze(2).ge_tensor(&block.unsqueeze(1)))
            }
            Visibility::NoisyAndClean { block_length, seq_len: text } => {
                let block = blocks(text, block_length);
                let (query, key) = (block.unsqueeze(2), block.unsqueeze(1));
                let noised = Tensor::cat(&[query.eq_tensor(&key), query.gt_tensor(&key)], 2);
                let clean = Tensor::cat(&[noised.zeros_like().narrow(2, 0, text), query.ge_tensor(&key)], 2);
                Some(Tensor::cat(&[noised, clean], 1))
            }
            Visibility::Annealed { share, key } => {
                let mut table = vec![false; (seq_len * seq_len) as usize];
                for query in 0..seq_len {
                    let row = &mut table[(query * seq_len) as usize..][..seq_len as usize];
                    row[..=query as usize].fill(true);
                    let later =
                        key.uniforms(query as u64 * MAX_POSITIONS + query as u64 + 1, (seq_len - query - 1) as usize);
                    for (seen, draw) in row[query as usize + 1..].iter_mut().zip(later) {
                        *seen = f64::from(draw) < share;
                    }
                }
                let table = Tensor::from_slice(&table).to_device(device); // by positions, flat
                let positions = positions(seq_len);
                let pairs = positions.unsqueeze(2) * seq_len + positions.unsqueeze(1); // [batch, query, key]
                Some(table.take(&pairs))
            }
        }
    }
}

impl Clone for AttentionLayout {
    fn clone(&self) -> Self {
        Self { segment_ids: self.segment_ids.as_ref().map(Tensor::shallow_clone), visibility: self.visibility }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Purpose;
    use proptest::prelude::*;

    const KEY: fn() -> NoiseKey = || NoiseKey::new(4, Purpose::Annealing, 7);

    fn visibilities() -> impl Strategy<Value = Visibility> {
        prop_oneof![
            Just(Visibility::Bidirectional),
            Just(Visibility::Causal),
            (1i64..8).prop_map(|block_length| Visibility::BlockCausal { block_length }),
            (1i64..8).prop_map(|block_length| Visibility::NoisyAndClean { block_length, seq_len: 5 }),
            (0.0f64..1.0).prop_map(|share| Visibility::Annealed { share, key: KEY() }),
        ]
    }

    proptest! {
        #[test]
        fn a_dense_mask_says_what_allow_says(
            segments in proptest::collection::vec(proptest::collection::vec(0i64..3, 5), 1..4),
            visibility in visibilities(), has_segments: bool,
        ) {
            let is_double = matches!(visibility, Visibility::NoisyAndClean { .. });
            let rows = segments.len() as i64;
            let ids = Tensor::from_slice(&segments.concat()).view([rows, 5]);
            let ids = if is_double { Tensor::cat(&[&ids, &ids], 1) } else { ids };
            let layout = if has_segments { AttentionLayout::segments(&ids).unwrap() } else { AttentionLayout::full() };
            let layout = layout.with_visibility(visibility);
            let seq_len = ids.size()[1];
            let mask = layout.dense_mask(seq_len, Device::Cpu);
            let mask = mask.unwrap_or_else(|| Tensor::ones([1, 1, seq_len, seq_len], (Kind::Bool, Device::Cpu)));
            let mask = mask.expand([rows, 1, seq_len, seq_len], false);
            for row in 0..rows {
                for query in 0..seq_len {
                    for key in 0..seq_len {
                        prop_assert_eq!(mask.int64_value(&[row, 0, query, key]) == 1, layout.allow(row, query, key));
                    }
                }
            }
        }
    }

    #[test]
    fn full_attention_has_no_dense_mask() {
        assert!(AttentionLayout::full().dense_mask(1024, Device::Cpu).is_none());
    }

    #[test]
    fn attention_opens_from_causal_to_bidirectional_over_the_steps_given() {
        assert_eq!(Visibility::annealed(0, 10, KEY()), Visibility::Causal);
        assert_eq!(Visibility::annealed(5, 10, KEY()), Visibility::Annealed { share: 0.5, key: KEY() });
        assert_eq!(Visibility::annealed(10, 10, KEY()), Visibility::Bidirectional);
        assert_eq!(Visibility::annealed(0, 0, KEY()), Visibility::Bidirectional);
        let mask =
            AttentionLayout::full().with_visibility(Visibility::annealed(3, 10, KEY())).dense_mask(200, Device::Cpu);
        let later = mask.unwrap().triu(1).count_nonzero(None).int64_value(&[]) as f64 / (100.0 * 199.0);
        assert!((later - 0.3).abs() < 4.0 * (0.21f64 / 19_900.0).sqrt(), "{later}");
    }

    #[test]
    fn segment_ids_of_another_shape_are_refused() {
        assert!(matches!(
            AttentionLayout::segments(&Tensor::zeros([4], (Kind::Int64, Device::Cpu))),
            Err(DiffusionError::ShapeMismatch { name: "segment_ids", .. })
        ));
    }
}
