//! RMSNorm, in float32 whatever the kind of its input.

use crate::linear::torch;
use dlm_torch::Normed;
use tch::{Kind, TchError, Tensor};

/// Root mean square normalisation ([arXiv:1910.07467](https://arxiv.org/abs/1910.07467)).
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// Normalises the last dimension; shape and kind stay.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        Ok(self.forward_sum(x, None, x.kind())?.normed)
    }

    /// The residual stream with what a module adds to it, and its normalised form in `kind`.
    pub(crate) fn forward_sum(&self, x: &Tensor, delta: Option<&Tensor>, kind: Kind) -> Result<Normed, TchError> {
        dlm_torch::norm(x, delta, &self.weight, self.eps, kind).map_err(torch)
    }

    /// The same norm in another pair of hands.
    pub(crate) fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_root_mean_square_of_a_normalised_row_is_that_of_the_weight() {
        let norm = RmsNorm::new(Tensor::from_slice(&[2f32, 2.0]), 0.0);
        // The root mean square of (3, 4) is sqrt(12.5).
        let found = norm.forward(&Tensor::from_slice2(&[[3f32, 4.0]])).unwrap();
        let expected = Tensor::from_slice2(&[[6.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()]]);
        assert!((found - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn a_bfloat16_row_is_squared_and_summed_in_float32() {
        let row = |kind| {
            Tensor::cat(&[Tensor::full([1], 16.0, (kind, Device::Cpu)), Tensor::ones([255], (kind, Device::Cpu))], 0)
        };
        let norm = |kind| RmsNorm::new(Tensor::ones([256], (kind, Device::Cpu)), 1e-5).forward(&row(kind)).unwrap();
        // Added up in bfloat16, 256 + 1 is 256 again and again.
        let (short, exact) = (norm(Kind::BFloat16), norm(Kind::Float));
        assert_eq!(short.kind(), Kind::BFloat16);
        assert_eq!(short, exact.to_kind(Kind::BFloat16));
    }
}
