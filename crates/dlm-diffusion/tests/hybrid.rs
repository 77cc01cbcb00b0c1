//! Hybrids: an autoregressive loss beside the masked one.

mod common;

use common::{MASK, Toy};
use dlm_diffusion::{
    Accumulation, AutoregressivePart, CleanBatch, DiffusionError, ForwardProcess, IGNORE_INDEX, LossNormalization,
    MaskPolicy, NoiseSchedule, NoisedBatch, Objective, StepMetrics, Views, WindowCounts, diffusion_loss,
};
use tch::{Kind, Tensor};

fn process() -> ForwardProcess {
    ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK).sparing([1]))
}

/// Two rows, one with padding and a prompt.
fn batch() -> (CleanBatch, Tensor, Tensor) {
    let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 5, 2, 7, 4], [1, 3, 8, 6, 0]]))
        .and_then(|batch| {
            let labels = [[1, 5, 2, 7, 4], [IGNORE_INDEX, IGNORE_INDEX, 8, 6, IGNORE_INDEX]];
            batch.with_labels(Tensor::from_slice2(&labels))
        })
        .and_then(|batch| batch.with_segments(Tensor::from_slice2(&[[1i64; 5], [1, 1, 1, 1, 0]])))
        .unwrap();
    let uniform = Tensor::from_slice2(&[[0.1f32, 0.1, 0.9, 0.2, 0.3], [0.9, 0.2, 0.1, 0.8, 0.0]]);
    (clean, Tensor::from_slice2(&[[0.5f32], [0.4]]), uniform)
}

fn views(process: &ForwardProcess) -> Vec<NoisedBatch> {
    let (clean, t, uniform) = batch();
    process.noise_views(clean, &t, &uniform).unwrap()
}

/// Loss, gradient and merged metrics of one optimiser step.
fn step(window: &[NoisedBatch], objective: &Objective) -> (f64, Tensor, StepMetrics) {
    let denoiser = Toy::new(5, None);
    let counts: WindowCounts = window.iter().map(NoisedBatch::counts).sum();
    let (mut loss, mut metrics) = (0.0, StepMetrics::default());
    for batch in window {
        let output = diffusion_loss(&denoiser, batch, objective, &counts).unwrap();
        output.loss.backward();
        loss += output.loss.double_value(&[]);
        metrics.merge(&output.metrics);
    }
    (loss, denoiser.take_gradient(), metrics)
}

#[test]
fn a_hybrid_loss_is_the_masked_one_and_so_much_of_the_autoregressive_one_each_averaged_by_itself() {
    let causal = process().viewed(Views::Autoregressive { logits_shift: false });
    let part = |weight| AutoregressivePart { weight, logits_shift: false };
    for views_of in [Views::One, Views::Pair] {
        for accumulation in [Accumulation::Global, Accumulation::MicroBatch] {
            for normalization in [
                LossNormalization::Token,
                LossNormalization::Masked,
                LossNormalization::Sequence,
                LossNormalization::Batch,
                LossNormalization::Slots,
            ] {
                let what = format!("{views_of:?} {accumulation:?} {normalization:?}");
                let objective = Objective::new(normalization).accumulated(accumulation);
                let masked = step(&views(&process().viewed(views_of)), &objective);
                let next = step(&views(&causal), &objective);
                for weight in [0.25, 2.0] {
                    let hybrid = process().viewed(views_of).beside(part(weight)).unwrap();
                    let found = step(&views(&hybrid), &objective);
                    assert!(
                        (found.0 - (masked.0 + weight * next.0)).abs() < 1e-5,
                        "{what}: {} and {}",
                        found.0,
                        masked.0
                    );
                    let gradient = &masked.1 + &next.1 * weight;
                    let error = (&found.1 - &gradient).abs().max().double_value(&[]);
                    assert!(error < 1e-5 * gradient.abs().max().double_value(&[]), "{what}: {error}");
                    let value = |metrics: &StepMetrics, wanted: &str| {
                        metrics.named().into_iter().find(|(name, _)| *name == wanted).map(|(_, value)| value)
                    };
                    // What is told of masked tokens is told of them alone.
                    for name in ["accuracy", "mask_ratio", "num_masked_tokens", "ce_loss", "nelbo"] {
                        assert_eq!(value(&found.2, name), value(&masked.2, name), "{what}: {name}");
                    }
                    assert_eq!(value(&found.2, "autoregressive_nll"), value(&next.2, "ce_loss"), "{what}");
                    assert!((value(&found.2, "loss").unwrap() - found.0).abs() < 1e-5, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_hybrid_in_blocks_continues_the_text_as_a_whole() {
    let objective = Objective::new(LossNormalization::Token);
    let part = AutoregressivePart { weight: 1.0, logits_shift: false };
    let blocks = process().in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap();
    let masked = step(&views(&blocks), &objective).0;
    let next = step(&views(&process().viewed(Views::Autoregressive { logits_shift: false })), &objective).0;
    let hybrid = step(&views(&blocks.beside(part).unwrap()), &objective).0;
    assert!((hybrid - masked - next).abs() < 1e-5, "{hybrid}, {masked} and {next}");
}

#[test]
fn a_weight_that_is_not_above_zero_and_a_second_autoregressive_loss_are_refused() {
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let found = process().beside(AutoregressivePart { weight, logits_shift: false });
        assert!(matches!(found, Err(DiffusionError::OutOfRange { name: "autoregressive_weight", .. })), "{weight}");
    }
    let causal = process().viewed(Views::Autoregressive { logits_shift: true });
    let found = causal.beside(AutoregressivePart { weight: 1.0, logits_shift: true });
    assert!(matches!(found, Err(DiffusionError::Conflict { .. })));
}

#[test]
fn a_batch_with_nothing_to_score_has_a_hybrid_loss_of_zero_with_a_graph() {
    let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3]]))
        .and_then(|clean| clean.with_labels(Tensor::from_slice2(&[[IGNORE_INDEX; 2]])))
        .unwrap();
    let half = Tensor::from_slice2(&[[0.5f32, 0.5]]);
    let part = AutoregressivePart { weight: 1.0, logits_shift: false };
    let window = process().beside(part).unwrap().noise_views(clean, &half, &half).unwrap();
    let (loss, gradient, _) = step(&window, &Objective::new(LossNormalization::Token));
    assert_eq!((loss, gradient.abs().sum(Kind::Double).double_value(&[])), (0.0, 0.0));
}
