//! From hidden states to one choice and its confidence per masked position, a few positions at a time.

use crate::{
    batch::CanvasBatch,
    config::SamplerConfig,
    error::{Result, SampleError},
    gumbel::{DrawRequest, Draws, checked_uniforms, gumbel_noise},
};
use dlm_diffusion::{Denoiser, DenoiserInput, DiffusionError, for_each_chunk};
use std::ops::Range;
use tch::{Kind, Tensor};

/// What the model would put at one masked position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prediction {
    pub(crate) id: i64,
    pub(crate) confidence: f32,
}

/// The masks of one canvas among those of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowMasks<'a> {
    /// Index of the canvas in the call, not in the batch.
    pub(crate) row: usize,
    /// Where they are, ascending.
    pub(crate) positions: &'a [usize],
}

/// Scores the masked positions of a batch, row after row. `[batch, seq_len, vocab]` never exists, `[chunk_len, vocab]`
/// does.
pub(crate) fn predict(
    denoiser: &dyn Denoiser,
    batch: &CanvasBatch,
    masks: &[RowMasks<'_>],
    step: usize,
    config: &SamplerConfig,
    draws: &mut dyn Draws,
) -> Result<Vec<Prediction>> {
    let mut input = DenoiserInput::new(&batch.ids, &batch.attention).at(&batch.wanted);
    if let Some(position_ids) = &batch.position_ids {
        input = input.with_positions(position_ids);
    }
    let states = denoiser.hidden_states(&input)?; // [n, hidden]
    let n_masks = batch.wanted.numel();
    if states.size().first() != Some(&(n_masks as i64)) {
        let (name, found, expected) = ("hidden states", states.size(), format!("[{n_masks}, hidden]"));
        return Err(DiffusionError::ShapeMismatch { name, found, expected }.into());
    }
    let mut predictions = Vec::with_capacity(n_masks);
    for_each_chunk(denoiser.head(), &states, config.chunk_len, |logits, range| {
        let requests = requests(masks, &range, step, logits.size()[1] as usize);
        let (ids, confidences) = choose(&logits, &requests, config, draws)?;
        for request in &requests {
            for &position in request.positions {
                let index = predictions.len() - range.start;
                if !confidences[index].is_finite() {
                    return Err(SampleError::NotFinite { row: request.row, position, step });
                }
                predictions.push(Prediction { id: ids[index], confidence: confidences[index] });
            }
        }
        Ok(())
    })?;
    Ok(predictions)
}

/// Which masks of which canvases the flat `range` covers.
fn requests<'a>(masks: &[RowMasks<'a>], range: &Range<usize>, step: usize, vocab_size: usize) -> Vec<DrawRequest<'a>> {
    let mut first = 0;
    let mut requests = Vec::new();
    for &RowMasks { row, positions } in masks {
        let start = range.start.max(first) - first;
        let end = range.end.clamp(first, first + positions.len()) - first;
        if start < end {
            requests.push(DrawRequest { row, step, masks: start..end, positions: &positions[start..end], vocab_size });
        }
        first += positions.len();
    }
    requests
}

/// The tokens chosen from `logits`, `[n, vocab]`, and their probabilities at the temperature, without noise.
fn choose(
    logits: &Tensor,
    requests: &[DrawRequest<'_>],
    config: &SamplerConfig,
    draws: &mut dyn Draws,
) -> Result<(Vec<i64>, Vec<f32>)> {
    let forbidden = forbidden_ids(config, logits.size()[1])?.to_device(logits.device());
    let forbid = |scores: &Tensor| scores.f_index_fill(1, &forbidden, f64::NEG_INFINITY);

    let logits = logits.to_kind(Kind::Float);
    let (scaled, choice) = if config.temperature > 0.0 {
        let scaled = logits / config.temperature;
        let uniforms: Vec<Tensor> =
            requests.iter().map(|request| checked_uniforms(draws, request)).collect::<Result<_>>()?;
        let noise = gumbel_noise(&Tensor::f_cat(&uniforms, 0)?.to_device(scaled.device())); // [n, vocab]
        let choice = forbid(&(&scaled + noise))?.argmax(1, false);
        (forbid(&scaled)?, choice)
    } else {
        let scaled = forbid(&logits)?;
        let choice = scaled.argmax(1, false);
        (scaled, choice)
    };
    let confidence = scaled.softmax(1, Kind::Float).f_gather(1, &choice.unsqueeze(1), false)?.squeeze_dim(1); // [n]
    Ok((Vec::try_from(choice)?, Vec::try_from(confidence)?))
}

/// The ids that are never predicted: the mask token, those beyond the tokenizer, and those the caller names.
fn forbidden_ids(config: &SamplerConfig, n_scores: i64) -> Result<Tensor> {
    config.check_special_ids(n_scores)?;
    let beyond = config.vocab_size.unwrap_or(n_scores)..n_scores;
    let mut ids: Vec<i64> = config.forbidden_ids.iter().copied().chain([config.mask_token_id]).chain(beyond).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() as i64 == n_scores {
        return Err(SampleError::EverythingForbidden { vocab_size: n_scores });
    }
    Ok(Tensor::f_from_slice(&ids)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_split_into_the_masks_of_each_canvas() {
        let masks = [
            RowMasks { row: 3, positions: &[5, 6, 8] },
            RowMasks { row: 4, positions: &[] },
            RowMasks { row: 7, positions: &[0, 2] },
        ];
        let found = requests(&masks, &(2..4), 1, 9);
        let request = |row, masks, positions| DrawRequest { row, step: 1, masks, positions, vocab_size: 9 };
        assert_eq!(found, [request(3, 2..3, &[8]), request(7, 0..1, &[0])]);
    }
}
