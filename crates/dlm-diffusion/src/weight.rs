//! What one masked token counts in the loss.

use crate::{
    check::expect_within,
    error::{DiffusionError, Result},
    schedule::NoiseSchedule,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

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
    /// By the clean tokens nearby, see [`cart_weights`] (Dream, [arXiv:2508.15487](https://arxiv.org/abs/2508.15487), eq. 5). Not a bound.
    Cart,
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
}

/// A [`LossWeight`] with what bounds it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct WeightRule {
    /// Which weight.
    pub weight: LossWeight,
    /// Larger weights are taken as this, which trades a bias for less variance; `None` leaves them.
    pub cap: Option<f64>,
    /// Added to the probability that a weight is divided by: dllm has 1e-6, BD3-LM's cosine `eps`.
    pub offset: f64,
    /// The `p` of [`cart_weights`].
    pub cart_p: f64,
}

/// dllm's `geo_p` where nothing is said.
const CART_P: f64 = 0.3;

impl From<LossWeight> for WeightRule {
    fn from(weight: LossWeight) -> Self {
        Self { weight, cap: None, offset: 0.0, cart_p: CART_P }
    }
}

impl Default for WeightRule {
    fn default() -> Self {
        LossWeight::default().into()
    }
}

impl WeightRule {
    /// The weight that makes the loss a bound on any schedule.
    #[must_use]
    pub fn elbo() -> Self {
        LossWeight::Elbo.into()
    }

    /// The same rule, no weight larger than `cap`.
    #[must_use]
    pub fn capped(mut self, cap: f64) -> Self {
        self.cap = Some(cap);
        self
    }

    /// The same rule with another [`offset`](Self::offset).
    #[must_use]
    pub fn with_offset(mut self, offset: f64) -> Self {
        self.offset = offset;
        self
    }

    /// The same rule with another [`cart_p`](Self::cart_p).
    #[must_use]
    pub fn with_cart_p(mut self, p: f64) -> Self {
        self.cart_p = p;
        self
    }

    /// Refuses numbers out of range.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a cap that is not above 0, an offset below 0, or a `cart_p` outside `(0, 1)`.
    pub fn validate(&self) -> Result<()> {
        let positive = f64::MIN_POSITIVE..=f64::MAX;
        expect_within("loss_weight_cap", self.cap.unwrap_or(1.0), positive, "above 0")?;
        expect_within("loss_weight_offset", self.offset, 0.0..=1.0, "between 0 and 1")?;
        if self.cart_p > 0.0 && self.cart_p < 1.0 {
            return Ok(());
        }
        Err(DiffusionError::OutOfRange { name: "cart_p", value: self.cart_p, expected: "above 0 and below 1" })
    }

    /// The weight at timestep `t` under Bernoulli masks. That of `Cart` depends on the mask: its largest is given.
    #[must_use]
    pub fn at(&self, schedule: &NoiseSchedule, t: f64) -> f64 {
        let p_mask = schedule.p_mask(t) + self.offset;
        let weight = match self.weight.resolve(schedule) {
            LossWeight::Uniform => 1.0,
            LossWeight::Cart => 1.0,
            LossWeight::Elbo if p_mask == 0.0 => f64::INFINITY,
            LossWeight::Elbo => -schedule.alpha_slope(t) / p_mask,
            _ => 1.0 / p_mask,
        };
        self.cap.map_or(weight, |cap| weight.min(cap))
    }

    /// The weight of masked tokens, shaped like `p_mask`, the probability with which each was masked; `slope` is how fast it grew.
    /// `cart` gives the weights of [`cart_weights`] for the same tokens.
    pub(crate) fn of(
        &self,
        schedule: &NoiseSchedule,
        p_mask: &Tensor,
        slope: &Tensor,
        cart: impl FnOnce() -> Tensor,
    ) -> Tensor {
        // Adding nothing would be exact, but not free.
        let divisor = if self.offset == 0.0 { p_mask.shallow_clone() } else { p_mask + self.offset };
        let weight = match self.weight.resolve(schedule) {
            LossWeight::Uniform => p_mask.ones_like(),
            LossWeight::Elbo => slope / divisor,
            LossWeight::Cart => cart(),
            _ => divisor.reciprocal(),
        };
        self.cap.map_or_else(|| weight.shallow_clone(), |cap| weight.clamp_max(cap))
    }
}

