//! Evaluation: the same loss on validation rows, and the bound on their likelihood, with noise that is the same every time.

use crate::{
    config::EvaluationConfig,
    data::RowSource,
    device_batch::slots_of,
    error::{Result, TrainError},
    metrics::{Metrics, prefixed},
    noise::KeyedNoise,
    objective::ObjectiveConfig,
    step::NoisedWindow,
};
use dlm_data::{Batch, Cursor, ReaderConfig};
use dlm_diffusion::{
    Accumulation, Denoiser, DiffusionError, PackingIsolation, StepMetrics, WindowCounts,
    evaluate::{BoundConfig, EvalDocument, autoregressive, bound},
};
use tch::Device;

/// Batches that are read while another is scored.
const READ_AHEAD: usize = 2;

/// Scores validation rows: every metric of training under `eval/`, and what follows from the bound.
///
/// Timesteps are spread evenly over the documents and masks follow from the seed alone, so that two evaluations differ only by the
/// weights, and nothing of the run's own noise is used up. The loss is normalised over all rows together, whatever
/// `micro_batch_size` is. `step` is for an error message.
///
/// The bound is estimated document by document with [`bound`], by exact mask counts and without `eps`, so it holds whatever
/// mask ratios are trained; an autoregressive objective is scored exactly by [`autoregressive`]. Where rows are units the
/// bound is the one that the masks of the loss give.
///
/// - `eval/nelbo`: the bound in nats per token
/// - `eval/nelbo_stderr`: its standard error over documents, and `eval/nelbo_mc_error` the part of it that is due to masks alone
/// - `eval/perplexity`: `exp(nelbo)`, which bounds the perplexity from above
/// - `eval/bits_per_byte`: the bound per byte of text, where [`EvaluationConfig::tokens_per_byte`] is known
///
/// # Errors
/// Those of reading the rows, and [`TrainError::NotFinite`](crate::TrainError::NotFinite).
pub fn evaluate(
    denoiser: &dyn Denoiser,
    device: Device,
    rows: &dyn RowSource,
    objective: &ObjectiveConfig,
    config: &EvaluationConfig,
    seed: u64,
    step: u64,
) -> Result<Metrics> {
    let process = objective.process()?;
    let by_document = objective.packing_isolation == PackingIsolation::Document;
    let (mut documents, mut ids) = (Vec::new(), Vec::new());
    let tokens_per_byte = config.tokens_per_byte;
    let loss = objective.loss().accumulated(Accumulation::Global);
    let noise = KeyedNoise::evaluation(seed);
    // Twice over the rows: the loss is divided by counts of all of them, and masking again costs less than keeping every batch.
    let mut counts = WindowCounts::default();
    for_each_batch(rows, config, &mut |batch| {
        if by_document {
            documents.extend(eval_documents(&batch));
            ids.extend(batch.documents.iter().map(|document| (document.ordinal as i64, document.id)));
        }
        counts += NoisedWindow::new(&[batch], 0, &process, &noise)?.counts();
        Ok(())
    })?;
    let mut metrics = StepMetrics::default();
    let _no_grad = tch::no_grad_guard();
    for_each_batch(rows, config, &mut |batch| {
        let window = NoisedWindow::new(&[batch], 0, &process, &noise)?.within(counts);
        for other in window.score(denoiser, device, &loss, step)? {
            metrics.merge(&other);
        }
        Ok(())
    })?;
    let mut named = prefixed("eval", metrics.named());
    let mut nelbo = metrics.nelbo.and_then(|nelbo| nelbo.value());
    if by_document {
        named.retain(|(name, _)| name != "eval/nelbo");
        let config = BoundConfig {
            never_mask: objective.never_mask.clone(),
            passes: config.passes,
            batch_size: config.micro_batch_size,
            block_length: process.block_length,
            forbid_mask: objective.forbid_mask,
            seed,
            ..BoundConfig::new(objective.mask_token_id)
        };
        let report = match objective.autoregressive {
            Some(logits_shift) => autoregressive(denoiser, &documents, logits_shift, &config),
            None => bound(denoiser, &documents, &config),
        };
        let report = report.map_err(|error| name_document(error, &ids, step))?;
        nelbo = Some(report.nats_per_token);
        named.push(("eval/nelbo".to_owned(), report.nats_per_token));
        named.push(("eval/nelbo_mc_error".to_owned(), report.monte_carlo_error));
        named.extend(report.standard_error.map(|error| ("eval/nelbo_stderr".to_owned(), error)));
    }
    if let Some(nelbo) = nelbo {
        named.push(("eval/perplexity".to_owned(), nelbo.exp()));
        if let Some(tokens_per_byte) = tokens_per_byte {
            named.push(("eval/bits_per_byte".to_owned(), nelbo * tokens_per_byte / std::f64::consts::LN_2));
        }
    }
    Ok(named)
}

