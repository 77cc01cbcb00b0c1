//! Linear maps of one input with optional biases and adapters, computed as one.

use crate::{adapter::LowRank, compute_copy::ComputeCopy, state_dict::Tensors};
use tch::{Kind, TchError, Tensor};

/// `x W^T + b`, as checkpoints store it, for one to three `W` side by side.
#[derive(Debug)]
pub(crate) struct Linears {
    weights: Vec<Tensor>,
    biases: Vec<Option<Tensor>>,
    low_rank: Vec<Option<LowRank>>,
    /// The weights in the kind in which the model computes, where that is another one.
    copy: Option<ComputeCopy>,
}

impl Linears {
    pub(crate) fn new(tensors: &Tensors<'_>, names: &[&str]) -> Self {
        Self {
            weights: names.iter().map(|name| tensors.weight(name)).collect(),
            biases: names.iter().map(|name| tensors.bias(name)).collect(),
            low_rank: names.iter().map(|name| tensors.low_rank(name)).collect(),
            copy: None,
        }
    }

    /// `[n, in]` to `[n, all out]`; `keys`, `[n]`, says what an adapter's dropout follows from, in training.
    pub(crate) fn forward(&self, x: &Tensor, keys: Option<&Tensor>) -> Result<Tensor, TchError> {
        let copy = self.copy.as_ref().map(|copy| copy.of(&self.weights)).transpose()?;
        let mut y = if copy.is_some() || self.lie_joined()? {
            dlm_torch::linears(x, &self.weights, copy).map_err(torch)?
        } else {
            // Joining them for each call would cost more than it gains.
            let each = self.weights.iter().map(|weight| x.f_linear::<&Tensor>(weight, None));
            Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 1)?
        };
        if self.biases.iter().any(Option::is_some) {
            let bias = |(bias, weight): (&Option<Tensor>, &Tensor)| match bias {
                Some(bias) => bias.f_to_kind(y.kind()),
                None => Tensor::f_zeros([weight.size()[0]], (y.kind(), y.device())),
            };
            let biases = self.biases.iter().zip(&self.weights).map(bias).collect::<Result<Vec<_>, _>>()?;
            y = y.f_add(&Tensor::f_cat(&biases, 0)?)?;
        }
        if self.low_rank.iter().any(Option::is_some) {
            let added = |(low_rank, weight): (&Option<LowRank>, &Tensor)| match low_rank {
                Some(low_rank) => low_rank.forward(x, keys),
                None => Tensor::f_zeros([x.size()[0], weight.size()[0]], (x.kind(), x.device())),
            };
            let added = self.low_rank.iter().zip(&self.weights).map(added).collect::<Result<Vec<_>, _>>()?;
            y = y.f_add(&Tensor::f_cat(&added, 1)?)?;
        }
        Ok(y)
    }

    fn lie_joined(&self) -> Result<bool, TchError> {
        Ok(self.weights.len() == 1 || dlm_torch::lie_joined(&self.weights).map_err(torch)?)
    }

    /// Moves the weights behind each other in memory, so that they are multiplied as one matrix. They stay the same tensors.
    pub(crate) fn join(&mut self) -> Result<(), TchError> {
        if self.copy.is_some() || self.lie_joined()? {
            return Ok(());
        }
        let detached: Vec<Tensor> = self.weights.iter().map(Tensor::detach).collect();
        let whole = Tensor::f_cat(&detached, 0)?;
        let mut row = 0;
        for weight in &mut self.weights {
            let rows = weight.size()[0];
            weight.f_set_data(&whole.f_narrow(0, row, rows)?)?;
            row += rows;
        }
        Ok(())
    }

    /// Computes in `kind`, by a copy of the weights where they are of another one.
    pub(crate) fn compute_in(&mut self, kind: Kind) -> Result<(), TchError> {
        let needs_copy = self.weights[0].kind() != kind;
        self.copy = if needs_copy { Some(ComputeCopy::new(&self.weights, kind)?) } else { None };
        Ok(())
    }

    /// The same maps in another pair of hands, such as a closure's.
    pub(crate) fn share(&self) -> Self {
        Self {
            weights: self.weights.iter().map(Tensor::shallow_clone).collect(),
            biases: self.biases.iter().map(|bias| bias.as_ref().map(Tensor::shallow_clone)).collect(),
            low_rank: self.low_rank.iter().map(|low_rank| low_rank.as_ref().map(LowRank::share)).collect(),
            copy: self.copy.as_ref().map(|copy| copy.share(&self.weights)),
        }
    }
}

/// What dlm-torch failed with, as libtorch's own.
#[expect(clippy::needless_pass_by_value, reason = "it is handed to `map_err`")]
pub(crate) fn torch(error: dlm_torch::TorchError) -> TchError {
    TchError::Torch(error.to_string())
}
