//! Masking an exact number of tokens of each document, in place of each token by itself.

use crate::{range::MaskRange, schedule::NoiseSchedule};
use serde::{Deserialize, Serialize};

/// How many tokens a mask probability masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Masking {
    /// Each token by itself, so their number varies around `p_mask` times the tokens: the forward process of every paper.
    #[default]
    Bernoulli,
    /// Exactly `k` of the `n` tokens of a document or block, those with the smallest draws, `k` being `p_mask * n` rounded up.
    ///
    /// The bound is the same sum over `k` of `1/k` times the loss of `k` masks, so with the weight of `k` the estimate is still
    /// unbiased, without `eps`, and varies less: the number of masks no longer adds its own noise, and none of a pass is wasted on
    /// masking nothing (LLaDA's likelihood, [arXiv:2502.09992](https://arxiv.org/abs/2502.09992), eq. 6).
    ExactCount,
}

/// How many of `n` tokens to mask, and the mask probability and its slope that give the count its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Count {
    pub(crate) masked: usize,
    /// `k / n`.
    pub(crate) p_mask: f64,
    /// `1 / (n P(k))` with `P(k)` the share of timesteps that give `k`: over `p_mask`, the weight `1 / (k P(k))` of the bound.
    pub(crate) slope: f64,
}

impl Count {
    /// The count at timestep `t` for `n` tokens, at least 1 of them.
    ///
    /// Of a `pair` both views count, so that 0 of `n` is one of the counts: `k` is then `p_mask (n + 1)` rounded down.
    pub(crate) fn new(schedule: &NoiseSchedule, range: &MaskRange, t: f64, n: usize, pair: bool) -> Self {
        let p = schedule.p_mask(t);
        let (masked, parts) = if pair {
            (((p * (n + 1) as f64) as usize).min(n), n + 1)
        } else {
            (((p * n as f64).ceil() as usize).clamp(1, n), n)
        };
        let bin = if pair { masked } else { masked - 1 };
        let begin = if bin == 0 { 0.0 } else { schedule.t_at(bin as f64 / parts as f64) };
        let end = if bin + 1 == parts { 1.0 } else { schedule.t_at((bin + 1) as f64 / parts as f64) };
        let share = end.min(range.t_max) - begin.max(range.t_min);
        // Rounding can put a timestep just outside its own bin.
        let slope = if share > 0.0 { 1.0 / (n as f64 * share) } else { -schedule.alpha_slope(t) };
        Self { masked, p_mask: masked as f64 / n as f64, slope }
    }
}

/// Where the `count` smallest of the draws of maskable tokens lie; of equal ones the first.
pub(crate) fn smallest(candidates: &[usize], draws: &[f32], count: usize) -> Vec<usize> {
    let mut order = candidates.to_vec();
    order.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleName;
    use proptest::prelude::*;

    proptest! {
        /// Averaged over `t`, a count is as likely as its weight says: every `k` weighs `1 / k` in the bound.
        #[test]
        fn the_weight_of_a_count_times_its_share_of_timesteps_is_one_over_the_count(
            n in 1usize..12, pair: bool, name in proptest::sample::select(&ScheduleName::ALL[..]),
        ) {
            const STEPS: usize = 20_000;
            let schedule = NoiseSchedule::new(name, 1e-4).unwrap();
            let mut weighed = vec![0.0; n + 1];
            for step in 0..STEPS {
                let t = (step as f64 + 0.5) / STEPS as f64;
                let count = Count::new(&schedule, &MaskRange::default(), t, n, pair);
                prop_assert!(count.masked >= usize::from(!pair) && count.masked <= n);
                weighed[count.masked] += count.slope / count.p_mask / STEPS as f64;
            }
            for (k, &weighed) in weighed.iter().enumerate().skip(1) {
                // Counts that no timestep gives, and those with few of them, are left out.
                let first = schedule.t_at((k - 1) as f64 / n as f64);
                let width = schedule.t_at(k as f64 / n as f64) - first;
                if width > 0.02 && weighed > 0.0 && !(pair && width < 0.05) {
                    prop_assert!((weighed * k as f64 - 1.0).abs() < 0.02, "{k} of {n}: {}", weighed * k as f64);
                }
            }
        }
    }

    #[test]
    fn on_the_linear_schedule_a_count_weighs_n_over_k() {
        let schedule = NoiseSchedule::Linear { eps: 0.0 };
        let count = Count::new(&schedule, &MaskRange::default(), 0.3, 10, false);
        assert_eq!(count.masked, 3);
        assert!((count.slope / count.p_mask - 10.0 / 3.0).abs() < 1e-9);
        assert_eq!(Count::new(&schedule, &MaskRange::default(), 0.0, 10, false).masked, 1);
        assert_eq!(Count::new(&schedule, &MaskRange::default(), 1.0, 10, false).masked, 10);
        assert_eq!(Count::new(&schedule, &MaskRange::default(), 0.0, 10, true).masked, 0);
        assert_eq!(Count::new(&schedule, &MaskRange::default(), 1.0, 10, true).masked, 10);
    }

    #[test]
    fn the_smallest_draws_are_masked() {
        assert_eq!(smallest(&[0, 2, 3, 5], &[0.5, 0.0, 0.1, 0.5, 0.0, 0.9], 3), [2, 0, 3]);
    }
}