/// The documents in the rows of a batch; a piece of one that was cut is one by itself, with masks of its own.
fn eval_documents(batch: &Batch) -> impl Iterator<Item = EvalDocument> + '_ {
    batch.documents.iter().map(|document| {
        let slots = slots_of(batch, document);
        EvalDocument {
            // The number of its place in the order tells pieces apart.
            id: document.ordinal as i64,
            ids: batch.ids[slots.clone()].iter().map(|&id| i64::from(id)).collect(),
            is_target: batch.labels[slots].iter().map(|&label| label != dlm_data::IGNORE_INDEX).collect(),
            bytes: None,
        }
    })
}

/// Says by its id which document it is; `ids` are those of the numbers by which it was scored.
fn name_document(error: DiffusionError, ids: &[(i64, i64)], step: u64) -> TrainError {
    match error {
        DiffusionError::NotFiniteDocument { document } => {
            let named = ids.iter().filter(|(ordinal, _)| *ordinal == document);
            TrainError::NotFinite { what: "loss", step, documents: named.map(|(_, id)| *id).collect() }
        }
        other => other.into(),
    }
}

/// Reads the rows in their own order; where [`EvaluationConfig::max_rows`] leaves some out, a part that is the same in every
/// evaluation of every run.
fn for_each_batch(
    rows: &dyn RowSource,
    config: &EvaluationConfig,
    visit: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let wanted = config.max_rows.unwrap_or(usize::MAX).min(rows.rows());
    let reader = ReaderConfig {
        micro_batch_size: config.micro_batch_size,
        shuffle: wanted < rows.rows(),
        read_ahead: READ_AHEAD,
        ..ReaderConfig::default()
    };
    let mut windows = rows.windows(&reader, Cursor::default())?;
    let mut left = wanted;
    while left > 0 {
        for mut batch in windows.next_window()?.micro_batches {
            batch.truncate(left);
            left -= batch.rows;
            visit(batch)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryRows;
    use dlm_diffusion::{DenoiserInput, Head};
    use std::cell::Cell;
    use tch::{Kind, Tensor};

    const VOCAB: i64 = 12;
    const MASK: i64 = 11;

    /// Knows nothing, and is no number where it sees the token, but for its first pass.
    struct Broken {
        at: i64,
        is_first: Cell<bool>,
    }

    impl Denoiser for Broken {
        fn hidden_states(&self, input: &DenoiserInput<'_>) -> std::result::Result<Tensor, DiffusionError> {
            let (batch, seq_len) = input.ids.size2()?;
            let sees = input.ids.eq(self.at).any_dim(1, true).expand([batch, seq_len], false).flatten(0, 1);
            let sees = input.wanted.map_or_else(|| sees.shallow_clone(), |wanted| sees.index_select(0, wanted));
            let states = Tensor::zeros([sees.size()[0], VOCAB], (Kind::Float, Device::Cpu));
            let is_first = self.is_first.replace(false);
            Ok(if is_first { states } else { states.masked_fill(&sees.unsqueeze(1), f64::NAN) })
        }

        fn head(&self) -> &dyn Head {
            &Plain
        }
    }

    struct Plain;

    impl Head for Plain {
        fn logits(&self, hidden: &Tensor) -> std::result::Result<Tensor, DiffusionError> {
            Ok(hidden.shallow_clone())
        }
    }

    #[test]
    fn a_document_whose_bound_is_no_number_is_named_by_its_id_where_only_some_are_evaluated() {
        let texts: Vec<Vec<i32>> = (0..10).map(|token| vec![token; 6]).collect();
        let rows = MemoryRows::of_texts(6, &texts).unwrap();
        let config =
            EvaluationConfig { max_rows: Some(5), micro_batch_size: 5, passes: 4, ..EvaluationConfig::default() };
        let evaluated = |token: i64| {
            let denoiser = Broken { at: token, is_first: Cell::new(true) };
            evaluate(&denoiser, Device::Cpu, &rows, &ObjectiveConfig::new(MASK), &config, 1, 3)
        };
        let mut named = 0;
        for token in 0..10 {
            match evaluated(token) {
                Ok(_) => {}
                Err(TrainError::NotFinite { documents, step: 3, .. }) => {
                    assert_eq!(documents, [token]);
                    named += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(named, 5);
    }
}
