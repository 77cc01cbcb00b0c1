//! Rows of ids and draws, as plain numbers, to tensors.

use crate::{error::Result, noise::NoiseSource};
use dlm_data::{Batch, Document};
use dlm_diffusion::{CleanBatch, ForwardProcess, NoisedBatch, PackingIsolation};
use tch::{Kind, Tensor};

/// A batch as tensors on the CPU, `[rows, seq_len]` of `Int64`.
///
/// # Errors
/// [`TrainError::Torch`](crate::TrainError::Torch) or [`TrainError::Diffusion`](crate::TrainError::Diffusion) when a list has not one
/// number for each token.
pub fn clean_batch(batch: &Batch) -> Result<CleanBatch> {
    let shape = [batch.rows as i64, batch.seq_len as i64];
    let tensor =
        |values: &[i32]| -> Result<Tensor> { Ok(Tensor::f_from_slice(values)?.f_view(shape)?.to_kind(Kind::Int64)) };
    Ok(CleanBatch::new(tensor(&batch.ids)?)?
        .with_labels(tensor(&batch.labels)?)?
        .with_segments(tensor(&batch.segment_ids)?)?
        .with_positions(tensor(&batch.position_ids)?)?)
}

/// Masks a batch with the draws of `noise`, on the CPU: the micro-batches that the views of the process make of it.
///
/// # Errors
/// Those of [`clean_batch`] and of [`ForwardProcess::noise_views`].
pub fn noised_views(
    batch: &Batch,
    epoch: u64,
    process: &ForwardProcess,
    noise: &dyn NoiseSource,
) -> Result<Vec<NoisedBatch>> {
    let slots = batch.rows * batch.seq_len;
    // Padding is never masked, whatever its numbers are.
    let (mut t, mut uniform) = (vec![0f32; slots], vec![1f32; slots]);
    let mut dropout_keys: Option<Vec<i64>> = None;
    let mut row_t: Option<(usize, f32)> = None;
    for document in &batch.documents {
        let slots = slots_of(batch, document);
        uniform[slots.clone()].copy_from_slice(&noise.uniforms(epoch, document));
        if let Some(keys) = noise.dropout_keys(epoch, document) {
            dropout_keys.get_or_insert_with(|| vec![0; batch.rows * batch.seq_len])[slots.clone()]
                .copy_from_slice(&keys);
        }
        if let Some(block_length) = process.block_length {
            for (block, tokens) in t[slots].chunks_mut(block_length as usize).enumerate() {
                tokens.fill(process.range.t_of(noise.block_timestep(epoch, document, block as u64)));
            }
            continue;
        }
        let draw = match (process.isolation, row_t) {
            (PackingIsolation::Row, Some((row, draw))) if row == document.row => draw,
            _ => noise.timestep(epoch, document),
        };
        row_t = Some((document.row, draw));
        t[slots].fill(process.range.t_of(draw));
    }
    let shape = [batch.rows as i64, batch.seq_len as i64];
    let [t, uniform] = [t, uniform].map(|values| Tensor::from_slice(&values).view(shape));
    let clean = match shortened(batch, epoch, noise) {
        Some(shortened) => clean_batch(&shortened)?,
        None => clean_batch(batch)?,
    };
    let mut clean = with_dropped_prompts(clean, batch, epoch, noise)?;
    if let Some(keys) = dropout_keys {
        clean = clean.with_dropout_keys(Tensor::from_slice(&keys).view(shape))?;
    }
    Ok(process.noise_views(clean, &t, &uniform)?)
}

/// The batch with what lies beyond the lengths that documents are cut to as padding; `None` when none is cut.
fn shortened(batch: &Batch, epoch: u64, noise: &dyn NoiseSource) -> Option<Batch> {
    let mut cut: Option<Batch> = None;
    for document in &batch.documents {
        let Some(len) = noise.length(epoch, document).filter(|len| *len < document.len) else { continue };
        let cut = cut.get_or_insert_with(|| batch.clone());
        let slots = slots_of(batch, document);
        cut.segment_ids[slots.start + len..slots.end].fill(0);
        cut.labels[slots.start + len..slots.end].fill(dlm_data::IGNORE_INDEX);
    }
    cut
}

fn with_dropped_prompts(clean: CleanBatch, batch: &Batch, epoch: u64, noise: &dyn NoiseSource) -> Result<CleanBatch> {
    let mut dropped = vec![false; batch.rows * batch.seq_len];
    for document in batch.documents.iter().filter(|document| noise.drops_prompt(epoch, document)) {
        // Targets among them are no prompt, and stay.
        dropped[slots_of(batch, document)].fill(true);
    }
    if !dropped.contains(&true) {
        return Ok(clean);
    }
    Ok(clean.with_dropped(Tensor::from_slice(&dropped).view([batch.rows as i64, batch.seq_len as i64]))?)
}

/// Where a document lies in the row-major lists of its batch.
pub(crate) fn slots_of(batch: &Batch, document: &Document) -> std::ops::Range<usize> {
    let start = document.row * batch.seq_len + document.start;
    start..start + document.len
}

