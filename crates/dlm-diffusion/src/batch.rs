//! Clean tokens: what is masked, and what it is masked in.

use crate::{
    check::{expect_kind, expect_shape},
    error::{DiffusionError, Result},
};
use tch::{Device, Kind, Tensor};

/// The label of a token that is no target.
pub const IGNORE_INDEX: i64 = -100;

/// A batch of token ids with what is known of each token; every tensor is `[batch, seq_len]` of `Int64` on one device.
#[derive(Debug)]
pub struct CleanBatch {
    ids: Tensor,
    labels: Option<Tensor>,
    segment_ids: Option<Tensor>,
    position_ids: Option<Tensor>,
    dropped: Option<Tensor>,
    dropout_keys: Option<Tensor>,
}

impl CleanBatch {
    /// Rows without padding, in which every token is a target.
    ///
    /// # Errors
    /// [`DiffusionError::ShapeMismatch`] or [`DiffusionError::KindMismatch`] unless `ids` is `[batch, seq_len]` of `Int64` with at least
    /// one token.
    pub fn new(ids: Tensor) -> Result<Self> {
        expect_kind("ids", &ids, Kind::Int64)?;
        if ids.dim() != 2 || ids.numel() == 0 {
            let expected = "[batch, seq_len], at least one token".to_owned();
            return Err(DiffusionError::ShapeMismatch { name: "ids", found: ids.size(), expected });
        }
        Ok(Self { ids, labels: None, segment_ids: None, position_ids: None, dropped: None, dropout_keys: None })
    }

    /// Says which tokens are targets: those whose label is not [`IGNORE_INDEX`]. What is predicted there is the token's id, whatever
    /// the label says, as in Axolotl.
    ///
    /// # Errors
    /// [`DiffusionError::ShapeMismatch`] or [`DiffusionError::KindMismatch`] unless `labels` is shaped like the ids, of `Int64`;
    /// [`DiffusionError::OutOfRange`] for a negative label other than that one.
    pub fn with_labels(mut self, labels: Tensor) -> Result<Self> {
        let labels = self.fitting("labels", labels)?;
        // Which token a target is, its id says: a label that is no id at all is a mistake.
        let smallest = labels.masked_fill(&labels.eq(IGNORE_INDEX), 0).min().int64_value(&[]);
        if smallest < 0 {
            let expected = "-100 or a token id";
            return Err(DiffusionError::OutOfRange { name: "labels", value: smallest as f64, expected });
        }
        self.labels = Some(labels);
        Ok(self)
    }

    /// Says which document each token belongs to: 1, 2, ... within its row, 0 for padding.
    ///
    /// # Errors
    /// As [`with_labels`](Self::with_labels), and [`DiffusionError::OutOfRange`] for a negative id.
    pub fn with_segments(mut self, segment_ids: Tensor) -> Result<Self> {
        let segment_ids = self.fitting("segment_ids", segment_ids)?;
        let smallest = segment_ids.min().int64_value(&[]);
        if smallest < 0 {
            let expected = "0 for padding or a positive document number";
            return Err(DiffusionError::OutOfRange { name: "segment_ids", value: smallest as f64, expected });
        }
        self.segment_ids = Some(segment_ids);
        Ok(self)
    }

    /// Gives each token its rotary position; without, positions restart in each segment.
    ///
    /// # Errors
    /// As [`with_segments`](Self::with_segments).
    pub fn with_positions(mut self, position_ids: Tensor) -> Result<Self> {
        let position_ids = self.fitting("position_ids", position_ids)?;
        let smallest = position_ids.min().int64_value(&[]);
        if smallest < 0 {
            let expected = "0 or a positive number";
            return Err(DiffusionError::OutOfRange { name: "position_ids", value: smallest as f64, expected });
        }
        self.position_ids = Some(position_ids);
        Ok(self)
    }

    /// Says which tokens the denoiser is not shown, `[batch, seq_len]` of `Bool`: they become masks without being scored.
    ///
    /// Dropping whole prompts now and then trains the unconditional model that classifier-free guidance needs (SMDM,
    /// [arXiv:2410.18514](https://arxiv.org/abs/2410.18514)). Targets among them are masked as if they were not.
    ///
    /// # Errors
    /// [`DiffusionError::ShapeMismatch`] or [`DiffusionError::KindMismatch`] for another shape or kind.
    pub fn with_dropped(mut self, dropped: Tensor) -> Result<Self> {
        expect_shape("dropped", &dropped, &self.ids.size())?;
        expect_kind("dropped", &dropped, Kind::Bool)?;
        self.dropped = Some(dropped);
        Ok(self)
    }

    /// The tokens as the denoiser may see them: dropped ones are masks.
    pub(crate) fn shown(&self, mask_token_id: i64) -> Tensor {
        match &self.dropped {
            Some(dropped) => {
                let hidden = dropped.logical_and(&self.is_real()).logical_and(&self.is_target().logical_not());
                self.ids.masked_fill(&hidden, mask_token_id)
            }
            None => self.ids.shallow_clone(),
        }
    }

