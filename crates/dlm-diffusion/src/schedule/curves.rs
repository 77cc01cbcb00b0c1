//! The formulas: `p(t)`, its derivative and its inverse, a line for each schedule.
//!
//! `1 - cos x` is written as `2 sin^2(x / 2)`, which is the same without subtracting two numbers near 1 where `p` is small.

use super::{NoiseSchedule, real::Real};
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, PI};

pub(super) fn p_mask<R: Real>(schedule: &NoiseSchedule, t: &R) -> R {
    let one_minus_cos = |scale: f64| t.times(FRAC_PI_4).sin().square().times(2.0 * scale);
    match schedule {
        NoiseSchedule::Linear { eps } => t.times(1.0 - eps).plus(*eps),
        NoiseSchedule::LogLinear { eps } => t.times(1.0 - eps),
        NoiseSchedule::LinearSigma { sigma_min, sigma_max } => {
            p_of_sigma(&t.times(sigma_max - sigma_min).plus(*sigma_min))
        }
        NoiseSchedule::Geometric { sigma_min, sigma_max } => p_of_sigma(&geometric_sigma(t, *sigma_min, *sigma_max)),
        NoiseSchedule::Cosine { eps } => one_minus_cos(1.0 - eps).plus(*eps).at_most(1.0),
        NoiseSchedule::MdlmCosine { eps } => one_minus_cos(1.0 - eps).at_most(1.0),
        NoiseSchedule::CosineSquared { eps } => t.times(FRAC_PI_2).sin().square().times(1.0 - eps),
        NoiseSchedule::Sine { eps } => t.times(FRAC_PI_2).sin().times(1.0 - eps).plus(*eps).at_most(1.0),
        NoiseSchedule::Exponential { p_min, p_max } => {
            t.times((p_max / p_min).ln()).exp().times(*p_min).at_least(*p_min).at_most(*p_max)
        }
        NoiseSchedule::Polynomial { eps, power } => t.power(*power).times(1.0 - eps).plus(*eps).at_most(1.0),
        NoiseSchedule::Square { eps } => t.square().at_least(*eps),
        NoiseSchedule::SquareRoot { eps } => t.power(0.5).at_least(*eps),
        NoiseSchedule::Logarithmic { eps } => t.ln_1p().times((1.0 - eps) / LN_2).plus(*eps).at_most(1.0),
        NoiseSchedule::Custom(curve) => t.map(&|t| curve.p_mask(t)),
    }
}

pub(super) fn p_slope<R: Real>(schedule: &NoiseSchedule, t: &R) -> R {
    match schedule {
        NoiseSchedule::Linear { eps } | NoiseSchedule::LogLinear { eps } => t.constant(1.0 - eps),
        NoiseSchedule::LinearSigma { sigma_min, sigma_max } => {
            let rate = sigma_max - sigma_min;
            t.times(-rate).plus(-sigma_min).exp().times(rate)
        }
        NoiseSchedule::Geometric { sigma_min, sigma_max } => {
            let sigma = geometric_sigma(t, *sigma_min, *sigma_max);
            sigma.times(-1.0).exp().multiply(&sigma).times((sigma_max / sigma_min).ln())
        }
        NoiseSchedule::Cosine { eps } | NoiseSchedule::MdlmCosine { eps } => {
            t.times(FRAC_PI_2).sin().times((1.0 - eps) * FRAC_PI_2)
        }
        NoiseSchedule::CosineSquared { eps } => t.times(PI).sin().times((1.0 - eps) * FRAC_PI_2).at_least(0.0),
        NoiseSchedule::Sine { eps } => t.times(FRAC_PI_2).cos().times((1.0 - eps) * FRAC_PI_2).at_least(0.0),
        NoiseSchedule::Exponential { p_min, p_max } => p_mask(schedule, t).times((p_max / p_min).ln()),
        NoiseSchedule::Polynomial { eps, power } => t.power(power - 1.0).times((1.0 - eps) * power),
        NoiseSchedule::Square { .. } => t.times(2.0),
        NoiseSchedule::SquareRoot { .. } => t.power(-0.5).times(0.5),
        NoiseSchedule::Logarithmic { eps } => t.constant((1.0 - eps) / LN_2).divide(&t.plus(1.0)),
        NoiseSchedule::Custom(curve) => t.map(&|t| curve.p_slope(t)),
    }
}

/// The inverse of `p_mask`; what is below or above the curve is reached at its ends.
pub(super) fn t_at(schedule: &NoiseSchedule, p: f64) -> f64 {
    // The share of the way from `eps` to 1; a curve that is flat is at its start everywhere.
    let lifted = |eps: f64| if eps >= 1.0 { 0.0 } else { ((p - eps) / (1.0 - eps)).clamp(0.0, 1.0) };
    let scaled = |eps: f64| if eps >= 1.0 { 0.0 } else { (p / (1.0 - eps)).clamp(0.0, 1.0) };
    let cosine = |share: f64| (share / 2.0).sqrt().asin() / FRAC_PI_4;
    let t = match schedule {
        NoiseSchedule::Linear { eps } => lifted(*eps),
        NoiseSchedule::LogLinear { eps } => scaled(*eps),
        NoiseSchedule::LinearSigma { sigma_min, sigma_max } => (sigma_of_p(p) - sigma_min) / (sigma_max - sigma_min),
        NoiseSchedule::Geometric { sigma_min, sigma_max } => {
            (sigma_of_p(p) / sigma_min).ln() / (sigma_max / sigma_min).ln()
        }
        NoiseSchedule::Cosine { eps } => cosine(lifted(*eps)),
        NoiseSchedule::MdlmCosine { eps } => cosine(scaled(*eps)),
        NoiseSchedule::CosineSquared { eps } => scaled(*eps).sqrt().asin() / FRAC_PI_2,
        NoiseSchedule::Sine { eps } => lifted(*eps).asin() / FRAC_PI_2,
        NoiseSchedule::Exponential { p_min, p_max } => (p / p_min).ln() / (p_max / p_min).ln(),
        NoiseSchedule::Polynomial { eps, power } => lifted(*eps).powf(power.recip()),
        NoiseSchedule::Square { eps } => {
            if p <= *eps {
                0.0
            } else {
                p.sqrt()
            }
        }
        NoiseSchedule::SquareRoot { eps } => {
            if p <= *eps {
                0.0
            } else {
                p.powi(2)
            }
        }
        NoiseSchedule::Logarithmic { eps } => lifted(*eps).exp2() - 1.0,
        NoiseSchedule::Custom(curve) => curve.t_at(p),
    };
    t.clamp(0.0, 1.0)
}

fn geometric_sigma<R: Real>(t: &R, sigma_min: f64, sigma_max: f64) -> R {
    t.times((sigma_max / sigma_min).ln()).exp().times(sigma_min)
}

/// `1 - exp(-sigma)`: sigma is minus the logarithm of the probability to stay clean.
fn p_of_sigma<R: Real>(sigma: &R) -> R {
    sigma.times(-1.0).exp_m1().times(-1.0)
}

fn sigma_of_p(p: f64) -> f64 {
    -(-p.clamp(0.0, 1.0)).ln_1p()
}