/// Whether some tokens are no targets: prompts, as fine-tuning rows have them.
pub(crate) fn has_prompts(batch: &Batch) -> bool {
    let mut tokens = batch.labels.iter().zip(&batch.segment_ids);
    tokens.any(|(label, segment)| *segment > 0 && i64::from(*label) == dlm_diffusion::IGNORE_INDEX)
}

/// Tokens that are no padding.
pub(crate) fn num_tokens(batch: &Batch) -> u64 {
    batch.segment_ids.iter().filter(|segment| **segment > 0).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_diffusion::{MaskPolicy, NoiseSchedule};

    /// The timestep says which document it is of, the uniforms which position.
    struct Telling;

    impl NoiseSource for Telling {
        fn timestep(&self, _epoch: u64, document: &Document) -> f32 {
            document.id as f32 / 10.0
        }

        fn uniforms(&self, _epoch: u64, document: &Document) -> Vec<f32> {
            (0..document.len).map(|i| (document.offset as usize + i) as f32 / 10.0).collect()
        }
    }

    fn packed() -> Batch {
        let document = |id, segment, start, len, offset| Document {
            row: 0,
            segment,
            start,
            len,
            id,
            offset,
            occurrence: 0,
            ordinal: 0,
        };
        Batch {
            rows: 1,
            seq_len: 6,
            ids: vec![1, 2, 3, 4, 5, 0],
            labels: vec![1, 2, 3, -100, 5, -100],
            segment_ids: vec![1, 1, 2, 2, 2, 0],
            position_ids: vec![0, 1, 0, 1, 2, 0],
            documents: vec![document(3, 1, 0, 2, 0), document(6, 2, 2, 3, 4)],
        }
    }

    fn timesteps(isolation: PackingIsolation) -> Vec<f32> {
        let schedule = NoiseSchedule::Linear { eps: 0.0 };
        let process = ForwardProcess::new(schedule, MaskPolicy::new(9)).isolating(isolation);
        let noised = noised_views(&packed(), 0, &process, &Telling).unwrap().remove(0);
        Vec::try_from(noised.t().flatten(0, 1)).unwrap()
    }

    #[test]
    fn every_document_has_its_timestep_and_under_row_isolation_every_row() {
        assert_eq!(timesteps(PackingIsolation::Document), [0.3, 0.3, 0.6, 0.6, 0.6, 0.0]);
        assert_eq!(timesteps(PackingIsolation::Row), [0.3, 0.3, 0.3, 0.3, 0.3, 0.0]);
    }

    #[test]
    fn draws_lie_where_their_document_lies() {
        let schedule = NoiseSchedule::Linear { eps: 0.0 };
        let process = ForwardProcess::new(schedule, MaskPolicy::new(9));
        let noised = noised_views(&packed(), 0, &process, &Telling).unwrap().remove(0);
        // Document 3 masks draws below 0.3, document 6 draws below 0.6: its first token has draw 0.4, its third has none below.
        assert_eq!(Vec::<i64>::try_from(noised.masked_positions()).unwrap(), [0, 1, 2]);
    }

    /// Document 3 is cut to one token, document 6 shows no prompt, blocks say which they are.
    struct Changing;

    impl NoiseSource for Changing {
        fn timestep(&self, _epoch: u64, _document: &Document) -> f32 {
            1.0
        }

        fn uniforms(&self, _epoch: u64, document: &Document) -> Vec<f32> {
            vec![0.0; document.len]
        }

        fn block_timestep(&self, _epoch: u64, document: &Document, block: u64) -> f32 {
            (document.id as f32 + block as f32) / 10.0
        }

        fn length(&self, _epoch: u64, document: &Document) -> Option<usize> {
            (document.id == 3).then_some(1)
        }

        fn drops_prompt(&self, _epoch: u64, document: &Document) -> bool {
            document.id == 6
        }
    }

    #[test]
    fn documents_are_cut_prompts_dropped_and_blocks_have_timesteps_of_their_own() {
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 0.0 }, MaskPolicy::new(9));
        let noised = noised_views(&packed(), 0, &process, &Changing).unwrap().remove(0);
        // Token 2 is cut off and no mask; token 4 is a prompt: shown as a mask, and not scored.
        assert_eq!(Vec::<i64>::try_from(noised.noised().ids.flatten(0, 1)).unwrap(), [9, 2, 9, 9, 9, 0]);
        assert_eq!(Vec::<i64>::try_from(noised.masked_positions()).unwrap(), [0, 2, 4]);
        let noised =
            noised_views(&packed(), 0, &process.in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap(), &Changing)
                .unwrap()
                .remove(0);
        assert_eq!(Vec::<f32>::try_from(noised.t().flatten(0, 1)).unwrap(), [0.3, 0.3, 0.6, 0.6, 0.7, 0.0]);
    }

    #[test]
    fn prompts_are_seen_and_padding_is_none() {
        let mut batch = packed();
        assert!(has_prompts(&batch));
        batch.labels[3] = 4;
        assert!(!has_prompts(&batch));
        assert_eq!(num_tokens(&batch), 5);
    }
}
