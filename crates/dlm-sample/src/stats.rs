//! What decoding cost: forward passes, tokens for each of them, seconds.

use crate::generation::Generation;
use serde::Serialize;
use std::fmt;

/// What one call of the sampler cost.
///
/// ```
/// # use dlm_sample::{Canvas, KeyedDraws, SamplerConfig, Stats, sample};
/// # use std::ops::ControlFlow;
/// # use tch::Tensor;
/// # let denoiser = |ids: &Tensor| Tensor::from_slice(&[1f32, 2., 0.]).expand([ids.size()[0], ids.size()[1], 3], false);
/// let canvases = [Canvas::completion(&[0], 8, 2)?, Canvas::completion(&[0, 1], 4, 2)?];
/// let config = SamplerConfig::new(2).with_steps(4);
/// let generations = sample(&denoiser, &canvases, &config, &mut KeyedDraws::new(0), &mut |_| ControlFlow::Continue(()))?;
/// let stats = Stats::of(&generations);
/// assert_eq!((stats.tokens, stats.nfe), (12, 4 + 4));
/// assert_eq!(stats.tokens_per_pass(), 1.5);
/// # Ok::<(), dlm_sample::SampleError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Tokens that were filled in.
    pub tokens: usize,
    /// Forward passes, counted for each canvas by itself: two canvases in one batch of 4 steps count 8.
    pub nfe: usize,
    /// Seconds until the last canvas was done.
    pub elapsed_s: f64,
}

impl Stats {
    /// Adds up the generations of one call.
    #[must_use]
    pub fn of(generations: &[Generation]) -> Self {
        Self {
            tokens: generations.iter().map(|generation| generation.reveals.len()).sum(),
            nfe: generations.iter().map(|generation| generation.nfe).sum(),
            elapsed_s: generations.iter().map(|generation| generation.elapsed_s).fold(0.0, f64::max),
        }
    }

    /// Tokens that a canvas gains from a forward pass, on average; 0 without a pass.
    #[must_use]
    pub fn tokens_per_pass(&self) -> f64 {
        ratio(self.tokens as f64, self.nfe as f64)
    }

    /// Tokens filled in per second, over all canvases; 0 when no time passed.
    #[must_use]
    pub fn tokens_per_s(&self) -> f64 {
        ratio(self.tokens as f64, self.elapsed_s)
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, nfe, elapsed_s } = self;
        let (per_pass, per_s) = (self.tokens_per_pass(), self.tokens_per_s());
        write!(f, "{tokens} tokens in {nfe} passes ({per_pass:.2} a pass), {elapsed_s:.2} s ({per_s:.1} tokens/s)")
    }
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_generated_is_nothing_per_pass() {
        let stats = Stats::of(&[]);
        assert_eq!((stats.tokens_per_pass(), stats.tokens_per_s()), (0.0, 0.0));
        assert_eq!(stats.to_string(), "0 tokens in 0 passes (0.00 a pass), 0.00 s (0.0 tokens/s)");
    }
}
