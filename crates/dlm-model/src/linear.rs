//! A linear map with an optional bias and an optional adapter.

use crate::{adapter::LowRank, state_dict::Tensors};
use tch::{TchError, Tensor};

/// `x W^T + b`, as checkpoints store it.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    low_rank: Option<LowRank>,
}

impl Linear {
    pub(crate) fn new(tensors: &Tensors<'_>, name: &str) -> Self {
        Self { weight: tensors.weight(name), bias: tensors.bias(name), low_rank: tensors.low_rank(name) }
    }

    /// `[n, in]` to `[n, out]`; `keys`, `[n]`, says what an adapter's dropout follows from, in training.
    pub(crate) fn forward(&self, x: &Tensor, keys: Option<&Tensor>) -> Result<Tensor, TchError> {
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.low_rank {
            Some(low_rank) => y.f_add(&low_rank.forward(x, keys)?),
            None => Ok(y),
        }
    }
}
