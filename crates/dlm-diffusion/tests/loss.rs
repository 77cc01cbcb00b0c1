//! The loss at its edges: nothing masked, nothing but padding, numbers that are not finite, ranges that are no bound.

mod common;

use common::{MASK, Toy, VOCAB};
use dlm_diffusion::{
    Accumulation, CleanBatch, Denoiser, DenoiserInput, DiffusionError, ForwardProcess, Head, LossNormalization,
    MaskPolicy, MaskRange, NoiseSchedule, NoisedBatch, Objective, Result, StepMetrics, diffusion_loss,
};
use tch::{Device, Kind, Tensor};

const LINEAR: NoiseSchedule = NoiseSchedule::Linear { eps: 1e-3 };
const COSINE: NoiseSchedule = NoiseSchedule::Cosine { eps: 1e-3 };

fn noise(schedule: NoiseSchedule, segments: [i64; 4], uniform: f32) -> NoisedBatch {
    let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3, 4, 5]]))
        .and_then(|clean| clean.with_segments(Tensor::from_slice(&segments).unsqueeze(0)))
        .unwrap();
    let process = ForwardProcess::new(schedule, MaskPolicy::new(MASK));
    process
        .noise(
            clean,
            &Tensor::from_slice2(&[[0.5f32]]),
            &Tensor::full([1, 4], f64::from(uniform), (Kind::Float, Device::Cpu)),
        )
        .unwrap()
}

fn metric(metrics: &StepMetrics, name: &str) -> Option<f64> {
    metrics.named().into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Every token is as likely as any other.
fn uniform_denoiser(ids: &Tensor) -> Tensor {
    Tensor::zeros([ids.size()[0], ids.size()[1], VOCAB], (Kind::Float, Device::Cpu))
}

#[test]
fn a_batch_without_masked_tokens_has_a_loss_of_zero_with_a_graph_to_every_parameter() {
    let batch = noise(LINEAR, [0, 1, 1, 0], 0.9);
    let denoiser = Toy::new(1, None);
    let output =
        diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Masked), &batch.counts()).unwrap();
    assert_eq!(output.loss.double_value(&[]), 0.0);
    output.loss.backward();
    assert!(denoiser.parameters().iter().all(|parameter| parameter.grad().defined()));
    assert_eq!(denoiser.take_gradient().abs().max().double_value(&[]), 0.0);
    assert_eq!(metric(&output.metrics, "nelbo"), Some(0.0));
}

#[test]
fn a_batch_of_padding_does_not_call_the_denoiser() {
    let batch = noise(LINEAR, [0; 4], 0.1);
    let denoiser = |_: &Tensor| -> Tensor { panic!("called") };
    let objective = Objective::new(LossNormalization::Token);
    let output = diffusion_loss(&denoiser, &batch, &objective, &batch.counts()).unwrap();
    assert_eq!((output.loss.double_value(&[]), output.loss.requires_grad()), (0.0, false));
    assert_eq!(metric(&output.metrics, "mask_ratio"), Some(0.0));
    let objective = objective.accumulated(Accumulation::MicroBatch);
    let output = diffusion_loss(&denoiser, &batch, &objective, &batch.counts()).unwrap();
    assert!(output.metrics.named().is_empty());
}

#[test]
fn a_uniform_denoiser_costs_the_logarithm_of_the_vocabulary_and_its_bound_is_weighted_by_the_schedule() {
    for schedule in [LINEAR, COSINE] {
        let batch = noise(schedule.clone(), [1, 1, 1, 0], 0.1);
        let output =
            diffusion_loss(&uniform_denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts())
                .unwrap();
        let ln_vocab = (VOCAB as f64).ln();
        let close = |name, expected: f64| {
            let found = metric(&output.metrics, name).unwrap();
            assert!((found - expected).abs() < 1e-5 * expected, "{name}: {found}, expected {expected}");
        };
        close("ce_loss", ln_vocab);
        close("nelbo", ln_vocab * schedule.elbo_weight(0.5));
        close("mask_ratio", 0.75);
        close("avg_p_mask", schedule.p_mask(0.5));
        let weight = if schedule == LINEAR { 1.0 / schedule.p_mask(0.5) } else { schedule.elbo_weight(0.5) };
        close("loss", ln_vocab * weight);
        close("importance_weight_avg", weight);
    }
}

#[test]
fn a_restricted_mask_ratio_has_no_bound() {
    let range = MaskRange::new(&LINEAR, Some(0.1), None).unwrap();
    let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).within(range);
    let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3]])).unwrap();
    let (t, uniform) = (Tensor::from_slice2(&[[0.5f32]]), Tensor::from_slice2(&[[0.1f32, 0.1]]));
    let batch = process.noise(clean, &t, &uniform).unwrap();
    let output =
        diffusion_loss(&uniform_denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts()).unwrap();
    assert_eq!(metric(&output.metrics, "nelbo"), None);
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_names_the_row() {
    let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK));
    let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3], [4, 5]])).unwrap();
    for (uniform, row) in [(0.1, 1), (0.9, 0)] {
        let uniform = Tensor::full([2, 2], uniform, (Kind::Float, Device::Cpu));
        let clean = CleanBatch::new(clean.ids().copy()).unwrap();
        let batch = process.noise(clean, &Tensor::from_slice2(&[[0.5f32], [0.5]]), &uniform).unwrap();
        // NaN in the row that is looked at: the second when all is masked, the first when the loss only needs a graph.
        let denoiser = |ids: &Tensor| {
            let logits = uniform_denoiser(ids);
            let _ = logits.get(row).fill_(f64::NAN);
            logits
        };
        let found = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts());
        assert!(
            matches!(found, Err(DiffusionError::NotFinite { what: "loss", row: named, .. }) if named == row),
            "{found:?}"
        );
    }
}

#[test]
fn a_closure_that_gives_another_shape_is_refused() {
    let batch = noise(LINEAR, [1; 4], 0.1);
    let denoiser = |ids: &Tensor| uniform_denoiser(ids).narrow(1, 0, 1);
    let found = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts());
    assert!(matches!(found, Err(DiffusionError::ShapeMismatch { name: "logits", .. })));
}

/// Checks what it is asked.
struct Asked;

impl Denoiser for Asked {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> Result<Tensor> {
        assert_eq!(Vec::<i64>::try_from(input.wanted.unwrap()).unwrap(), [1, 2]);
        assert_eq!(Vec::<i64>::try_from(input.position_ids.unwrap().flatten(0, 1)).unwrap(), [0, 0, 1, 0]);
        assert_eq!(Vec::<f32>::try_from(input.t.unwrap()).unwrap(), [0.5]);
        Ok(Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)))
    }

    fn head(&self) -> &dyn Head {
        self
    }
}

impl Head for Asked {
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(Tensor::zeros([hidden.size()[0], VOCAB], (Kind::Float, Device::Cpu)))
    }
}

#[test]
fn a_denoiser_is_asked_for_masked_positions_only_with_positions_of_each_document_and_the_timestep_of_the_row() {
    let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3, 4, 5]]))
        .and_then(|clean| clean.with_segments(Tensor::from_slice2(&[[1i64, 2, 2, 3]])))
        .unwrap();
    let uniform = Tensor::from_slice2(&[[0.9f32, 0.1, 0.1, 0.9]]);
    let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK));
    let batch = process.noise(clean, &Tensor::from_slice2(&[[0.5f32]]), &uniform).unwrap();
    diffusion_loss(&Asked, &batch, &Objective::new(LossNormalization::Token), &batch.counts()).unwrap();
}
