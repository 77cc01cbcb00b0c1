//! Noise schedules: how likely a token is masked at time `t`, how fast that grows, and the weight that makes a loss a bound.

mod curves;
mod custom;
mod name;
mod real;

pub use custom::CustomSchedule;
pub use name::{ScheduleConfig, ScheduleName};

use crate::error::Result;
use std::sync::Arc;
use tch::Tensor;

/// How `alpha_t`, the probability that a token is still clean at `t`, falls from `t = 0` (text) to `t = 1` (all masks).
///
/// `p_mask = 1 - alpha_t`; [`elbo_weight`](Self::elbo_weight) is `p'(t) / p(t)`. Where `p_mask(0)` is 0 the weight is infinite at
/// `t = 0`, so such a schedule is trained on a [`MaskRange`](crate::MaskRange) that leaves 0 out.
///
/// | | `p_mask(t)` | from, to | who has it, under which name |
/// |---|---|---|---|
/// | `Linear` | `(1 - eps) t + eps` | `eps`, 1 | Axolotl `linear`; LLaDA ([2502.09992](https://arxiv.org/abs/2502.09992)), SMDM; `eps` = 0: dllm's `linear`, BD3-LM's `loglinear` |
/// | `LogLinear` | `(1 - eps) t` | 0, `1 - eps` | MDLM's `loglinear` ([2406.07524](https://arxiv.org/abs/2406.07524)) |
/// | `LinearSigma` | `1 - exp(-sigma)`, sigma linear in `t` | `1 - exp(-sigma_min)`, ... | MDLM's `linear` |
/// | `Geometric` | `1 - exp(-sigma_min^(1-t) sigma_max^t)` | likewise | MDLM's `geometric` |
/// | `Cosine` | `1 - (1 - eps) cos(pi t / 2)` | `eps`, 1 | BD3-LM's `cosine` ([2503.09573](https://arxiv.org/abs/2503.09573)) |
/// | `MdlmCosine` | `(1 - eps) (1 - cos(pi t / 2))` | 0, `1 - eps` | MDLM's `cosine` |
/// | `CosineSquared` | `(1 - eps) sin^2(pi t / 2)` | 0, `1 - eps` | MDLM's `cosinesqr` |
/// | `Sine` | `(1 - eps) sin(pi t / 2) + eps` | `eps`, 1 | dllm's `cosine` (`eps` = 0), the mirror image of the others |
/// | `Exponential` | `p_min^(1-t) p_max^t` | `p_min`, `p_max` | MDLM's importance sampling: the logarithm of `p` is even, the weight constant |
/// | `Polynomial` | `(1 - eps) t^power + eps` | `eps`, 1 | MD4 ([2406.04329](https://arxiv.org/abs/2406.04329)) |
/// | `Square` | `max(t^2, eps)` | `eps`, 1 | BD3-LM's `square` |
/// | `SquareRoot` | `max(sqrt(t), eps)` | `eps`, 1 | BD3-LM's `square_root` |
/// | `Logarithmic` | `(1 - eps) log2(1 + t) + eps` | `eps`, 1 | BD3-LM's `log` (`eps` = 0) |
/// | `Custom` | yours | yours | [`custom`](Self::custom) |
///
/// ```
/// use dlm_diffusion::{NoiseSchedule, ScheduleName};
///
/// let schedule = NoiseSchedule::new(ScheduleName::Linear, 1e-3)?;
/// assert!((schedule.p_mask(0.5) - 0.5005).abs() < 1e-12);
/// assert!((schedule.t_at(0.5005) - 0.5).abs() < 1e-12);
/// # Ok::<(), dlm_diffusion::DiffusionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
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
    /// As linear, but it ends short of all masks instead of beginning past none: the weight is exactly `1 / t`.
    LogLinear {
        /// Smallest `alpha_t`.
        eps: f64,
    },
    /// `-log alpha_t` grows evenly.
    LinearSigma {
        /// `-log alpha` at `t` = 0.
        sigma_min: f64,
        /// `-log alpha` at `t` = 1.
        sigma_max: f64,
    },
    /// `-log alpha_t` grows by equal factors.
    Geometric {
        /// `-log alpha` at `t` = 0, above 0.
        sigma_min: f64,
        /// `-log alpha` at `t` = 1.
        sigma_max: f64,
    },
    /// As the cosine, but it ends short of all masks instead of beginning past none.
    MdlmCosine {
        /// Smallest `alpha_t`.
        eps: f64,
    },
    /// Slow at both ends.
    CosineSquared {
        /// Smallest `alpha_t`.
        eps: f64,
    },
    /// Most tokens are masked early.
    Sine {
        /// Smallest `p_mask`.
        eps: f64,
    },
    /// `p_mask` grows by equal factors: half of all timesteps mask few tokens, and all weigh the same.
    Exponential {
        /// `p_mask` at `t` = 0, above 0.
        p_min: f64,
        /// `p_mask` at `t` = 1.
        p_max: f64,
    },
    /// A power of `t`.
    Polynomial {
        /// Smallest `p_mask`.
        eps: f64,
        /// The exponent, above 0.
        power: f64,
    },
    /// `t^2`, cut off below `eps`. Where it is cut off, slope and weight are still those of `t^2` over `eps`.
    Square {
        /// Smallest `p_mask`.
        eps: f64,
    },
    /// The square root of `t`, cut off below `eps`.
    SquareRoot {
        /// Smallest `p_mask`.
        eps: f64,
    },
    /// The logarithm of `1 + t` to base 2.
    Logarithmic {
        /// Smallest `p_mask`.
        eps: f64,
    },
    /// A function of your own.
    Custom(CustomSchedule),
}

