//! Which timesteps are trained: a whole schedule, or the part of it whose mask probability lies between two bounds.

use crate::{
    check::expect_within,
    error::{DiffusionError, Result},
    schedule::NoiseSchedule,
    weight::WeightRule,
};
use std::fmt;

/// The interval of timesteps that training draws from.
///
/// Restricted to `p_mask` between `min_mask_ratio` and `max_mask_ratio`, what is trained is no likelihood bound any more, and
/// below a ratio of 1 the model never sees the all-masks start of a generation.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MaskRange {
    /// Earliest timestep.
    pub t_min: f64,
    /// Latest timestep.
    pub t_max: f64,
}

impl Default for MaskRange {
    fn default() -> Self {
        Self { t_min: 0.0, t_max: 1.0 }
    }
}

impl MaskRange {
    /// The timesteps whose `p_mask` lies between the ratios; one that is not given does not restrict.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] for a ratio outside `[0, 1]` or a largest one that the schedule starts above,
    /// [`DiffusionError::EmptyMaskRange`] for a smallest ratio above the largest.
    pub fn new(schedule: &NoiseSchedule, min_mask_ratio: Option<f64>, max_mask_ratio: Option<f64>) -> Result<Self> {
        let (min, max) = (min_mask_ratio.unwrap_or(0.0), max_mask_ratio.unwrap_or(1.0));
        expect_within("min_mask_ratio", min, 0.0..=1.0, "between 0 and 1")?;
        expect_within("max_mask_ratio", max, 0.0..=1.0, "between 0 and 1")?;
        if min > max {
            return Err(DiffusionError::EmptyMaskRange { min, max });
        }
        expect_within(
            "max_mask_ratio",
            max,
            schedule.p_mask(0.0)..=1.0,
            "at least `eps`, the smallest mask probability",
        )?;
        // The ends are set, not reckoned, so that bounds which do not bind give exactly the whole range.
        let t_min = if min <= schedule.p_mask(0.0) { 0.0 } else { schedule.t_at(min) };
        let t_max = if max >= schedule.p_mask(1.0) { 1.0 } else { schedule.t_at(max) };
        Ok(Self { t_min, t_max })
    }

    /// The timesteps between two of them: MDLM and dllm leave out what lies below 0.001, BD3-LM clips either end.
    ///
    /// # Errors
    /// [`DiffusionError::OutOfRange`] unless `0 <= t_min <= t_max <= 1`.
    pub fn between(t_min: f64, t_max: f64) -> Result<Self> {
        expect_within("t_max", t_max, 0.0..=1.0, "between 0 and 1")?;
        expect_within("t_min", t_min, 0.0..=t_max, "between 0 and `t_max`")?;
        Ok(Self { t_min, t_max })
    }

    /// Of several intervals the one on which a loss varies least, as BD3-LM chooses what to train on
    /// ([arXiv:2503.09573](https://arxiv.org/abs/2503.09573), section 5): `losses` gives the losses of many rows for an interval.
    ///
    /// `None` without candidates, or when none of them has two finite losses.
    pub fn least_variance(
        candidates: &[Self],
        mut losses: impl FnMut(&Self) -> Result<Vec<f64>>,
    ) -> Result<Option<(Self, f64)>> {
        let mut best: Option<(Self, f64)> = None;
        for candidate in candidates {
            let losses = losses(candidate)?;
            let n = losses.len() as f64;
            let mean = losses.iter().sum::<f64>() / n;
            let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0);
            if variance.is_finite() && best.is_none_or(|(_, least)| variance < least) {
                best = Some((*candidate, variance));
            }
        }
        Ok(best)
    }

    /// BD3-LM's candidates: intervals whose widths and ends are multiples of `step`, at least `min_width` wide.
    #[must_use]
    pub fn grid(min_width: f64, step: f64) -> Vec<Self> {
        let steps = (1.0 / step).round().max(1.0) as u32;
        let at = |i: u32| f64::from(i) / f64::from(steps);
        let pairs = (0..steps).flat_map(|low| (low + 1..=steps).map(move |high| (low, high)));
        pairs
            .map(|(low, high)| Self { t_min: at(low), t_max: at(high) })
            .filter(|range| range.t_max - range.t_min >= min_width - 1e-9)
            .collect()
    }

    /// The timestep of a draw in `[0, 1)`.
    #[must_use]
    pub fn t_of(&self, draw: f32) -> f32 {
        (self.t_min + f64::from(draw) * (self.t_max - self.t_min)) as f32
    }

    /// Whether every timestep is drawn; only then is the expected ELBO-weighted loss a bound.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the expected ELBO-weighted loss is a bound but for mask probabilities below a thousandth, which MDLM, BD3-LM and dllm
    /// leave out as well.
    #[must_use]
    pub fn is_bound(&self, schedule: &NoiseSchedule) -> bool {
        self.is_whole() || (self.reaches_all_masks() && schedule.p_mask(self.t_min) <= 1e-3 + 1e-9)
    }

    /// Whether the model is trained on starts from all masks, as every generation begins.
    #[must_use]
    pub fn reaches_all_masks(&self) -> bool {
        self.t_max >= 1.0
    }

    /// What training really draws, for a line at the start of a run.
    #[must_use]
    pub fn effective(&self, schedule: &NoiseSchedule, weight: impl Into<WeightRule>) -> EffectiveRange {
        let weight = weight.into();
        const STEPS: u32 = 4096;
        let at = |step| self.t_min + (self.t_max - self.t_min) * f64::from(step) / f64::from(STEPS);
        let weights = (0..=STEPS).map(|step| weight.at(schedule, at(step)));
        let weight = weights.fold((f64::INFINITY, 0.0f64), |(min, max), w| (min.min(w), max.max(w)));
        EffectiveRange { p_mask: (schedule.p_mask(self.t_min), schedule.p_mask(self.t_max)), weight }
    }
}

