//! Samples shown while training: documents with some tokens masked, and what the model puts in their place.

use crate::{
    config::PreviewConfig,
    data::RowSource,
    device_batch::slots_of,
    error::Result,
    writing_order::{WritingOrder, Written},
};
use dlm_data::Batch;
use dlm_diffusion::{Denoiser, IGNORE_INDEX, NoiseKey, Purpose};
use dlm_sample::{
    Canvas, KeyedDraws, SampleError, SamplerConfig, TokenOutcome, masked_count, outcomes, preview_mask_ratio, spans,
};
use serde::Serialize;
use std::collections::BTreeSet;

/// Shorter documents say too little and are passed over.
pub(crate) const SHORTEST: usize = 10;

/// Candidates looked at for each sample wanted, before a batch of samples stays smaller.
const TRIES: usize = 8;

/// Turns ids into text; the tokenizer's part, which this crate does not know.
pub type TextOf<'a> = dyn Fn(&[i64]) -> String + 'a;

/// One sample: a document, what was hidden of it, and what the model made of that.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Preview {
    /// The document's number in the data.
    pub document: i64,
    /// What was masked.
    pub mode: PreviewMode,
    /// Tokens masked.
    pub num_masked: usize,
    /// Share of the tokens that was masked.
    pub mask_ratio: f64,
    /// Share of the masked tokens that came out as they were.
    pub accuracy: f64,
    /// The document's text.
    pub original: String,
    /// The text with its masks.
    pub masked: String,
    /// The text that the model completed.
    pub generated: String,
    /// The completed text in pieces: what was given, what came out right and what did not.
    pub pieces: Vec<Piece>,
    /// The document's tokens.
    pub ids: Vec<i64>,
    /// The tokens that the model completed.
    pub generated_ids: Vec<i64>,
    /// Which were masked, counted from 0.
    pub masked_positions: Vec<usize>,
    /// Forward passes of the model.
    pub nfe: usize,
}

/// What a sample masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PreviewMode {
    /// The answers of a document that also holds prompts.
    Answer,
    /// A random share of the tokens.
    Random,
    /// The rest of a text, which an autoregressive model continues.
    Continuation,
}

/// Neighbouring tokens with one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// What became of them; Axolotl shows unchanged tokens dim, right ones green and wrong ones red.
    pub outcome: TokenOutcome,
    /// Their text.
    pub text: String,
}

/// A document to make a sample of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    document: i64,
    ids: Vec<i64>,
    labels: Vec<i64>,
}

/// What is masked, and by what, for every sample of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masking<'a> {
    pub(crate) mask_token_id: i64,
    pub(crate) never_mask: &'a [i64],
    pub(crate) order: WritingOrder,
}

/// Generates the samples of `step`: the same for the same seed, step and weights, and none of the draws that training uses.
pub(crate) fn generate_previews(
    denoiser: &dyn Denoiser,
    rows: &dyn RowSource,
    config: &PreviewConfig,
    masking: Masking<'_>,
    seed_and_step: (u64, u64),
    text_of: &TextOf<'_>,
) -> Result<Vec<Preview>> {
    let key = NoiseKey::new(seed_and_step.0, Purpose::Preview, seed_and_step.1);
    let mut chosen: Vec<(Candidate, PreviewMode, Canvas)> = Vec::new();
    let mut seen = BTreeSet::new();
    for attempt in 0..(config.count * TRIES) as u64 {
        if chosen.len() == config.count || rows.rows() == 0 {
            break;
        }
        let key = key.of_document(attempt, 0);
        let pick = key.uniforms_f64(0, 3);
        let row = (pick[0] * rows.rows() as f64) as usize;
        let mut documents = documents_of(&rows.row(row)?);
        if documents.is_empty() {
            continue;
        }
        let index = (pick[1] * documents.len() as f64) as usize;
        if !seen.insert((row, index)) {
            continue;
        }
        let mut document = documents.swap_remove(index);
        document.ids.truncate(config.max_length);
        document.labels.truncate(config.max_length);
        // Occurrence 1 keeps the order of the masks apart from the draws above.
        let order = key.of_document(attempt, 1).permutation(document.ids.len());
        if let Some((mode, canvas)) = mask(&document, masking, preview_mask_ratio(pick[2]), &order)? {
            chosen.push((document, mode, canvas));
        }
    }
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let mut sampler = SamplerConfig::new(masking.mask_token_id).with_steps(config.steps);
    sampler = sampler.with_temperature(config.temperature);
    sampler.vocab_size = config.vocab_size;
    let canvases: Vec<Canvas> = chosen.iter().map(|(_, _, canvas)| canvas.clone()).collect();
    let mut draws = KeyedDraws::new(key.of_document(u64::MAX, 0).uniforms_f64(0, 1)[0].to_bits());
    let written = masking.order.write(denoiser, &canvases, &sampler, &mut draws)?;
    let finished = chosen.into_iter().zip(written);
    Ok(finished.map(|(chosen, written)| preview(chosen, written, masking.mask_token_id, text_of)).collect())
}

