//! A schedule of the user's own: any function that rises from text to masks.

use crate::error::{DiffusionError, Result};
use std::{fmt, sync::Arc};

/// A noise schedule given as a function; made by [`NoiseSchedule::custom`](super::NoiseSchedule::custom).
#[derive(Clone)]
pub struct CustomSchedule {
    name: String,
    curve: Arc<dyn Fn(f64) -> f64 + Send + Sync>,
}

/// Where a curve is looked at before it is believed.
const CHECKS: u32 = 4096;

impl CustomSchedule {
    pub(super) fn new(name: &str, curve: Arc<dyn Fn(f64) -> f64 + Send + Sync>) -> Result<Self> {
        let mut before = 0.0;
        for step in 0..=CHECKS {
            let t = f64::from(step) / f64::from(CHECKS);
            let p = curve(t);
            if !(0.0..=1.0).contains(&p) {
                let expected = "a probability at every t between 0 and 1";
                return Err(DiffusionError::OutOfRange { name: "noise_schedule", value: p, expected });
            }
            if p < before {
                return Err(DiffusionError::NotMonotone { name: name.to_owned(), t, p_mask: p, before });
            }
            before = p;
        }
        Ok(Self { name: name.to_owned(), curve })
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn p_mask(&self, t: f64) -> f64 {
        (self.curve)(t)
    }

    /// By differences of fourth order, one-sided at the ends.
    pub(super) fn p_slope(&self, t: f64) -> f64 {
        const H: f64 = 1e-4;
        let centre = t.clamp(2.0 * H, 1.0 - 2.0 * H);
        let p = |steps: f64| self.p_mask(centre + steps * H);
        let slope = (8.0 * (p(1.0) - p(-1.0)) - (p(2.0) - p(-2.0))) / (12.0 * H);
        // Off the centre, by the second derivative there.
        let curvature = (p(1.0) - 2.0 * p(0.0) + p(-1.0)) / (H * H);
        (slope + curvature * (t - centre)).max(0.0)
    }

    /// By bisection.
    pub(super) fn t_at(&self, p: f64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        if p <= self.p_mask(low) {
            return low;
        }
        if p >= self.p_mask(high) {
            return high;
        }
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            *(if self.p_mask(middle) < p { &mut low } else { &mut high }) = middle;
        }
        0.5 * (low + high)
    }
}

/// Two are equal when they share the name and the very same function.
impl PartialEq for CustomSchedule {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.curve, &other.curve)
    }
}

impl fmt::Debug for CustomSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomSchedule").field("name", &self.name).finish_non_exhaustive()
    }
}
