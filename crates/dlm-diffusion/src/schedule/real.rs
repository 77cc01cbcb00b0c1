//! One formula for numbers and for tensors: the few operations that noise schedules are made of.

use tch::Tensor;

/// A number, or a tensor of them.
pub(super) trait Real: Sized {
    fn times(&self, factor: f64) -> Self;
    fn plus(&self, term: f64) -> Self;
    fn power(&self, exponent: f64) -> Self;
    fn sin(&self) -> Self;
    fn cos(&self) -> Self;
    fn exp(&self) -> Self;
    fn exp_m1(&self) -> Self;
    fn ln_1p(&self) -> Self;
    fn at_least(&self, bound: f64) -> Self;
    fn at_most(&self, bound: f64) -> Self;
    fn multiply(&self, other: &Self) -> Self;
    fn divide(&self, other: &Self) -> Self;
    /// `function` of every number, for what has no formula.
    fn map(&self, function: &dyn Fn(f64) -> f64) -> Self;

    fn constant(&self, value: f64) -> Self {
        self.times(0.0).plus(value)
    }

    fn square(&self) -> Self {
        self.multiply(self)
    }
}

impl Real for f64 {
    fn times(&self, factor: f64) -> Self {
        self * factor
    }

    fn plus(&self, term: f64) -> Self {
        self + term
    }

    fn power(&self, exponent: f64) -> Self {
        self.powf(exponent)
    }

    fn sin(&self) -> Self {
        f64::sin(*self)
    }

    fn cos(&self) -> Self {
        f64::cos(*self)
    }

    fn exp(&self) -> Self {
        f64::exp(*self)
    }

    fn exp_m1(&self) -> Self {
        f64::exp_m1(*self)
    }

    fn ln_1p(&self) -> Self {
        f64::ln_1p(*self)
    }

    fn at_least(&self, bound: f64) -> Self {
        self.max(bound)
    }

    fn at_most(&self, bound: f64) -> Self {
        self.min(bound)
    }

    fn multiply(&self, other: &Self) -> Self {
        self * other
    }

    fn divide(&self, other: &Self) -> Self {
        self / other
    }

    fn map(&self, function: &dyn Fn(f64) -> f64) -> Self {
        function(*self)
    }
}

impl Real for Tensor {
    fn times(&self, factor: f64) -> Self {
        self * factor
    }

    fn plus(&self, term: f64) -> Self {
        self + term
    }

    fn power(&self, exponent: f64) -> Self {
        self.pow_tensor_scalar(exponent)
    }

    fn sin(&self) -> Self {
        Tensor::sin(self)
    }

    fn cos(&self) -> Self {
        Tensor::cos(self)
    }

    fn exp(&self) -> Self {
        Tensor::exp(self)
    }

    fn exp_m1(&self) -> Self {
        self.expm1()
    }

    fn ln_1p(&self) -> Self {
        self.log1p()
    }

    fn at_least(&self, bound: f64) -> Self {
        self.clamp_min(bound)
    }

    fn at_most(&self, bound: f64) -> Self {
        self.clamp_max(bound)
    }

    fn multiply(&self, other: &Self) -> Self {
        self * other
    }

    fn divide(&self, other: &Self) -> Self {
        self / other
    }

    fn map(&self, function: &dyn Fn(f64) -> f64) -> Self {
        let on_cpu = self.detach().to_device(tch::Device::Cpu).to_kind(tch::Kind::Double).flatten(0, -1).contiguous();
        let mut values = vec![0f64; on_cpu.numel()];
        on_cpu.copy_data(&mut values, on_cpu.numel());
        values.iter_mut().for_each(|value| *value = function(*value));
        Tensor::from_slice(&values).to_kind(self.kind()).view_as(self).to_device(self.device())
    }
}
