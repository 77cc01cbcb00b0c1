//! Weights in another kind than their own, cast when they change and not when they are used.

use std::cell::RefCell;
use tch::{Kind, TchError, Tensor};

/// A joined copy of matrices in the kind in which a model computes.
#[derive(Debug)]
pub(crate) struct ComputeCopy {
    tensor: Tensor,
    /// Where the matrices lay and how often they had been changed when the copy was made.
    made_of: RefCell<Vec<(usize, i64)>>,
}

impl ComputeCopy {
    /// Room for a copy of matrices with the same number of columns.
    pub(crate) fn new(weights: &[Tensor], kind: Kind) -> Result<Self, TchError> {
        let rows = weights.iter().map(|weight| weight.size()[0]).sum();
        let tensor = Tensor::f_empty([rows, weights[0].size()[1]], (kind, weights[0].device()))?;
        Ok(Self { tensor, made_of: RefCell::default() })
    }

    /// The copy, up to date.
    ///
    /// libtorch counts the changes of a tensor in place; an optimiser's step is one. So micro-batches and recomputation share a cast.
    pub(crate) fn of(&self, weights: &[Tensor]) -> Result<&Tensor, TchError> {
        let now = |weight: &Tensor| Ok((weight.data_ptr() as usize, weight.f_internal_version()?));
        let now = weights.iter().map(now).collect::<Result<Vec<_>, TchError>>()?;
        if *self.made_of.borrow() != now {
            let mut row = 0;
            for weight in weights {
                let rows = weight.size()[0];
                tch::no_grad(|| self.tensor.f_narrow(0, row, rows)?.f_copy_(&weight.detach()))?;
                row += rows;
            }
            self.made_of.replace(now);
        }
        Ok(&self.tensor)
    }

    /// The kind of the copy.
    pub(crate) fn kind(&self) -> Kind {
        self.tensor.kind()
    }

    /// The same copy in another pair of hands; made now where it is old, so that the other hands need not.
    pub(crate) fn share(&self, weights: &[Tensor]) -> Self {
        // Where that fails, the next use says so.
        let _ = self.of(weights);
        Self { tensor: self.tensor.shallow_clone(), made_of: self.made_of.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_copy_is_made_again_only_after_its_weights_have_changed() {
        let weights = [2i64, 3].map(|rows| Tensor::ones([rows, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true));
        let copy = ComputeCopy::new(&weights, Kind::BFloat16).unwrap();
        assert_eq!(copy.of(&weights).unwrap(), &Tensor::ones([5, 4], (Kind::BFloat16, Device::Cpu)));
        // What stands in the copy itself shows whether it is made again.
        let _ = copy.tensor.shallow_clone().fill_(7.0);
        assert_eq!(copy.of(&weights).unwrap().double_value(&[0, 0]), 7.0);

        let zeros = || weights.iter().map(|w| w.detach().zeros_like()).collect::<Vec<_>>();
        let steps: Vec<Tensor> = weights.iter().map(|_| Tensor::zeros([], (Kind::Float, Device::Cpu))).collect();
        let ones: Vec<Tensor> = weights.iter().map(|w| w.detach().ones_like()).collect();
        let step = dlm_torch::AdamWStep { lr: 0.5, beta1: 0.9, beta2: 0.999, weight_decay: 0.0, eps: 1e-8 };
        let shared: Vec<Tensor> = weights.iter().map(Tensor::shallow_clone).collect();
        tch::no_grad(|| dlm_torch::fused_adamw(&shared, &ones, &zeros(), &zeros(), &steps, &step)).unwrap();
        assert_eq!(copy.of(&weights).unwrap().double_value(&[4, 3]), 0.5);
    }
}
