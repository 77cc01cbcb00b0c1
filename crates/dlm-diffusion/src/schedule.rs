//! Noise schedules: how likely a token is masked at time `t`, how fast that grows, and the weight that makes a loss a bound.

mod cosine;
mod linear;

use crate::{
    check::expect_within,
    error::{DiffusionError, Result},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use tch::Tensor;

/// How `alpha_t`, the probability that a token is still clean at `t`, falls from `t = 0` (text) to `t = 1` (all masks).
///
/// `p_mask = 1 - alpha_t` begins at `eps`, which keeps the weights finite, and ends at 1.
///
/// | | `p_mask(t)` | [`elbo_weight`](Self::elbo_weight) `p'(t) / p(t)` |
/// |---|---|---|
/// | `Linear` | `(1 - eps) t + eps` | `(1 - eps) / p` |
/// | `Cosine` | `1 - (1 - eps) cos(pi t / 2)` | `(1 - eps) (pi / 2) sin(pi t / 2) / p` |
///
/// Linear is what LLaDA ([arXiv:2502.09992](https://arxiv.org/abs/2502.09992)) and Axolotl train with; the cosine is BD3-LM's
/// ([arXiv:2503.09573](https://arxiv.org/abs/2503.09573)), which differs by `eps` from the one MDLM has under that name.
///
/// ```
/// use dlm_diffusion::{NoiseSchedule, ScheduleName};
///
/// let schedule = NoiseSchedule::new(ScheduleName::Linear, 1e-3)?;
/// assert!((schedule.p_mask(0.5) - 0.5005).abs() < 1e-12);
/// assert!((schedule.t_at(0.5005) - 0.5).abs() < 1e-12);
/// # Ok::<(), dlm_diffusion::DiffusionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum NoiseSchedule {
    /// Every moment masks the same number of tokens.
    Linear {
        /// Smallest `p_mask`.
        eps: f64,
    },
    /// Few tokens are masked early, most of them late.
    Cosine {
        /// Smallest `p_mask`.
        eps: f64,
    },
}

impl NoiseSchedule {
    /// The schedule of that name.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] when `eps` does not lie in `[0, 1]`. At 0 the weight grows without bound as `t` nears 0;
    /// at 1 everything is always masked.
    pub fn new(name: ScheduleName, eps: f64) -> Result<Self> {
        expect_within("eps", eps, 0.0..=1.0, "between 0 and 1")?;
        Ok(match name {
            ScheduleName::Linear => Self::Linear { eps },
            ScheduleName::Cosine => Self::Cosine { eps },
        })
    }

    /// The name that settings and model folders know it by.
    #[must_use]
    pub fn name(&self) -> ScheduleName {
        match self {
            Self::Linear { .. } => ScheduleName::Linear,
            Self::Cosine { .. } => ScheduleName::Cosine,
        }
    }

    /// Probability that a token is masked at `t` in `[0, 1]`.
    #[must_use]
    pub fn p_mask(&self, t: f64) -> f64 {
        match *self {
            Self::Linear { eps } => linear::p_mask(t, eps),
            Self::Cosine { eps } => cosine::p_mask(t, eps),
        }
    }

    /// Probability that a token is still clean at `t` in `[0, 1]`.
    #[must_use]
    pub fn alpha(&self, t: f64) -> f64 {
        1.0 - self.p_mask(t)
    }

    /// Derivative of [`alpha`](Self::alpha) by `t`; never positive.
    #[must_use]
    pub fn alpha_slope(&self, t: f64) -> f64 {
        -match *self {
            Self::Linear { eps } => linear::p_slope(eps),
            Self::Cosine { eps } => cosine::p_slope(t, eps),
        }
    }

    /// The time at which `p_mask` is reached, the inverse of [`p_mask`](Self::p_mask).
    ///
    /// Probabilities below `eps` are reached at 0. Where `eps` is 1 every time fits, and 0 is given.
    #[must_use]
    pub fn t_at(&self, p_mask: f64) -> f64 {
        match *self {
            Self::Linear { eps } => linear::t_at(p_mask, eps),
            Self::Cosine { eps } => cosine::t_at(p_mask, eps),
        }
    }

    /// `p'(t) / p(t) = -alpha'_t / (1 - alpha_t)`: the weight of a masked token that makes the expected loss the negative
    /// evidence lower bound (MDLM, [arXiv:2406.07524](https://arxiv.org/abs/2406.07524), eq. 10).
    ///
    /// Infinite where nothing is ever masked, `p_mask = 0`.
    #[must_use]
    pub fn elbo_weight(&self, t: f64) -> f64 {
        let p_mask = self.p_mask(t);
        if p_mask == 0.0 { f64::INFINITY } else { -self.alpha_slope(t) / p_mask }
    }

    /// [`p_mask`](Self::p_mask) of every element of `t`, in its kind.
    pub fn p_mask_of(&self, t: &Tensor) -> Tensor {
        match *self {
            Self::Linear { eps } => linear::p_mask_of(t, eps),
            Self::Cosine { eps } => cosine::p_mask_of(t, eps),
        }
    }

    /// [`alpha`](Self::alpha) of every element of `t`, in its kind.
    pub fn alpha_of(&self, t: &Tensor) -> Tensor {
        1.0 - self.p_mask_of(t)
    }

    /// [`alpha_slope`](Self::alpha_slope) of every element of `t`, in its kind.
    pub fn alpha_slope_of(&self, t: &Tensor) -> Tensor {
        -match *self {
            Self::Linear { eps } => linear::p_slope_of(t, eps),
            Self::Cosine { eps } => cosine::p_slope_of(t, eps),
        }
    }

