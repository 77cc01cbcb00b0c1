//! `RotaryScaling`: how wavelengths are stretched for texts longer than those a model was first trained with.

use tch::{Device, Kind, TchError, Tensor};

/// How wavelengths are stretched, `rope_type`.
///
/// The first lengths below are `original_max_position_embeddings`, or `max_position_embeddings` where config.json does not say.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RotaryScaling {
    /// Not at all.
    Default,
    /// All alike.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Longer documents by a larger base, as much larger as they are longer (NTK-aware scaling).
    ///
    /// A document's own length counts, so that it is the same beside any others; transformers takes the longest row of a batch.
    Dynamic {
        /// How many times `original_len` a document may be long.
        factor: f64,
        /// Documents up to this long are not stretched, `max_position_embeddings`.
        original_len: i64,
    },
    /// YaRN ([arXiv:2309.00071](https://arxiv.org/abs/2309.00071)): long ones by the factor, short ones not, those between in part;
    /// queries and keys are scaled as well.
    Yarn {
        /// By how much the long ones.
        factor: f64,
        /// Positions that the model was first trained with.
        original_len: i64,
        /// Wavelengths that fit this often into `original_len` are short.
        beta_fast: f64,
        /// Wavelengths that fit this often into `original_len` are long.
        beta_slow: f64,
        /// Whether the bounds between short and long are rounded to whole dimensions.
        truncate: bool,
        /// What queries and keys are multiplied by.
        attention_factor: f64,
    },
    /// LongRoPE ([arXiv:2402.13753](https://arxiv.org/abs/2402.13753)): each by a factor of its own, which depends on whether a
    /// document is longer than `original_len`; queries and keys are scaled as well.
    LongRope {
        /// Of documents up to `original_len`, one factor for each pair of dimensions.
        short_factor: Vec<f64>,
        /// Of longer ones.
        long_factor: Vec<f64>,
        /// Positions that the model was first trained with.
        original_len: i64,
        /// What queries and keys are multiplied by.
        attention_factor: f64,
    },
    /// Llama 3's: long ones by the factor, short ones not, those between in part.
    Llama3 {
        /// By how much the long ones.
        factor: f64,
        /// Wavelengths above `original_len / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_len / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions that the model was first trained with.
        original_len: i64,
    },
}

impl RotaryScaling {
    /// The longest document that a model with this scaling reads, given its `max_position_embeddings`.
    ///
    /// Dynamic scaling exists for documents beyond `max_position_embeddings`, and files with YaRN often leave that at the length
    /// before it.
    #[must_use]
    pub fn max_seq_len(&self, max_position_embeddings: i64) -> i64 {
        let stretched = |len: i64, factor: f64| (len as f64 * factor) as i64;
        match self {
            Self::Dynamic { factor, original_len } => stretched(*original_len, *factor).max(max_position_embeddings),
            Self::Yarn { factor, original_len, .. } => stretched(*original_len, *factor).max(max_position_embeddings),
            _ => max_position_embeddings,
        }
    }

    /// What queries and keys are multiplied by.
    pub(super) fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }

    /// Radians per position, `[head_dim / 2]`, of documents up to the first length; in float32 like the reference whose rounding
    /// the weights were trained with.
    pub(super) fn frequencies(&self, theta: f64, head_dim: i64) -> Tensor {
        let plain = || Tensor::pow_scalar(theta, &exponents(head_dim)).reciprocal(); // [head_dim / 2]
        match self {
            Self::Default | Self::Dynamic { .. } => plain(),
            Self::Linear { factor } => plain() / *factor,
            Self::Yarn { factor, original_len, beta_fast, beta_slow, truncate, .. } => {
                let bounds = Bounds { theta, head_dim, original_len: *original_len as f64, truncate: *truncate };
                let share = 1.0 - bounds.ramp(*beta_fast, *beta_slow);
                (1.0 - &share) * (plain() / *factor) + share * plain()
            }
            Self::LongRope { short_factor, .. } => divided(short_factor, theta, head_dim),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
                let plain = plain();
                let wavelengths = plain.reciprocal() * std::f64::consts::TAU;
                // 1 where wavelengths are short, 0 where they are long.
                let share = (wavelengths.reciprocal() * *original_len as f64 - *low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let share = share.clamp(0.0, 1.0);
                &share * &plain + (1.0 - &share) * &plain / *factor
            }
        }
    }

    /// How longer documents differ, and from which length on.
    pub(super) fn of_longer(&self, theta: f64, head_dim: i64) -> Option<(i64, Longer)> {
        match self {
            Self::Dynamic { factor, original_len } => {
                Some((*original_len, Longer::Dynamic { factor: *factor, theta, exponents: exponents(head_dim) }))
            }
            Self::LongRope { long_factor, original_len, .. } => {
                Some((*original_len, Longer::Fixed(divided(long_factor, theta, head_dim))))
            }
            _ => None,
        }
    }
}