/// CART weights: `w_i = 1/2 sum over clean j of p (1 - p)^(|i - j| - 1)`, 0 where `i` is not masked.
///
/// A masked token with clean neighbours is easy and counts more, one in the middle of nothing less (Dream,
/// [arXiv:2508.15487](https://arxiv.org/abs/2508.15487), eq. 5). With `segment_ids` only the tokens of the same document count, and
/// none on padding; without, the whole row, as in dllm. Reckoned on the CPU in time linear in the length.
///
/// # Shapes
/// - `is_masked`: `[batch, seq_len]` of `Bool`; `segment_ids`: the same of `Int64`
/// - `p`: between 0 and 1; the smaller, the further a token looks
pub fn cart_weights(is_masked: &Tensor, segment_ids: Option<&Tensor>, p: f64) -> Tensor {
    let size = is_masked.size();
    let seq_len = size.last().copied().unwrap_or(0).max(1) as usize;
    let list = |tensor: &Tensor| {
        let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Int64).flatten(0, -1).contiguous();
        let mut values = vec![0i64; flat.numel()];
        flat.copy_data(&mut values, flat.numel());
        values
    };
    let masked = list(is_masked);
    let segments = segment_ids.map_or_else(|| vec![1; masked.len()], list);
    let mut weights = vec![0f64; masked.len()];
    for row in (0..masked.len()).step_by(seq_len) {
        let columns = row..(row + seq_len).min(masked.len());
        // Each direction carries the sum of its clean tokens, which fades by 1 - p a step.
        sweep(columns.clone(), &masked, &segments, p, &mut weights);
        sweep(columns.rev(), &masked, &segments, p, &mut weights);
    }
    let weights: Vec<f32> =
        weights.iter().zip(&masked).map(|(&w, &m)| if m == 0 { 0.0 } else { (0.5 * w) as f32 }).collect();
    Tensor::from_slice(&weights).view(size.as_slice()).to_device(is_masked.device())
}

fn sweep(order: impl Iterator<Item = usize>, masked: &[i64], segments: &[i64], p: f64, weights: &mut [f64]) {
    let (mut carried, mut segment) = (0.0, 0);
    for i in order {
        if segments[i] != segment {
            (carried, segment) = (0.0, segments[i]);
        }
        weights[i] += carried;
        carried *= 1.0 - p;
        if masked[i] == 0 && segment != 0 {
            carried += p;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
                for rule in [weight.into(), WeightRule::from(weight).capped(1.5).with_offset(0.1)] {
                    let (p_mask, slope) = (schedule.p_mask_of(&t), -schedule.alpha_slope_of(&t));
                    let found = rule.of(&schedule, &p_mask, &slope, || unreachable!("no CART here"));
                    for (found, t) in Vec::<f64>::try_from(found).unwrap().into_iter().zip([0.1, 0.5, 1.0]) {
                        assert!((found - rule.at(&schedule, t)).abs() < 1e-12, "{rule:?} {t}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_cap_bounds_the_weight_and_an_offset_lowers_it() {
        let rule = WeightRule::from(LossWeight::InverseP);
        assert_eq!(rule.capped(5.0).at(&LINEAR, 0.0), 5.0);
        assert!((rule.with_offset(0.5).at(&LINEAR, 1.0) - 1.0 / 1.5).abs() < 1e-12);
        for wrong in [
            rule.capped(0.0),
            rule.capped(f64::NAN),
            rule.with_offset(-0.1),
            rule.with_cart_p(0.0),
            rule.with_cart_p(1.0),
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
        assert!(rule.capped(2.0).validate().is_ok());
    }

    #[test]
    fn weights_are_named_as_in_settings() {
        let name = |weight: LossWeight| serde_json::to_value(weight).unwrap();
        assert_eq!(name(LossWeight::Auto), "auto");
        assert_eq!(name(LossWeight::InverseP), "inverse_p");
        assert_eq!(name(LossWeight::Cart), "cart");
    }

    proptest! {
        #[test]
        fn cart_weights_are_the_sum_over_clean_tokens_of_the_same_document(
            row in proptest::collection::vec((any::<bool>(), 0i64..3), 1..20), p in 0.05f64..0.95,
        ) {
            // Runs of one id are documents.
            let masked: Vec<bool> = row.iter().map(|token| token.0).collect();
            let segments: Vec<i64> = row.iter().map(|token| token.1).collect();
            let of = |values: &[bool]| Tensor::from_slice(values).unsqueeze(0);
            let found = cart_weights(&of(&masked), Some(&Tensor::from_slice(&segments).unsqueeze(0)), p);
            let same = |i: usize, j: usize| (i.min(j)..=i.max(j)).all(|k| segments[k] == segments[i]);
            for i in 0..row.len() {
                let of_pair = |j: usize| {
                    let counts = !masked[j] && segments[j] != 0 && same(i, j);
                    if counts { 0.5 * p * (1.0 - p).powi(i.abs_diff(j) as i32 - 1) } else { 0.0 }
                };
                let expected = if masked[i] { (0..row.len()).map(of_pair).sum::<f64>() } else { 0.0 };
                prop_assert!((found.double_value(&[0, i as i64]) - expected).abs() < 1e-6);
            }
        }
    }
}
