//! What one masked token counts in the loss.

use crate::schedule::NoiseSchedule;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The weight of a masked token's negative log-likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossWeight {
    /// What makes the loss a bound: [`InverseP`](Self::InverseP) for the linear schedule, [`Elbo`](Self::Elbo) for every other.
    #[default]
    Auto,
    /// `1 / p_mask` (LLaDA, [arXiv:2502.09992](https://arxiv.org/abs/2502.09992), eq. 3; Axolotl's `importance_weighting`).
    /// A bound for the linear schedule only: off it, rare and heavy weights make its variance several times larger as well.
    InverseP,
    /// `p'(t) / p(t)` (MDLM, [arXiv:2406.07524](https://arxiv.org/abs/2406.07524), eq. 10): the negative ELBO for any schedule.
    Elbo,
    /// 1: what `importance_weighting: false` means. Not a bound.
    Uniform,
}

impl LossWeight {
    /// The explicit choice that `Auto` stands for with this schedule.
    #[must_use]
    pub fn resolve(self, schedule: &NoiseSchedule) -> Self {
        match (self, schedule) {
            (Self::Auto, NoiseSchedule::Linear { .. }) => Self::InverseP,
            (Self::Auto, _) => Self::Elbo,
            (chosen, _) => chosen,
        }
    }

    /// The weight at timestep `t`.
    #[must_use]
    pub fn at(self, schedule: &NoiseSchedule, t: f64) -> f64 {
        match self.resolve(schedule) {
            Self::Uniform => 1.0,
            Self::Elbo => schedule.elbo_weight(t),
            _ => 1.0 / schedule.p_mask(t),
        }
    }

    /// The weight of masked tokens, from the timestep and the mask probability of each; shaped like `t`.
    pub fn of(self, schedule: &NoiseSchedule, t: &Tensor, p_mask: &Tensor) -> Tensor {
        match self.resolve(schedule) {
            Self::Uniform => t.ones_like(),
            Self::Elbo => schedule.elbo_weight_of(t),
            _ => p_mask.reciprocal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: NoiseSchedule = NoiseSchedule::Linear { eps: 0.001 };
    const COSINE: NoiseSchedule = NoiseSchedule::Cosine { eps: 0.001 };

    #[test]
    fn auto_is_the_inverse_probability_on_the_linear_schedule_and_the_elbo_weight_elsewhere() {
        assert_eq!(LossWeight::Auto.resolve(&LINEAR), LossWeight::InverseP);
        assert_eq!(LossWeight::Auto.resolve(&COSINE), LossWeight::Elbo);
        assert_eq!(LossWeight::Uniform.resolve(&COSINE), LossWeight::Uniform);
    }

    #[test]
    fn tensors_hold_what_the_scalar_function_says() {
        let t = Tensor::from_slice(&[0.1f64, 0.5, 1.0]);
        for schedule in [LINEAR, COSINE] {
            for weight in [LossWeight::Auto, LossWeight::InverseP, LossWeight::Elbo, LossWeight::Uniform] {
                let found = Vec::<f64>::try_from(weight.of(&schedule, &t, &schedule.p_mask_of(&t))).unwrap();
                for (found, t) in found.iter().zip([0.1, 0.5, 1.0]) {
                    assert!((found - weight.at(&schedule, t)).abs() < 1e-12, "{weight:?} {t}");
                }
            }
        }
    }

    #[test]
    fn weights_are_named_as_in_settings() {
        let name = |weight: LossWeight| serde_json::to_value(weight).unwrap();
        assert_eq!(name(LossWeight::Auto), "auto");
        assert_eq!(name(LossWeight::InverseP), "inverse_p");
    }
}