/// Masks a document as fits its labels; `None` when nothing of it can be masked.
fn mask(
    document: &Candidate,
    masking: Masking<'_>,
    ratio: f64,
    order: &[usize],
) -> Result<Option<(PreviewMode, Canvas)>> {
    let Candidate { ids, labels, .. } = document;
    let has_prompt = labels.contains(&IGNORE_INDEX);
    let (mode, canvas) = if matches!(masking.order, WritingOrder::LeftToRight { .. }) {
        // Nothing predicts the first token.
        let (mode, positions): (_, Vec<usize>) = if has_prompt {
            (PreviewMode::Answer, (1..ids.len()).filter(|&i| labels[i] != IGNORE_INDEX).collect())
        } else {
            let rest = masked_count(ids.len() - 1, ratio)?;
            (PreviewMode::Continuation, (ids.len() - rest..ids.len()).collect())
        };
        if positions.is_empty() {
            return Ok(None);
        }
        (mode, Canvas::mask_positions(ids, &positions, masking.mask_token_id))
    } else if has_prompt {
        (PreviewMode::Answer, Canvas::answers(ids, labels, masking.mask_token_id))
    } else {
        (PreviewMode::Random, Canvas::random_masks(ids, ratio, masking.never_mask, order, masking.mask_token_id))
    };
    match canvas {
        Ok(canvas) => Ok(Some((mode, canvas))),
        // Cut before its answer, or made of special tokens only: another document serves better.
        Err(SampleError::NoAnswer { .. } | SampleError::NothingToMask { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn preview(
    (document, mode, canvas): (Candidate, PreviewMode, Canvas),
    written: Written,
    mask_token_id: i64,
    text_of: &TextOf<'_>,
) -> Preview {
    let masked_positions = canvas.masked_positions().to_vec();
    let outcomes = outcomes(&written.ids, &masked_positions, &document.ids, mask_token_id);
    let num_right = outcomes.iter().filter(|outcome| **outcome == TokenOutcome::Right).count();
    let piece = |(outcome, range)| Piece { outcome, text: text_of(&written.ids[range]) };
    Preview {
        document: document.document,
        mode,
        num_masked: masked_positions.len(),
        mask_ratio: masked_positions.len() as f64 / document.ids.len() as f64,
        accuracy: num_right as f64 / masked_positions.len().max(1) as f64,
        original: text_of(&document.ids),
        masked: text_of(canvas.ids()),
        generated: text_of(&written.ids),
        pieces: spans(&outcomes).into_iter().map(piece).collect(),
        ids: document.ids,
        generated_ids: written.ids,
        masked_positions,
        nfe: written.nfe,
    }
}

/// The documents of a row that are long enough.
fn documents_of(row: &Batch) -> Vec<Candidate> {
    let long = row.documents.iter().filter(|document| document.len >= SHORTEST);
    long.map(|document| {
        let slots = slots_of(row, document);
        let wide = |values: &[i32]| values.iter().copied().map(i64::from).collect();
        Candidate { document: document.id, ids: wide(&row.ids[slots.clone()]), labels: wide(&row.labels[slots]) }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::MemoryRows;
    use tch::{Kind, Tensor};

    const MASK: i64 = 9;
    const MASKING: Masking<'static> = Masking { mask_token_id: MASK, never_mask: &[0], order: WritingOrder::Anywhere };

    /// Ids 0, then 2, 3, 1, 2, ...; the first `n_prompt` are no targets.
    fn document(len: i32, n_prompt: usize) -> (Vec<i32>, Vec<i32>) {
        let ids: Vec<i32> = (0..len).map(|i| if i == 0 { 0 } else { 1 + i % 3 }).collect();
        let labels = ids.iter().enumerate().map(|(i, &id)| if i < n_prompt { -100 } else { id }).collect();
        (ids, labels)
    }

    /// Predicts token 2 everywhere.
    fn two(ids: &Tensor) -> Tensor {
        let (rows, len) = ids.size2().unwrap();
        let logits = Tensor::from_slice(&[0f32, 0., 5., 0., 0., 0., 0., 0., 0., 0.]);
        logits.expand([rows, len, 10], false).to_kind(Kind::Float)
    }

    fn generate(documents: &[(Vec<i32>, Vec<i32>)], step: u64) -> Vec<Preview> {
        generate_in(WritingOrder::Anywhere, documents, step)
    }

    fn generate_in(order: WritingOrder, documents: &[(Vec<i32>, Vec<i32>)], step: u64) -> Vec<Preview> {
        let config = PreviewConfig { count: 3, steps: 4, max_length: 20, ..PreviewConfig::default() };
        let text_of = |ids: &[i64]| ids.iter().map(ToString::to_string).collect::<String>();
        let rows = MemoryRows::new(40, documents).unwrap();
        generate_previews(&two, &rows, &config, Masking { order, ..MASKING }, (1, step), &text_of).unwrap()
    }

    #[test]
    fn an_sft_document_hides_its_answer_and_a_text_hides_random_tokens() {
        let [answer] = &generate(&[document(12, 5)], 7)[..] else { panic!("one document, one sample") };
        assert_eq!((answer.mode, answer.document, answer.num_masked), (PreviewMode::Answer, 0, 7));
        assert_eq!(answer.masked, "023129999999");
        assert_eq!(answer.generated, "023122222222");
        assert_eq!(answer.pieces[0], Piece { outcome: TokenOutcome::Unchanged, text: "02312".to_owned() });
        assert_eq!(answer.pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), answer.generated);
        let right = answer.masked_positions.iter().filter(|&&p| answer.ids[p] == 2).count();
        assert!((answer.accuracy - right as f64 / 7.0).abs() < 1e-12);

        let [text] = &generate(&[document(40, 0)], 7)[..] else { panic!("one document, one sample") };
        assert_eq!((text.mode, text.ids.len()), (PreviewMode::Random, 20));
        assert!(!text.masked_positions.contains(&0) && text.num_masked > 0, "{text:?}");
    }

    #[test]
    fn an_autoregressive_model_continues_a_text_and_writes_answers_token_by_token() {
        let order = WritingOrder::LeftToRight { logits_shift: true };
        let [text] = &generate_in(order, &[document(40, 0)], 7)[..] else { panic!("one document, one sample") };
        assert_eq!(text.mode, PreviewMode::Continuation);
        assert_eq!(text.masked_positions, (20 - text.num_masked..20).collect::<Vec<_>>());
        assert_eq!((text.nfe, text.masked_positions[0] > 0), (text.num_masked, true));
        let [answer] = &generate_in(order, &[document(12, 5)], 7)[..] else { panic!("one document, one sample") };
        assert_eq!((answer.mode, answer.nfe, answer.generated.as_str()), (PreviewMode::Answer, 7, "023122222222"));
    }

    #[test]
    fn short_documents_and_answers_beyond_the_cut_are_passed_over() {
        assert_eq!(generate(&[document(9, 0), document(40, 30)], 1), []);
        assert_eq!(generate(&[], 1), []);
    }

    #[test]
    fn samples_follow_from_the_seed_and_the_step() {
        let documents: Vec<_> = (0..50).flat_map(|_| [document(15, 0), document(15, 4)]).collect();
        assert_eq!(generate(&documents, 5), generate(&documents, 5));
        assert_ne!(generate(&documents, 5), generate(&documents, 6));
        assert_eq!(generate(&documents, 5).len(), 3);
    }
}
