//! Evaluation: the same loss on validation rows, with noise that is the same every time.

use crate::{
    config::EvaluationConfig,
    data::RowSource,
    error::Result,
    metrics::{Metrics, prefixed},
    noise::KeyedNoise,
    objective::ObjectiveConfig,
    step::NoisedWindow,
};
use dlm_data::{Batch, Cursor, ReaderConfig};
use dlm_diffusion::{Accumulation, Denoiser, StepMetrics, WindowCounts};
use tch::Device;

/// Batches that are read while another is scored.
const READ_AHEAD: usize = 2;

/// Scores validation rows: every metric of training under `eval/`, and what follows from the bound.
///
/// Timesteps are spread evenly over the documents and masks follow from the seed alone, so that two evaluations differ only by the
/// weights, and nothing of the run's own noise is used up. The loss is normalised over all rows together, whatever
/// `micro_batch_size` is. `step` is for an error message.
///
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
    let loss = objective.loss().accumulated(Accumulation::Global);
    let noise = KeyedNoise::evaluation(seed);
    // Twice over the rows: the loss is divided by counts of all of them, and masking again costs less than keeping every batch.
    let mut counts = WindowCounts::default();
    for_each_batch(rows, config, &mut |batch| {
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
    if let Some(nelbo) = metrics.nelbo.and_then(|nelbo| nelbo.value()) {
        named.push(("eval/perplexity".to_owned(), nelbo.exp()));
        if let Some(tokens_per_byte) = config.tokens_per_byte {
            named.push(("eval/bits_per_byte".to_owned(), nelbo * tokens_per_byte / std::f64::consts::LN_2));
        }
    }
    Ok(named)
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
