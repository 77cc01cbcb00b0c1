//! `p(t) = (1 - eps) t + eps`.

use tch::Tensor;

pub(super) fn p_mask(t: f64, eps: f64) -> f64 {
    (1.0 - eps) * t + eps
}

pub(super) fn p_slope(eps: f64) -> f64 {
    1.0 - eps
}

pub(super) fn t_at(p_mask: f64, eps: f64) -> f64 {
    if eps == 1.0 { 0.0 } else { ((p_mask - eps) / (1.0 - eps)).clamp(0.0, 1.0) }
}

pub(super) fn p_mask_of(t: &Tensor, eps: f64) -> Tensor {
    t * (1.0 - eps) + eps
}

pub(super) fn p_slope_of(t: &Tensor, eps: f64) -> Tensor {
    t.full_like(1.0 - eps)
}
