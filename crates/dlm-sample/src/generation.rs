//! What a sampler gives back, at the end and while it works.

use serde::Serialize;

/// A filled canvas and how it came about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// The tokens; mask tokens are left only where an observer stopped the canvas.
    pub ids: Vec<i64>,
    /// The positions that were to be filled, counted from 0, ascending.
    pub masked_positions: Vec<usize>,
    /// Number of function evaluations: forward passes of the denoiser that this canvas took part in.
    pub nfe: usize,
    /// Seconds from the start of the call until this canvas was done.
    pub elapsed_s: f64,
    /// The tokens after every step, if asked for: one entry for each of the configured steps, the last of which repeat
    /// once nothing is masked any more. A stopped canvas has only the steps it went through.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<Vec<i64>>,
    /// What was filled, in that order.
    pub reveals: Vec<Reveal>,
}

impl Generation {
    /// Whether every mask was filled.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.reveals.len() == self.masked_positions.len()
    }
}

/// One mask that became a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Reveal {
    /// Where, counted from 0.
    pub position: usize,
    /// The token.
    pub id: i64,
    /// The step, counted from 0.
    pub step: usize,
    /// The model's probability of the token at the sampler's temperature, without noise.
    pub confidence: f32,
}

/// What an observer sees: one canvas after one step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepEvent<'a> {
    /// Index of the canvas.
    pub row: usize,
    /// The step, counted from 0.
    pub step: usize,
    /// Steps at most.
    pub steps: usize,
    /// The tokens after the step.
    pub ids: &'a [i64],
    /// What the step filled, the surest first.
    pub revealed: &'a [Reveal],
    /// Masks that are left.
    pub remaining: usize,
}
