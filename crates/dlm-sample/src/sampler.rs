//! The denoising loop: predict every mask, keep the surest predictions, repeat.

use crate::{
    batch::{BatchRow, CanvasBatch},
    canvas::Canvas,
    config::SamplerConfig,
    error::{Result, SampleError},
    generation::{Generation, Reveal, StepEvent},
    gumbel::Draws,
    prediction::{Prediction, RowMasks, predict},
};
use dlm_diffusion::Denoiser;
use std::{collections::HashSet, ops::ControlFlow, time::Instant};

/// Fills the masks of canvases of any lengths, all in one batch.
///
/// In each step the denoiser sees every canvas that still has masks, predicts all of them, and [as many as the step
/// keeps](crate::Transfer) stay: [the surest ones](crate::Remasking). A revealed token is never changed. A canvas that
/// is done leaves the batch; what becomes of it never depends on the others (but for rounding inside a network that
/// multiplies larger matrices).
///
/// `observer` is called for every canvas after every step it took part in; [`ControlFlow::Break`] takes that canvas out
/// with the masks it has left.
///
/// # Errors
/// Settings and ids that do not fit ([`SamplerConfig::check`], [`SampleError::IdOutsideVocabulary`],
/// [`SampleError::MaskMismatch`]), scores that are not finite, draws of another shape, and what the denoiser refuses,
/// such as a canvas longer than it can read.
pub fn sample(
    denoiser: &dyn Denoiser,
    canvases: &[Canvas],
    config: &SamplerConfig,
    draws: &mut dyn Draws,
    observer: &mut dyn FnMut(&StepEvent<'_>) -> ControlFlow<()>,
) -> Result<Vec<Generation>> {
    config.check()?;
    for (row, canvas) in canvases.iter().enumerate() {
        check_canvas(row, canvas, config)?;
    }
    let _no_grad = tch::no_grad_guard();
    let start = Instant::now();
    let mut rows: Vec<Row<'_>> = canvases.iter().enumerate().map(|(index, canvas)| Row::new(index, canvas)).collect();
    for step in 0..config.steps {
        let mut active: Vec<&mut Row<'_>> = rows.iter_mut().filter(|row| row.is_active()).collect();
        if active.is_empty() {
            break;
        }
        let batch_rows: Vec<BatchRow<'_>> = active.iter().map(|row| row.as_batch_row()).collect();
        let masks: Vec<RowMasks<'_>> = active.iter().map(|row| row.as_masks()).collect();
        let batch = CanvasBatch::new(&batch_rows, config.mask_token_id)?;
        let predictions = predict(denoiser, &batch, &masks, step, config, draws)?;

        let mut predictions = predictions.as_slice();
        for row in &mut active {
            let (own, rest) = predictions.split_at(row.remaining.len());
            predictions = rest;
            row.advance(own, step, config, observer)?;
            row.elapsed_s = start.elapsed().as_secs_f64();
        }
    }
    Ok(rows.into_iter().map(|row| row.finish(config)).collect())
}

/// Refuses a canvas whose ids the sampler's vocabulary does not have, or that was made for another mask token.
fn check_canvas(row: usize, canvas: &Canvas, config: &SamplerConfig) -> Result<()> {
    if let Some(&id) = canvas.ids().iter().find(|&&id| id < 0) {
        return Err(SampleError::OutOfRange { name: "canvas ids", value: id.to_string(), expected: "at least 0" });
    }
    if let Some(vocab_size) = config.vocab_size
        && let Some(&id) = canvas.ids().iter().find(|&&id| id >= vocab_size)
    {
        return Err(SampleError::IdOutsideVocabulary { what: "canvas token", id, vocab_size });
    }
    let mask_token_id = config.mask_token_id;
    match canvas.masked_positions().iter().find(|&&position| canvas.ids()[position] != mask_token_id) {
        Some(&position) => {
            Err(SampleError::MaskMismatch { row, position, found: canvas.ids()[position], mask_token_id })
        }
        None => Ok(()),
    }
}

/// One canvas on its way.
struct Row<'a> {
    index: usize,
    canvas: &'a Canvas,
    ids: Vec<i64>,
    /// Positions that are still masked, ascending.
    remaining: Vec<usize>,
    is_stopped: bool,
    nfe: usize,
    elapsed_s: f64,
    trace: Vec<Vec<i64>>,
    reveals: Vec<Reveal>,
}

impl<'a> Row<'a> {
    fn new(index: usize, canvas: &'a Canvas) -> Self {
        Self {
            index,
            canvas,
            ids: canvas.ids().to_vec(),
            remaining: canvas.masked_positions().to_vec(),
            is_stopped: false,
            nfe: 0,
            elapsed_s: 0.0,
            trace: Vec::new(),
            reveals: Vec::new(),
        }
    }

    fn is_active(&self) -> bool {
        !self.is_stopped && !self.remaining.is_empty()
    }

    fn as_batch_row(&self) -> BatchRow<'_> {
        BatchRow {
            ids: &self.ids,
            segment_ids: self.canvas.segment_ids(),
            position_ids: self.canvas.position_ids(),
            masked_positions: &self.remaining,
        }
    }

    fn as_masks(&self) -> RowMasks<'_> {
        RowMasks { row: self.index, positions: &self.remaining }
    }

    /// Keeps the surest of its predictions, one for each remaining mask, and tells the observer.
    fn advance(
        &mut self,
        predictions: &[Prediction],
        step: usize,
        config: &SamplerConfig,
        observer: &mut dyn FnMut(&StepEvent<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        self.nfe += 1;
        let confidences: Vec<f32> = predictions.iter().map(|prediction| prediction.confidence).collect();
        let n_kept = config.transfer.num_transfer_tokens(predictions.len(), step, config.steps);
        let n_revealed = self.reveals.len();
        for kept in config.remasking.keep(&confidences, n_kept)? {
            let (position, Prediction { id, confidence }) = (self.remaining[kept], predictions[kept]);
            self.ids[position] = id;
            self.reveals.push(Reveal { position, id, step, confidence });
        }
        let revealed = &self.reveals[n_revealed..];
        let revealed_positions: HashSet<usize> = revealed.iter().map(|reveal| reveal.position).collect();
        self.remaining.retain(|position| !revealed_positions.contains(position));
        if config.trace {
            self.trace.push(self.ids.clone());
        }
        let (row, steps, ids) = (self.index, config.steps, self.ids.as_slice());
        let event = StepEvent { row, step, steps, ids, revealed, remaining: self.remaining.len() };
        self.is_stopped = observer(&event).is_break();
        Ok(())
    }

    fn finish(mut self, config: &SamplerConfig) -> Generation {
        if config.trace && self.remaining.is_empty() {
            self.trace.resize(config.steps, self.ids.clone());
        }
        Generation {
            ids: self.ids,
            masked_positions: self.canvas.masked_positions().to_vec(),
            nfe: self.nfe,
            elapsed_s: self.elapsed_s,
            trace: self.trace,
            reveals: self.reveals,
        }
    }
}