impl NoiseSchedule {
    /// The schedule of that name, its other parameters as [`ScheduleConfig`] says they usually are.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`](crate::DiffusionError::OutOfRange) when `eps` does not lie in `[0, 1]`. At 0 the weight grows
    /// without bound as `t` nears 0; at 1 everything is always masked.
    pub fn new(name: ScheduleName, eps: f64) -> Result<Self> {
        ScheduleConfig::new(name, eps).build()
    }

    /// A schedule of your own: `p_mask` as a function of `t`, smooth and never falling. Slope and inverse are reckoned from it.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`](crate::DiffusionError::OutOfRange) where it is no probability and
    /// [`DiffusionError::NotMonotone`](crate::DiffusionError::NotMonotone) where it falls, on a grid of 4097 timesteps.
    ///
    /// ```
    /// use dlm_diffusion::NoiseSchedule;
    ///
    /// let schedule = NoiseSchedule::custom("smoothstep", |t| t * t * (3.0 - 2.0 * t))?;
    /// assert!((schedule.elbo_weight(0.5) - 3.0).abs() < 1e-6);
    /// assert!(NoiseSchedule::custom("falling", |t| 1.0 - t).is_err());
    /// # Ok::<(), dlm_diffusion::DiffusionError>(())
    /// ```
    pub fn custom(name: &str, p_mask: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Result<Self> {
        Ok(Self::Custom(CustomSchedule::new(name, Arc::new(p_mask))?))
    }

    /// Probability that a token is masked at `t` in `[0, 1]`.
    #[must_use]
    pub fn p_mask(&self, t: f64) -> f64 {
        curves::p_mask(self, &t)
    }

    /// Probability that a token is still clean at `t` in `[0, 1]`.
    #[must_use]
    pub fn alpha(&self, t: f64) -> f64 {
        1.0 - self.p_mask(t)
    }

    /// Derivative of [`alpha`](Self::alpha) by `t`; never positive.
    #[must_use]
    pub fn alpha_slope(&self, t: f64) -> f64 {
        -curves::p_slope(self, &t)
    }

    /// The time at which `p_mask` is reached, the inverse of [`p_mask`](Self::p_mask).
    ///
    /// Probabilities below the first or above the last are reached at the ends. Where every probability is the same, 0 is given.
    #[must_use]
    pub fn t_at(&self, p_mask: f64) -> f64 {
        curves::t_at(self, p_mask)
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
        curves::p_mask(self, t)
    }

    /// [`alpha`](Self::alpha) of every element of `t`, in its kind.
    pub fn alpha_of(&self, t: &Tensor) -> Tensor {
        1.0 - self.p_mask_of(t)
    }

    /// [`alpha_slope`](Self::alpha_slope) of every element of `t`, in its kind.
    pub fn alpha_slope_of(&self, t: &Tensor) -> Tensor {
        -curves::p_slope(self, t)
    }

    /// [`elbo_weight`](Self::elbo_weight) of every element of `t`, in its kind; not finite where `p_mask` is 0.
    pub fn elbo_weight_of(&self, t: &Tensor) -> Tensor {
        -self.alpha_slope_of(t) / self.p_mask_of(t)
    }
}

#[cfg(test)]
mod tests;