    /// The same tensors once more.
    pub(crate) fn share(&self) -> Self {
        let share = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self {
            ids: self.ids.shallow_clone(),
            labels: share(&self.labels),
            segment_ids: share(&self.segment_ids),
            position_ids: share(&self.position_ids),
            dropped: share(&self.dropped),
            dropout_keys: share(&self.dropout_keys),
        }
    }

    /// Gives each token the number that dropout in the network follows from, see
    /// [`DenoiserInput::dropout_keys`](crate::DenoiserInput::dropout_keys); without, nothing is dropped.
    ///
    /// # Errors
    /// As [`with_labels`](Self::with_labels).
    pub fn with_dropout_keys(mut self, dropout_keys: Tensor) -> Result<Self> {
        self.dropout_keys = Some(self.fitting("dropout_keys", dropout_keys)?);
        Ok(self)
    }

    /// The tokens.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The labels, if there are any.
    #[must_use]
    pub fn labels(&self) -> Option<&Tensor> {
        self.labels.as_ref()
    }

    /// The document of each token, if there are several or padding.
    #[must_use]
    pub fn segment_ids(&self) -> Option<&Tensor> {
        self.segment_ids.as_ref()
    }

    /// The rotary positions, if they were given.
    #[must_use]
    pub fn position_ids(&self) -> Option<&Tensor> {
        self.position_ids.as_ref()
    }

    /// What dropout follows from, if something is dropped.
    #[must_use]
    pub fn dropout_keys(&self) -> Option<&Tensor> {
        self.dropout_keys.as_ref()
    }

    /// `(batch, seq_len)`.
    #[must_use]
    pub fn shape(&self) -> (i64, i64) {
        let size = self.ids.size();
        (size[0], size[1])
    }

    /// Where there is a token and no padding, `[batch, seq_len]` of `Bool`.
    pub fn is_real(&self) -> Tensor {
        match &self.segment_ids {
            Some(segment_ids) => segment_ids.ne(0),
            None => self.ids.ones_like().to_kind(Kind::Bool),
        }
    }

    /// Where there is a target: a label if there are labels, else a token and no padding; `[batch, seq_len]` of `Bool`.
    ///
    /// A label on padding counts as one in the averages, as it does in Axolotl, but is never masked.
    pub fn is_target(&self) -> Tensor {
        match &self.labels {
            Some(labels) => labels.ne(IGNORE_INDEX),
            None => self.is_real(),
        }
    }

    /// The same batch on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        let copy = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to_device(device));
        Self {
            ids: self.ids.to_device(device),
            labels: copy(&self.labels),
            segment_ids: copy(&self.segment_ids),
            position_ids: copy(&self.position_ids),
            dropped: copy(&self.dropped),
            dropout_keys: copy(&self.dropout_keys),
        }
    }

    fn fitting(&self, name: &'static str, tensor: Tensor) -> Result<Tensor> {
        expect_shape(name, &tensor, &self.ids.size())?;
        expect_kind(name, &tensor, Kind::Int64)?;
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zeros(shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Int64, Device::Cpu))
    }

    proptest! {
        #[test]
        fn tensors_of_another_shape_are_refused_by_name(
            ids in (1i64..5, 1i64..5), other in proptest::collection::vec(0i64..5, 0..4),
        ) {
            let batch = || CleanBatch::new(zeros(&[ids.0, ids.1])).unwrap();
            prop_assume!(other != [ids.0, ids.1]);
            let refused = |found: Result<CleanBatch>, expected| {
                matches!(found, Err(DiffusionError::ShapeMismatch { name, .. }) if name == expected)
            };
            prop_assert!(refused(batch().with_labels(zeros(&other)), "labels"));
            prop_assert!(refused(batch().with_segments(zeros(&other)), "segment_ids"));
            prop_assert!(refused(batch().with_positions(zeros(&other)), "position_ids"));
        }
    }

    #[test]
    fn ids_must_be_a_matrix_of_whole_numbers_with_a_token() {
        assert!(CleanBatch::new(zeros(&[4])).is_err());
        assert!(CleanBatch::new(zeros(&[2, 0])).is_err());
        assert!(matches!(
            CleanBatch::new(zeros(&[1, 2]).to_kind(Kind::Float)),
            Err(DiffusionError::KindMismatch { name: "ids", .. })
        ));
    }

    #[test]
    fn a_negative_segment_is_refused() {
        let batch = CleanBatch::new(zeros(&[1, 2])).unwrap();
        let error = batch.with_segments(Tensor::from_slice2(&[[1i64, -1]])).unwrap_err();
        assert!(error.to_string().contains("`segment_ids` is -1"), "{error}");
    }

    #[test]
    fn targets_have_a_label() {
        let batch = CleanBatch::new(Tensor::from_slice2(&[[5i64, 6, 7, 0]]))
            .and_then(|batch| batch.with_labels(Tensor::from_slice2(&[[IGNORE_INDEX, 6, 7, IGNORE_INDEX]])))
            .and_then(|batch| batch.with_segments(Tensor::from_slice2(&[[1i64, 1, 1, 0]])))
            .unwrap();
        assert_eq!(Vec::<bool>::try_from(batch.is_target().flatten(0, 1)).unwrap(), [false, true, true, false]);
        assert_eq!(Vec::<bool>::try_from(batch.is_real().flatten(0, 1)).unwrap(), [true, true, true, false]);
    }
}
