//! Who may look at whom: attention described by a few facts instead of a dense mask.

use crate::error::{DiffusionError, Result};
use tch::{Kind, Tensor};

/// In which directions a token looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Visibility {
    /// Both ways: what a denoiser needs.
    #[default]
    Bidirectional,
    /// Backwards and at itself: what an autoregressive model was trained with.
    Causal,
}

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
        if segment_ids.kind() != Kind::Int64 {
            return Err(DiffusionError::KindMismatch {
                name: "segment_ids",
                found: segment_ids.kind(),
                expected: "Int64",
            });
        }
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
        same_segment && (self.visibility == Visibility::Bidirectional || key <= query)
    }

    /// The same rule as booleans, broadcastable to `[batch, heads, seq_len, seq_len]`; `None` when everything is allowed.
    ///
    /// Costs `batch * seq_len * seq_len` bytes with segments, `seq_len * seq_len` without.
    #[must_use]
    pub fn dense_mask(&self, seq_len: i64, device: tch::Device) -> Option<Tensor> {
        let causal = (self.visibility == Visibility::Causal)
            .then(|| Tensor::ones([1, 1, seq_len, seq_len], (Kind::Bool, device)).tril(0));
        let segments = self.segment_ids.as_ref().map(|ids| {
            let ids = ids.to_device(device);
            let same = ids.unsqueeze(2).eq_tensor(&ids.unsqueeze(1)); // [batch, query, key]
            same.logical_and(&ids.gt(0).unsqueeze(2)).unsqueeze(1)
        });
        match (segments, causal) {
            (Some(segments), Some(causal)) => Some(segments.logical_and(&causal)),
            (segments, causal) => segments.or(causal),
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_dense_mask_says_what_allow_says(
            segments in proptest::collection::vec(proptest::collection::vec(0i64..3, 5), 1..4),
            causal: bool,
        ) {
            let rows = segments.len() as i64;
            let ids = Tensor::from_slice(&segments.concat()).view([rows, 5]);
            let visibility = if causal { Visibility::Causal } else { Visibility::Bidirectional };
            let layout = AttentionLayout::segments(&ids).unwrap().with_visibility(visibility);
            let mask = layout.dense_mask(5, tch::Device::Cpu).unwrap();
            for row in 0..rows {
                for query in 0..5 {
                    for key in 0..5 {
                        prop_assert_eq!(mask.int64_value(&[row, 0, query, key]) == 1, layout.allow(row, query, key));
                    }
                }
            }
        }
    }

    #[test]
    fn full_attention_has_no_dense_mask() {
        assert!(AttentionLayout::full().dense_mask(1024, tch::Device::Cpu).is_none());
    }

    #[test]
    fn segment_ids_of_another_shape_are_refused() {
        assert!(matches!(
            AttentionLayout::segments(&Tensor::zeros([4], (Kind::Int64, tch::Device::Cpu))),
            Err(DiffusionError::ShapeMismatch { name: "segment_ids", .. })
        ));
    }
}
