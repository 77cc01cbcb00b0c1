//! Rotary positions: queries and keys turned by an angle that grows with the position.

mod scaling;

pub use scaling::RotaryScaling;

use dlm_torch::Angles;
use scaling::Longer;
use tch::{Device, Kind, TchError, Tensor};

/// How positions become angles (RoPE, [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RotaryConfig {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// How a checkpoint stretched them for longer texts.
    pub scaling: RotaryScaling,
    /// Whether queries and keys are turned in float32, whatever the kind of the model.
    pub full_precision: bool,
}

/// The frequencies of a model's heads.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// Radians per position, `[head_dim / 2]` of `Float`.
    frequencies: Tensor,
    /// From which length on documents have others.
    longer: Option<(i64, Longer)>,
    /// What queries and keys are multiplied by.
    attention_factor: f64,
    full_precision: bool,
}

impl Rotary {
    pub(crate) fn new(config: &RotaryConfig, head_dim: i64, device: Device) -> Self {
        Self {
            frequencies: config.scaling.frequencies(config.theta, head_dim).to_device(device),
            longer: config.scaling.of_longer(config.theta, head_dim),
            attention_factor: config.scaling.attention_factor(),
            full_precision: config.full_precision,
        }
    }

    /// Radians per position, `[head_dim / 2]` of `Float`.
    pub(crate) fn into_frequencies(self) -> Tensor {
        self.frequencies
    }

    /// The rotation of every token of a forward pass.
    ///
    /// `position_ids`: `[batch or 1, seq_len]` of `Int64`; `segment_ids`: `[batch, seq_len]`, where rows hold several documents.
    pub(crate) fn rotation(
        &self,
        position_ids: &Tensor,
        segment_ids: Option<&Tensor>,
        kind: Kind,
    ) -> Result<Angles, TchError> {
        let frequencies = self.frequencies_at(position_ids, segment_ids)?;
        let angles = position_ids.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [batch, seq_len, head_dim / 2]
        let kind = if self.full_precision { Kind::Float } else { kind };
        let scaled = |x: Tensor| if self.attention_factor == 1.0 { x } else { x * self.attention_factor };
        // Rounded to the kind in which the reference multiplies, then exact in float32.
        let flat = |x: Tensor| scaled(x).to_kind(kind).to_kind(Kind::Float).flatten(0, 1);
        Ok(Angles { cos: flat(angles.cos()), sin: flat(angles.sin()) })
    }

    /// Radians per position, the same for all tokens or, `[batch, seq_len, head_dim / 2]`, by the length of each one's document.
    fn frequencies_at(&self, position_ids: &Tensor, segment_ids: Option<&Tensor>) -> Result<Tensor, TchError> {
        let plain = || self.frequencies.shallow_clone();
        let Some((from, longer)) = self.longer.as_ref().filter(|_| position_ids.numel() > 0) else {
            return Ok(plain());
        };
        if position_ids.max().int64_value(&[]) < *from {
            return Ok(plain());
        }
        let lens = document_lens(position_ids, segment_ids)?.unsqueeze(-1); // [batch, seq_len or 1, 1]
        longer.frequencies(&lens, *from)?.f_where_self(&lens.gt(*from), &self.frequencies)
    }
}

/// For each token, one more than the last position of its document.
fn document_lens(position_ids: &Tensor, segment_ids: Option<&Tensor>) -> Result<Tensor, TchError> {
    let Some(segments) = segment_ids else { return Ok(position_ids.f_amax([1i64].as_slice(), true)? + 1) };
    let segments = segments.to_device(position_ids.device());
    let (size, most) = (segments.size(), segments.max().int64_value(&[]) + 1);
    let rows = Tensor::arange(size[0], (Kind::Int64, segments.device())).unsqueeze(1); // [batch, 1]
    let documents = (rows * most + segments).flatten(0, 1);
    let ends = (position_ids.f_expand(&size, false)? + 1).flatten(0, 1);
    let lens = Tensor::f_zeros([size[0] * most], (Kind::Int64, ends.device()))?;
    let lens = lens.f_index_reduce(0, &documents, &ends, "amax", true)?;
    lens.f_index_select(0, &documents)?.f_view(size.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotary(scaling: RotaryScaling) -> Rotary {
        Rotary::new(&RotaryConfig { theta: 100.0, scaling, full_precision: false }, 8, Device::Cpu)
    }

    #[test]
    fn turned_queries_and_keys_know_only_their_distance() {
        let rotary = rotary(RotaryScaling::Default);
        let x = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([1, 16]) / 16.0;
        let at = |position: i64| {
            rotary.rotation(&Tensor::full([1, 1], position, (Kind::Int64, Device::Cpu)), None, Kind::Float).unwrap()
        };
        let product = |q: i64, k: i64| {
            let turned = |position: i64, i: i64| {
                let tokens = x.narrow(1, i * 8, 8).repeat([1, 3]);
                let [turned, ..] = dlm_torch::rotate(&tokens, &at(position), 1, 1, 1).unwrap();
                turned
            };
            (turned(q, 0) * turned(k, 1)).sum(Kind::Float).double_value(&[])
        };
        assert!((product(3, 1) - product(12, 10)).abs() < 1e-5);
        assert!((product(3, 1) - product(3, 2)).abs() > 1e-2);
    }

    #[test]
    fn a_document_is_turned_by_its_own_length_whatever_stands_beside_it() {
        let rotary = rotary(RotaryScaling::Dynamic { factor: 4.0, original_len: 4 });
        let turned = |positions: &[i64], segments: Option<&[i64]>| {
            let row = |ids: &[i64]| Tensor::from_slice(ids).unsqueeze(0);
            rotary.rotation(&row(positions), segments.map(row).as_ref(), Kind::Float).unwrap().cos
        };
        let (long, short) = (turned(&[0, 1, 2, 3, 4, 5], None), turned(&[0, 1, 2], None));
        assert_ne!(long.narrow(0, 0, 3), short);
        let packed = turned(&[0, 1, 2, 3, 4, 5, 0, 1, 2, 0], Some(&[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]));
        assert_eq!((packed.narrow(0, 0, 6), packed.narrow(0, 6, 3)), (long, short));
    }
}
