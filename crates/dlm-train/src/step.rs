//! One optimiser step: a window of micro-batches is masked, scored, and turned into one change of the weights.

use crate::{
    device_batch::{has_prompts, noised_views, num_tokens},
    error::{Result, TrainError},
    noise::NoiseSource,
    optimizer::AdamW,
};
use dlm_data::{Batch, Document};
use dlm_diffusion::{
    Denoiser, DiffusionError, ForwardProcess, NoisedBatch, Objective, StepMetrics, WindowCounts, diffusion_loss,
};
use tch::Device;

/// The micro-batches of one optimiser step after masking, and what they count together.
///
/// All of them are masked before the first is scored: the loss is divided by counts of the whole step.
#[derive(Debug)]
pub struct NoisedWindow {
    micro_batches: Vec<NoisedBatch>,
    /// The documents of each micro-batch.
    documents: Vec<Vec<Place>>,
    counts: WindowCounts,
    has_prompts: bool,
    num_tokens: u64,
}

impl NoisedWindow {
    /// Masks the micro-batches of one optimiser step.
    ///
    /// # Errors
    /// Those of [`noised_views`].
    pub fn new(batches: &[Batch], epoch: u64, process: &ForwardProcess, noise: &dyn NoiseSource) -> Result<Self> {
        let (mut micro_batches, mut documents) = (Vec::new(), Vec::new());
        for batch in batches {
            let of_batch: Vec<Place> = batch.documents.iter().map(Place::of).collect();
            for view in noised_views(batch, epoch, process, noise)? {
                micro_batches.push(view);
                documents.push(of_batch.clone());
            }
        }
        Ok(Self {
            counts: micro_batches.iter().map(NoisedBatch::counts).sum(),
            documents,
            has_prompts: batches.iter().any(has_prompts),
            num_tokens: batches.iter().map(num_tokens).sum(),
            micro_batches,
        })
    }

    /// What the micro-batches count together.
    #[must_use]
    pub fn counts(&self) -> WindowCounts {
        self.counts
    }

    /// The same window as part of a larger whole, by whose counts the loss is divided.
    #[must_use]
    pub fn within(mut self, counts: WindowCounts) -> Self {
        self.counts = counts;
        self
    }

    /// Tokens that are no padding.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Scores every micro-batch and adds its gradient to what the parameters hold; the metrics of each, in order.
    ///
    /// Under [`tch::no_grad`] there is no gradient, which is how evaluation uses it. `step` is for the error message.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] with the document, and what the denoiser refuses.
    pub fn score(
        &self,
        denoiser: &dyn Denoiser,
        device: Device,
        objective: &Objective,
        step: u64,
    ) -> Result<Vec<StepMetrics>> {
        let mut metrics = Vec::with_capacity(self.micro_batches.len());
        for (noised, documents) in self.micro_batches.iter().zip(&self.documents) {
            let on_device = noised.to_device(device);
            let output = diffusion_loss(denoiser, &on_device, objective, &self.counts)
                .map_err(|error| name_documents(error, documents, step))?;
            // A micro-batch of nothing but padding has no graph.
            if output.loss.requires_grad() {
                output.loss.f_backward()?;
            }
            metrics.push(if self.has_prompts { output.metrics } else { output.metrics.without_answers() });
        }
        Ok(metrics)
    }

    /// Every document trained on.
    fn all_documents(&self) -> Vec<i64> {
        self.documents.iter().flatten().map(|place| place.id).collect()
    }
}

/// What one optimiser step reports.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The metrics of all micro-batches together.
    pub metrics: StepMetrics,
    /// The metrics of each micro-batch.
    pub micro_batches: Vec<StepMetrics>,
    /// Joint 2-norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that were no padding.
    pub num_tokens: u64,
}

/// One optimiser step at rate `lr`: forward and backward for each micro-batch, clipping, AdamW.
///
/// Works with any denoiser whose parameters the optimiser was made of. `step`, counted from 1, is for the error message.
///
/// # Errors
/// [`TrainError::NotFinite`] when loss or gradient are not finite; the weights are then untouched. What the denoiser and libtorch refuse.
pub fn optimizer_step(
    denoiser: &dyn Denoiser,
    device: Device,
    optimizer: &mut AdamW,
    window: &NoisedWindow,
    objective: &Objective,
    lr: f64,
    step: u64,
) -> Result<StepReport> {
    optimizer.zero_grad()?;
    let micro_batches = window.score(denoiser, device, objective, step)?;
    let grad_norm = optimizer.clip_gradients()?;
    if !grad_norm.is_finite() {
        return Err(TrainError::NotFinite { what: "gradient", step, documents: window.all_documents() });
    }
    optimizer.step(lr)?;
    let mut metrics = StepMetrics::default();
    for other in &micro_batches {
        metrics.merge(other);
    }
    Ok(StepReport { metrics, micro_batches, grad_norm, num_tokens: window.num_tokens })
}

/// Where a document lies in its micro-batch.
#[derive(Debug, Clone, Copy)]
struct Place {
    row: i64,
    segment: i64,
    id: i64,
}

impl Place {
    fn of(document: &Document) -> Self {
        Self { row: document.row as i64, segment: i64::from(document.segment), id: document.id }
    }
}

/// Says which document it is whose loss is not finite.
fn name_documents(error: DiffusionError, documents: &[Place], step: u64) -> TrainError {
    match error {
        DiffusionError::NotFinite { what, row, document } => {
            let named = documents.iter().filter(|place| place.row == row && place.segment == document);
            TrainError::NotFinite { what, step, documents: named.map(|place| place.id).collect() }
        }
        other => other.into(),
    }
}