/// The mask probabilities and loss weights that a run trains with: smallest and largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EffectiveRange {
    /// Of the probability that a token is masked.
    pub p_mask: (f64, f64),
    /// Of the weight of a masked token, found on a grid of 4097 timesteps.
    pub weight: (f64, f64),
}

impl fmt::Display for EffectiveRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((p_min, p_max), (w_min, w_max)) = (self.p_mask, self.weight);
        write!(f, "p_mask from {p_min:.4} to {p_max:.4}, loss weight from {w_min:.4} to {w_max:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{schedule::ScheduleName, weight::LossWeight};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn timesteps_of_a_range_have_mask_probabilities_between_its_ratios(
            name in proptest::sample::select(&ScheduleName::ALL[..]), eps in 0.0f64..0.1, a in 0.1f64..=1.0, b in 0.1f64..=1.0, draw in 0.0f32..1.0,
        ) {
            let schedule = NoiseSchedule::new(name, eps).unwrap();
            let schedule_ends = (schedule.p_mask(0.0), schedule.p_mask(1.0));
            let (min, max) = (a.min(b).min(schedule_ends.1), a.max(b).max(schedule_ends.0));
            let range = MaskRange::new(&schedule, Some(min), Some(max)).unwrap();
            let p_mask = schedule.p_mask(f64::from(range.t_of(draw)));
            prop_assert!(min - 1e-6 <= p_mask && p_mask <= max + 1e-6, "{p_mask} not in {min}..{max}");
        }
    }

    const LINEAR: NoiseSchedule = NoiseSchedule::Linear { eps: 0.001 };
    const COSINE: NoiseSchedule = NoiseSchedule::Cosine { eps: 0.001 };

    #[test]
    fn ratios_that_are_not_given_or_do_not_bind_leave_the_whole_range() {
        for (min, max) in [(None, None), (Some(0.0), Some(1.0)), (Some(0.001), None)] {
            assert!(MaskRange::new(&LINEAR, min, max).unwrap().is_whole(), "{min:?} {max:?}");
        }
        assert_eq!(MaskRange::default().t_of(0.123), 0.123);
    }

    #[test]
    fn the_interval_whose_losses_vary_least_is_found() {
        let grid = MaskRange::grid(0.25, 0.25);
        assert_eq!(grid.len(), 10);
        let wanted = MaskRange::between(0.25, 0.5).unwrap();
        let losses = |range: &MaskRange| {
            Ok(if *range == wanted { vec![1.0, 1.1] } else { vec![0.0, 2.0, f64::from(range.t_max < 0.5)] })
        };
        let (found, variance) = MaskRange::least_variance(&grid, losses).unwrap().unwrap();
        assert_eq!(found, wanted);
        assert!((variance - 0.005).abs() < 1e-12);
        assert!(MaskRange::least_variance(&[], |_| Ok(Vec::new())).unwrap().is_none());
        assert!(MaskRange::least_variance(&grid, |_| Ok(vec![1.0])).unwrap().is_none(), "one loss has no variance");
    }

    #[test]
    fn a_range_of_timesteps_is_a_bound_when_it_leaves_out_no_more_than_a_thousandth() {
        let schedule = NoiseSchedule::Linear { eps: 0.0 };
        let is_bound = |t_min, t_max| MaskRange::between(t_min, t_max).unwrap().is_bound(&schedule);
        assert!(is_bound(0.0, 1.0) && is_bound(1e-3, 1.0));
        assert!(!is_bound(0.01, 1.0) && !is_bound(0.0, 0.9));
        assert!(
            MaskRange::between(0.5, 0.4).is_err()
                && MaskRange::between(-0.1, 1.0).is_err()
                && MaskRange::between(0.0, f64::NAN).is_err()
        );
    }

    #[test]
    fn equal_ratios_give_one_timestep() {
        let range = MaskRange::new(&LINEAR, Some(0.5), Some(0.5)).unwrap();
        assert_eq!(range.t_of(0.0), range.t_of(0.9));
        assert!(!range.is_whole() && !range.reaches_all_masks());
    }

    #[test]
    fn ratios_in_the_wrong_order_out_of_range_or_out_of_reach_are_refused() {
        let of = |min, max| MaskRange::new(&LINEAR, min, max).map_err(|error| error.to_string());
        assert_eq!(of(Some(0.9), Some(0.1)).unwrap_err(), "`min_mask_ratio` 0.9 is larger than `max_mask_ratio` 0.1");
        assert!(of(Some(-0.1), None).unwrap_err().contains("`min_mask_ratio` is -0.1"));
        assert!(of(None, Some(f64::NAN)).unwrap_err().contains("`max_mask_ratio` is NaN"));
        assert!(of(None, Some(0.0001)).unwrap_err().contains("at least `eps`"));
    }

    #[test]
    fn the_effective_range_of_the_linear_schedule_is_known_in_closed_form() {
        let range = MaskRange::new(&LINEAR, Some(0.1), None).unwrap().effective(&LINEAR, LossWeight::Auto);
        assert_eq!(range.to_string(), "p_mask from 0.1000 to 1.0000, loss weight from 1.0000 to 10.0000");
    }

    #[test]
    fn the_largest_weight_of_the_cosine_schedule_lies_inside_and_is_known_in_closed_form() {
        let range = MaskRange::default().effective(&COSINE, LossWeight::Auto);
        let largest = std::f64::consts::FRAC_PI_2 * 0.999 / (1.0 - 0.999f64.powi(2)).sqrt();
        assert!((range.weight.1 / largest - 1.0).abs() < 1e-4, "{range}");
    }
}
