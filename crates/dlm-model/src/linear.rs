//! A linear map with an optional bias.

use crate::state_dict::Tensors;
use tch::{TchError, Tensor};

/// `x W^T + b`, as checkpoints store it.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(tensors: &Tensors<'_>, name: &str) -> Self {
        Self { weight: tensors.weight(name), bias: tensors.bias(name) }
    }

    /// `[n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, self.bias.as_ref())
    }
}
