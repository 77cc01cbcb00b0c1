//! Rotary positions: queries and keys turned by an angle that grows with the position.

use tch::{Device, Kind, Tensor};

/// How positions become angles (RoPE, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RotaryConfig {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// How a checkpoint stretched them for longer texts.
    pub scaling: RotaryScaling,
    /// Whether queries and keys are turned in float32, whatever the kind of the model.
    pub full_precision: bool,
}

/// How wavelengths are stretched, `rope_type`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// Not at all.
    Default,
    /// All alike.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Llama 3's: long ones by the factor, short ones not, those between in part.
    Llama3 {
        /// By how much the long ones.
        factor: f64,
        /// Wavelengths above `original_len / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_len / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions that the model was first trained with, `original_max_position_embeddings`.
        original_len: i64,
    },
}

/// The frequencies of a model's heads.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// Radians per position, `[head_dim / 2]` of `Float`.
    frequencies: Tensor,
    full_precision: bool,
}

impl Rotary {
    pub(crate) fn new(config: &RotaryConfig, head_dim: i64, device: Device) -> Self {
        Self { frequencies: frequencies(config, head_dim).to_device(device), full_precision: config.full_precision }
    }

    /// Radians per position, `[head_dim / 2]` of `Float`.
    pub(crate) fn into_frequencies(self) -> Tensor {
        self.frequencies
    }

    /// The rotation of every token of a forward pass.
    ///
    /// `position_ids`: `[batch or 1, seq_len]` of `Int64`.
    pub(crate) fn rotation(&self, position_ids: &Tensor, kind: Kind) -> Rotation {
        let angles = position_ids.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies; // [batch, seq_len, head_dim / 2]
        let angles = angles.unsqueeze(2); // [batch, seq_len, 1, head_dim / 2]
        let kind = if self.full_precision { Kind::Float } else { kind };
        Rotation { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }
}

/// Cosines and sines of every token, shared by all blocks of a forward pass.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Turns `x`, `[batch, seq_len, heads, head_dim]`: dimension `i` pairs with `i + head_dim / 2`.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let (a, b) = (&halves[0], &halves[1]); // [batch, seq_len, heads, head_dim / 2]
        // Cosines in float32 make the products float32.
        Tensor::cat(&[a * &self.cos - b * &self.sin, b * &self.cos + a * &self.sin], -1).to_kind(x.kind())
    }
}

/// Radians per position, in float32 like the reference whose rounding the weights were trained with.
fn frequencies(config: &RotaryConfig, head_dim: i64) -> Tensor {
    let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
    let plain = Tensor::pow_scalar(config.theta, &exponents).reciprocal(); // [head_dim / 2]
    match config.scaling {
        RotaryScaling::Default => plain,
        RotaryScaling::Linear { factor } => plain / factor,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
            let original_len = original_len as f64;
            let wavelengths = plain.reciprocal() * std::f64::consts::TAU;
            // 1 where wavelengths are short, 0 where they are long.
            let share =
                (wavelengths.reciprocal() * original_len - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let share = share.clamp(0.0, 1.0);
            &share * &plain + (1.0 - &share) * &plain / factor
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(config: &RotaryConfig, head_dim: i64) -> Vec<f32> {
        Vec::try_from(frequencies(config, head_dim)).unwrap()
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected, "{found} is not {expected}");
        }
    }

    #[test]
    fn frequencies_fall_by_powers_of_theta() {
        let plain = RotaryConfig { theta: 10_000.0, scaling: RotaryScaling::Default, full_precision: false };
        close(&numbers(&plain, 4), &[1.0, 0.01]);
        let linear = RotaryConfig { scaling: RotaryScaling::Linear { factor: 4.0 }, ..plain };
        close(&numbers(&linear, 4), &[0.25, 0.0025]);
    }

    #[test]
    fn llama3_stretches_long_wavelengths_by_the_factor_and_short_ones_not_at_all() {
        let scaling =
            RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 1000 };
        // Wavelengths 2 pi (short: below 250), 200 pi (between: 1000 / (200 pi) = 1.5915), 20000 pi (long: above 1000).
        let config = RotaryConfig { theta: 1e6, scaling, full_precision: false };
        let share = (1000.0 / (200.0 * std::f64::consts::PI) - 1.0) / 3.0;
        close(&numbers(&config, 6), &[1.0, 0.01 * (share + (1.0 - share) / 8.0), 1e-4 / 8.0]);
    }

    #[test]
    fn turned_queries_and_keys_know_only_their_distance() {
        let rotary = Rotary::new(
            &RotaryConfig { theta: 100.0, scaling: RotaryScaling::Default, full_precision: false },
            8,
            Device::Cpu,
        );
        let x = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 1, 2, 8]) / 16.0;
        let at =
            |position: i64| rotary.rotation(&Tensor::full([1, 1], position, (Kind::Int64, Device::Cpu)), Kind::Float);
        let product = |q: i64, k: i64| {
            (at(q).apply(&x.narrow(2, 0, 1)) * at(k).apply(&x.narrow(2, 1, 1))).sum(Kind::Float).double_value(&[])
        };
        assert!((product(3, 1) - product(12, 10)).abs() < 1e-5);
        assert!((product(3, 1) - product(3, 2)).abs() > 1e-2);
    }
}