/// The frequencies of documents beyond the first length.
#[derive(Debug)]
pub(super) enum Longer {
    /// The same for all, `[head_dim / 2]`.
    Fixed(Tensor),
    /// Lower the longer a document is.
    Dynamic { factor: f64, theta: f64, exponents: Tensor },
}

impl Longer {
    /// Radians per position of documents of these lengths, `[batch, seq_len, 1]`, where the first length is `from`.
    pub(super) fn frequencies(&self, lens: &Tensor, from: i64) -> Result<Tensor, TchError> {
        match self {
            Self::Fixed(frequencies) => Ok(frequencies.to_device(lens.device())),
            Self::Dynamic { factor, theta, exponents } => {
                let n = exponents.size()[0];
                let power = 2.0 * n as f64 / (2.0 * n as f64 - 2.0);
                let ratio = lens.to_kind(Kind::Float) * (*factor / from as f64) - (factor - 1.0);
                let base = ratio.f_pow_tensor_scalar(power)? * *theta;
                Ok(base.f_pow(&exponents.to_device(lens.device()))?.reciprocal())
            }
        }
    }
}

fn exponents(head_dim: i64) -> Tensor {
    Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64
}

fn divided(factors: &[f64], theta: f64, head_dim: i64) -> Tensor {
    let factors = Tensor::from_slice(factors).to_kind(Kind::Float);
    (factors * Tensor::pow_scalar(theta, &exponents(head_dim))).reciprocal()
}

/// Where YaRN's long wavelengths begin.
struct Bounds {
    theta: f64,
    head_dim: i64,
    original_len: f64,
    truncate: bool,
}

impl Bounds {
    /// The dimension whose wavelength fits so often into the first length.
    fn dimension(&self, rotations: f64) -> f64 {
        let wavelength = self.original_len / (rotations * std::f64::consts::TAU);
        self.head_dim as f64 * wavelength.ln() / (2.0 * self.theta.ln())
    }

    /// 0 at the short wavelengths, 1 at the long ones, `[head_dim / 2]`.
    fn ramp(&self, beta_fast: f64, beta_slow: f64) -> Tensor {
        let (low, high) = (self.dimension(beta_fast), self.dimension(beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min((self.head_dim - 1) as f64));
        if (low - high).abs() < f64::EPSILON {
            high += 0.001; // as in the reference, where else it would divide by zero
        }
        let steps = Tensor::arange(self.head_dim / 2, (Kind::Float, Device::Cpu));
        ((steps - low) / (high - low)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(scaling: &RotaryScaling, theta: f64, expected: &[f64]) {
        let found: Vec<f32> = Vec::try_from(scaling.frequencies(theta, 2 * expected.len() as i64)).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected, "{found} is not {expected}");
        }
    }

    #[test]
    fn frequencies_fall_by_powers_of_theta() {
        close(&RotaryScaling::Default, 10_000.0, &[1.0, 0.01]);
        close(&RotaryScaling::Linear { factor: 4.0 }, 10_000.0, &[0.25, 0.0025]);
    }

    #[test]
    fn llama3_stretches_long_wavelengths_by_the_factor_and_short_ones_not_at_all() {
        let scaling =
            RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 1000 };
        // Wavelengths 2 pi (short: below 250), 200 pi (between: 1000 / (200 pi) = 1.5915), 20000 pi (long: above 1000).
        let share = (1000.0 / (200.0 * std::f64::consts::PI) - 1.0) / 3.0;
        close(&scaling, 1e6, &[1.0, 0.01 * (share + (1.0 - share) / 8.0), 1e-4 / 8.0]);
    }

    #[test]
    fn yarn_stretches_what_turns_less_than_once_in_the_first_length() {
        let scaling = RotaryScaling::Yarn {
            factor: 4.0,
            original_len: 1000,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.0,
        };
        // Dimension 6 ln(1000 / (32 * 2 pi)) / (2 ln 10^6) = 0.35 turns 32 times, 1.10 turns once: the ramp runs from step 0 to
        // step 2, and the second of three frequencies is stretched half of the way.
        close(&scaling, 1e6, &[1.0, 0.01 * (0.5 + 0.5 / 4.0), 1e-4 / 4.0]);
    }

    #[test]
    fn dynamic_scaling_begins_where_the_first_length_ends() {
        let scaling = RotaryScaling::Dynamic { factor: 3.0, original_len: 10 };
        close(&scaling, 100.0, &[1.0, 0.1]);
        let (from, longer) = scaling.of_longer(100.0, 4).unwrap();
        let lens = Tensor::from_slice(&[10i64, 20]).view([1, 2, 1]);
        let found: Vec<f32> = Vec::try_from(longer.frequencies(&lens, from).unwrap().flatten(0, 2)).unwrap();
        // Twice as long: the base is 3 * 2 - 2 = 4 to the power of 4 / (4 - 2) times as large.
        let expected = [1.0, 0.1, 1.0, 1.0 / (100.0f32 * 16.0).sqrt()];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        assert_eq!((scaling.max_seq_len(10), RotaryScaling::Default.max_seq_len(10)), (30, 10));
    }
}
