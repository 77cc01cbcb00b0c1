//! The head: hidden states to scores over the vocabulary, and to losses without ever holding all scores.

use crate::{compute_copy::ComputeCopy, linear::torch};
use dlm_diffusion::{DiffusionError, Head, Result, TargetScores, TokenLoss};
use tch::{Kind, TchError, Tensor};

/// A linear head; its weight is the embedding in tied models.
#[derive(Debug)]
pub(crate) struct LinearHead {
    /// `[vocab, hidden]`.
    pub(crate) weight: Tensor,
    /// The weight in the kind in which the model computes, where that is another one.
    pub(crate) copy: Option<ComputeCopy>,
}

impl LinearHead {
    fn copy(&self) -> std::result::Result<Option<&Tensor>, TchError> {
        self.copy.as_ref().map(|copy| copy.of(std::slice::from_ref(&self.weight))).transpose()
    }

    /// Computes in `kind`, by a copy of the weight where it is of another one.
    pub(crate) fn compute_in(&mut self, kind: Kind) -> std::result::Result<(), TchError> {
        let needs_copy = self.weight.kind() != kind;
        let new = || ComputeCopy::new(std::slice::from_ref(&self.weight), kind);
        self.copy = if needs_copy { Some(new()?) } else { None };
        Ok(())
    }
}

impl Head for LinearHead {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let weights = std::slice::from_ref(&self.weight);
        Ok(dlm_torch::linears(hidden, weights, self.copy()?).map_err(torch)?)
    }

    fn weighted_loss(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
        loss: &TokenLoss,
    ) -> Result<TargetScores> {
        let chunk_len = dlm_torch::chunk_rows(hidden.size()[0] as usize, self.weight.size()[0] as usize);
        let options = dlm_torch::CrossEntropyOptions {
            label_smoothing: loss.label_smoothing,
            z_loss: loss.z_loss,
            forbidden: loss.forbidden,
        };
        let scores =
            dlm_torch::linear_cross_entropy(hidden, &self.weight, self.copy()?, targets, weights, chunk_len, &options)
                .map_err(DiffusionError::denoiser)?;
        Ok(TargetScores { weighted_sum: scores.weighted_sum, nll: scores.nll, argmax: scores.argmax })
    }
}
