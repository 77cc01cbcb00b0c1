//! `p(t) = 1 - (1 - eps) cos(pi t / 2)`.
//!
//! Written as `eps + 2 (1 - eps) sin^2(pi t / 4)`, which is the same without subtracting two numbers near 1 where `p` is small.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};
use tch::Tensor;

pub(super) fn p_mask(t: f64, eps: f64) -> f64 {
    eps + 2.0 * (1.0 - eps) * (FRAC_PI_4 * t).sin().powi(2)
}

pub(super) fn p_slope(t: f64, eps: f64) -> f64 {
    (1.0 - eps) * FRAC_PI_2 * (FRAC_PI_2 * t).sin()
}

pub(super) fn t_at(p_mask: f64, eps: f64) -> f64 {
    if eps == 1.0 {
        return 0.0;
    }
    let sine_squared = ((p_mask - eps) / (2.0 * (1.0 - eps))).clamp(0.0, 0.5);
    (sine_squared.sqrt().asin() / FRAC_PI_4).min(1.0)
}

pub(super) fn p_mask_of(t: &Tensor, eps: f64) -> Tensor {
    let sine = (t * FRAC_PI_4).sin();
    (sine.square() * (2.0 * (1.0 - eps)) + eps).clamp_max(1.0)
}

pub(super) fn p_slope_of(t: &Tensor, eps: f64) -> Tensor {
    (t * FRAC_PI_2).sin() * ((1.0 - eps) * FRAC_PI_2)
}
