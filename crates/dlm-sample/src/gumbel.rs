//! Temperature: Gumbel noise, whose argmax draws from a softmax, and where its uniforms come from.

use crate::error::{Result, SampleError};
use dlm_diffusion::{NoiseKey, Purpose};
use std::ops::Range;
use tch::{Kind, Tensor};

/// What uniforms are asked for: one for each token of the vocabulary at some masked positions of one canvas.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrawRequest<'a> {
    /// Index of the canvas.
    pub row: usize,
    /// The step, counted from 0.
    pub step: usize,
    /// Which of the canvas's masks are meant, counted over those that are left in this step.
    pub masks: Range<usize>,
    /// Their positions in the canvas, as many as `masks`.
    pub positions: &'a [usize],
    /// Scores of the model at one position.
    pub vocab_size: usize,
}

impl DrawRequest<'_> {
    /// The shape that is asked for, `[masks, vocab]`.
    #[must_use]
    pub fn shape(&self) -> [i64; 2] {
        [self.masks.len() as i64, self.vocab_size as i64]
    }
}

/// Where the randomness of a temperature comes from; a greedy sampler never asks.
pub trait Draws {
    /// Uniforms on [0, 1), shaped as [`DrawRequest::shape`] says, of any floating kind.
    ///
    /// # Errors
    /// When there are none for this request.
    fn uniforms(&mut self, request: &DrawRequest<'_>) -> Result<Tensor>;
}

/// Draws that follow from a seed, the canvas, the step and the position alone.
///
/// So the tokens of a canvas depend neither on the canvases beside it nor on the size of a chunk.
///
/// ```
/// use dlm_sample::KeyedDraws;
///
/// let all = KeyedDraws::new(42); // canvases 0, 1, 2, ... of one call
/// let later = KeyedDraws::new(42).for_rows(vec![7, 9]); // canvases 7 and 9 of it, decoded by themselves
/// # let _ = (all, later);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedDraws {
    seed: u64,
    rows: Vec<u64>,
}

impl KeyedDraws {
    /// Numbers the canvases of a call 0, 1, 2, ...
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, rows: Vec::new() }
    }

    /// Numbers the canvases of a call by `rows`, so that each keeps its noise whatever the batch; those beyond keep
    /// their index.
    #[must_use]
    pub fn for_rows(mut self, rows: Vec<u64>) -> Self {
        self.rows = rows;
        self
    }
}

impl Draws for KeyedDraws {
    fn uniforms(&mut self, request: &DrawRequest<'_>) -> Result<Tensor> {
        let row = self.rows.get(request.row).copied().unwrap_or(request.row as u64);
        let key = NoiseKey::new(self.seed, Purpose::Sampling, request.step as u64).of_document(row, 0);
        let mut uniforms = Vec::with_capacity(request.masks.len() * request.vocab_size);
        for &position in request.positions {
            let first = position as u64 * request.vocab_size as u64;
            uniforms.extend(key.uniforms_f64(first, request.vocab_size));
        }
        Ok(Tensor::f_from_slice(&uniforms)?.f_view(request.shape())?)
    }
}

/// Gumbel noise, `-ln(-ln(u))` in float64: `argmax(logits + noise)` is a draw from `softmax(logits)`.
///
/// Float64 because rounded noise shifts the distribution at high temperatures (LLaDA,
/// [arXiv:2502.09992](https://arxiv.org/abs/2502.09992); [arXiv:2409.02908](https://arxiv.org/abs/2409.02908)). Axolotl
/// computes this formula in float32; from the same uniforms the same tokens follow, unless two of them lie within the
/// rounding of float32.
pub(crate) fn gumbel_noise(uniforms: &Tensor) -> Tensor {
    -(-uniforms.to_kind(Kind::Double).log()).log()
}

/// The draws of a request, in the shape that was asked for.
pub(crate) fn checked_uniforms(draws: &mut dyn Draws, request: &DrawRequest<'_>) -> Result<Tensor> {
    let uniforms = draws.uniforms(request)?;
    if uniforms.size() != request.shape() {
        let (step, found, expected) = (request.step, uniforms.size(), request.shape());
        return Err(SampleError::DrawsMismatch { step, found, expected });
    }
    Ok(uniforms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(row: usize, positions: &[usize], masks: Range<usize>) -> DrawRequest<'_> {
        DrawRequest { row, step: 3, masks, positions, vocab_size: 5 }
    }

    #[test]
    fn draws_of_a_position_do_not_depend_on_its_neighbours() {
        let mut draws = KeyedDraws::new(1);
        let both = draws.uniforms(&request(2, &[4, 9], 0..2)).unwrap();
        let one = draws.uniforms(&request(2, &[9], 1..2)).unwrap();
        assert_eq!(both.get(1), one.get(0));
    }

    #[test]
    fn a_row_keeps_its_draws_in_another_batch() {
        let ours = KeyedDraws::new(1).for_rows(vec![8, 2]).uniforms(&request(1, &[4], 0..1)).unwrap();
        assert_eq!(ours, KeyedDraws::new(1).uniforms(&request(2, &[4], 0..1)).unwrap());
        assert_ne!(ours, KeyedDraws::new(1).uniforms(&request(1, &[4], 0..1)).unwrap());
    }

    #[test]
    fn the_argmax_of_noisy_logits_is_a_draw_from_their_softmax() {
        // softmax([0, ln 2, ln 5]) is 1/8, 2/8, 5/8.
        let logits = Tensor::from_slice(&[0f64, 2f64.ln(), 5f64.ln()]);
        let n = 20_000usize;
        let positions: Vec<usize> = (0..n).collect();
        let request = DrawRequest { row: 0, step: 0, masks: 0..n, positions: &positions, vocab_size: 3 };
        let choices = (logits + gumbel_noise(&KeyedDraws::new(5).uniforms(&request).unwrap())).argmax(1, false);
        for (token, expected) in [1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0].into_iter().enumerate() {
            let share = choices.eq(token as i64).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            let deviation = (expected * (1.0 - expected) / n as f64).sqrt();
            assert!((share - expected).abs() < 4.0 * deviation, "token {token}: {share}, expected {expected}");
        }
    }

    /// Trap 9: float32 has no number between 1 - 2^-24 and 1, so its noise would end at 16.6 and rare tokens would be drawn too seldom.
    #[test]
    fn noise_is_float64_and_reaches_beyond_what_float32_can_tell_from_certainty() {
        let noise = gumbel_noise(&Tensor::from_slice(&[1.0 - f64::EPSILON / 2.0]));
        assert_eq!(noise.kind(), Kind::Double);
        assert!(noise.double_value(&[0]) > 36.0, "{noise:?}");
    }

    #[test]
    fn a_uniform_of_zero_never_wins() {
        let noise = gumbel_noise(&Tensor::from_slice(&[0f32, 0.5]));
        assert_eq!(noise.double_value(&[0]), f64::NEG_INFINITY);
        assert!((noise.double_value(&[1]) - 0.366_512_920_581_664_3).abs() < 1e-12);
    }
}