    /// [`elbo_weight`](Self::elbo_weight) of every element of `t`, in its kind; not finite where `p_mask` is 0.
    pub fn elbo_weight_of(&self, t: &Tensor) -> Tensor {
        -self.alpha_slope_of(t) / self.p_mask_of(t)
    }
}

/// What a [`NoiseSchedule`] is called in settings, `noise_schedule = "linear"`, and in a model folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScheduleName {
    /// [`NoiseSchedule::Linear`].
    #[default]
    Linear,
    /// [`NoiseSchedule::Cosine`].
    Cosine,
}

impl ScheduleName {
    /// Every schedule there is.
    pub const ALL: [Self; 2] = [Self::Linear, Self::Cosine];

    /// The name as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ScheduleName {
    type Err = DiffusionError;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == name);
        found.ok_or_else(|| DiffusionError::UnknownSchedule { found: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedules() -> impl Strategy<Value = NoiseSchedule> {
        (proptest::sample::select(&ScheduleName::ALL[..]), 0.0f64..0.9)
            .prop_map(|(name, eps)| NoiseSchedule::new(name, eps).unwrap())
    }

    proptest! {
        #[test]
        fn the_slope_is_the_derivative_of_alpha(schedule in schedules(), t in 0.01f64..0.99) {
            let h = 1e-5;
            let difference = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2.0 * h);
            prop_assert!((schedule.alpha_slope(t) - difference).abs() < 1e-8, "{difference}");
        }

        #[test]
        fn the_elbo_weight_is_the_derivative_of_the_logarithm_of_p_mask(schedule in schedules(), t in 0.05f64..0.95) {
            let h = 1e-6;
            let difference = (schedule.p_mask(t + h).ln() - schedule.p_mask(t - h).ln()) / (2.0 * h);
            prop_assert!((schedule.elbo_weight(t) - difference).abs() < 1e-6 * schedule.elbo_weight(t));
        }

        #[test]
        fn the_inverse_gives_the_time_back(schedule in schedules(), t in 0.0f64..=1.0) {
            prop_assert!((schedule.t_at(schedule.p_mask(t)) - t).abs() < 1e-7);
        }

        #[test]
        fn tensors_hold_what_the_scalar_functions_say(schedule in schedules(), t in 0.001f64..=1.0) {
            let tensor = Tensor::from_slice(&[t]);
            let close = |tensor: &Tensor, scalar: f64| (tensor.double_value(&[0]) - scalar).abs() <= 1e-12 * scalar.abs().max(1.0);
            prop_assert!(close(&schedule.p_mask_of(&tensor), schedule.p_mask(t)));
            prop_assert!(close(&schedule.alpha_of(&tensor), schedule.alpha(t)));
            prop_assert!(close(&schedule.alpha_slope_of(&tensor), schedule.alpha_slope(t)));
            prop_assert!(close(&schedule.elbo_weight_of(&tensor), schedule.elbo_weight(t)));
        }

        #[test]
        fn more_is_masked_as_time_goes_on(schedule in schedules(), a in 0.0f64..=1.0, b in 0.0f64..=1.0) {
            prop_assert_eq!(a.total_cmp(&b).is_lt() && schedule.p_mask(a) > schedule.p_mask(b), false);
            prop_assert!((0.0..=1.0).contains(&schedule.p_mask(a)));
        }

        #[test]
        fn in_float32_a_probability_stays_a_probability(schedule in schedules(), t in 0.0f32..=1.0) {
            let p_mask = schedule.p_mask_of(&Tensor::from_slice(&[t])).double_value(&[0]);
            prop_assert!((0.0..=1.0).contains(&p_mask), "{p_mask}");
        }
    }

    #[test]
    fn every_schedule_begins_at_eps_and_ends_at_one() {
        for name in ScheduleName::ALL {
            let schedule = NoiseSchedule::new(name, 0.003).unwrap();
            assert!((schedule.p_mask(0.0) - 0.003).abs() < 1e-15, "{name}");
            assert!((schedule.p_mask(1.0) - 1.0).abs() < 1e-15, "{name}");
        }
    }

    #[test]
    fn at_half_time_linear_masks_half_and_cosine_less_than_a_third() {
        let half = |name| NoiseSchedule::new(name, 0.0).unwrap().p_mask(0.5);
        assert!((half(ScheduleName::Linear) - 0.5).abs() < 1e-15);
        assert!((half(ScheduleName::Cosine) - (1.0 - 0.5f64.sqrt())).abs() < 1e-15);
    }

    #[test]
    fn eps_outside_the_unit_interval_is_refused_and_its_ends_are_not() {
        for eps in [-0.1, 1.5, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                NoiseSchedule::new(ScheduleName::Linear, eps),
                Err(DiffusionError::OutOfRange { name: "eps", .. })
            ));
        }
        for (name, eps) in ScheduleName::ALL.into_iter().flat_map(|name| [(name, 0.0), (name, 1.0)]) {
            let schedule = NoiseSchedule::new(name, eps).unwrap();
            assert!([0.0, 0.5, 1.0].iter().all(|&t| schedule.t_at(schedule.p_mask(t)).is_finite()), "{name} {eps}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_refused() {
        for name in ScheduleName::ALL {
            assert_eq!(name.to_string().parse::<ScheduleName>().unwrap(), name);
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
        }
        let error = "quadratic".parse::<ScheduleName>().unwrap_err();
        assert_eq!(error.to_string(), "`quadratic` is no noise schedule");
        assert_eq!(error.help().unwrap(), "the schedules are `linear` and `cosine`");
    }
}
