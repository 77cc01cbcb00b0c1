//! Which predictions a step keeps; the other positions stay masked.

use crate::error::Result;
use tch::Tensor;

/// The rule by which predictions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Remasking {
    /// The least confident ones are masked again (LLaDA, [arXiv:2502.09992](https://arxiv.org/abs/2502.09992)).
    #[default]
    LowConfidence,
}

impl Remasking {
    /// The `n_kept` predictions to keep, as indices into `confidences`, the surest first.
    ///
    /// Equal confidences are no rarity: with shifted logits the first two tokens of a text are predicted from one
    /// state. Which of them wins is left to libtorch's `topk` on the CPU, as in the reference implementations, so that
    /// their trajectories are repeated.
    ///
    /// # Errors
    /// What libtorch refuses, for example for lack of memory.
    pub fn keep(self, confidences: &[f32], n_kept: usize) -> Result<Vec<usize>> {
        let n_kept = n_kept.min(confidences.len());
        let order = match self {
            Self::LowConfidence => Tensor::f_from_slice(confidences)?.f_topk(n_kept as i64, 0, true, true)?.1,
        };
        Ok(Vec::<i64>::try_from(order)?.into_iter().map(|index| index as usize).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surest_are_kept_in_that_order() {
        assert_eq!(Remasking::LowConfidence.keep(&[0.2, 0.9, 0.5, 0.7], 3).unwrap(), [1, 3, 2]);
        assert_eq!(Remasking::LowConfidence.keep(&[0.2, 0.9], 5).unwrap(), [1, 0]);
        assert!(Remasking::LowConfidence.keep(&[], 5).unwrap().is_empty());
    }
}
