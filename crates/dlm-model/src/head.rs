//! The head: hidden states to scores over the vocabulary, and to losses without ever holding all scores.

use dlm_diffusion::{DiffusionError, Head, Result, TargetScores};
use tch::Tensor;

/// A linear head; its weight is the embedding in tied models.
#[derive(Debug)]
pub(crate) struct LinearHead {
    /// `[vocab, hidden]`.
    pub(crate) weight: Tensor,
}

/// Scores held at a time while a loss is computed; 32 MB in float32.
const CHUNK_ELEMENTS: usize = 1 << 23;

impl Head for LinearHead {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_linear::<&Tensor>(&self.weight, None)?)
    }

    fn weighted_nll(&self, hidden: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<TargetScores> {
        // Fewer rows than 64 would leave the matrix kernels idle, however large the vocabulary.
        let chunk_len = (CHUNK_ELEMENTS / self.weight.size()[0] as usize).max(64);
        let scores = dlm_torch::linear_cross_entropy(hidden, &self.weight, targets, weights, chunk_len)
            .map_err(DiffusionError::denoiser)?;
        Ok(TargetScores { weighted_sum: scores.weighted_sum, nll: scores.nll, argmax: scores.argmax })
    }
}
