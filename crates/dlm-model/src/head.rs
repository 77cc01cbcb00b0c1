//! The head: hidden states to scores over the vocabulary, and to losses without ever holding all scores.

use dlm_diffusion::{DiffusionError, Head, Result, TargetScores, TokenLoss};
use tch::Tensor;

/// A linear head; its weight is the embedding in tied models.
#[derive(Debug)]
pub(crate) struct LinearHead {
    /// `[vocab, hidden]`.
    pub(crate) weight: Tensor,
}

impl Head for LinearHead {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_linear::<&Tensor>(&self.weight, None)?)
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
        let scores = dlm_torch::linear_cross_entropy(hidden, &self.weight, targets, weights, chunk_len, &options)
            .map_err(DiffusionError::denoiser)?;
        Ok(TargetScores { weighted_sum: scores.weighted_sum, nll: scores.nll, argmax: scores.argmax })
    }
}
