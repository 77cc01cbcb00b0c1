//! Whatever shapes and numbers are given, what comes back is a result or an error, never a panic.

mod common;

use common::{MASK, VOCAB};
use dlm_diffusion::{
    CleanBatch, DiffusionError, ForwardProcess, IGNORE_INDEX, LossNormalization, LossWeight, MaskPolicy, Masking,
    NoiseSchedule, Objective, ScheduleConfig, ScheduleName, TokenLoss, Views, WeightRule, diffusion_loss,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn shapes() -> impl Strategy<Value = Vec<i64>> {
    proptest::collection::vec(0i64..4, 0..4)
}

fn views() -> impl Strategy<Value = Views> {
    prop_oneof![Just(Views::One), Just(Views::Pair), Just(Views::Autoregressive { logits_shift: true })]
}

proptest! {
    #[test]
    fn tensors_of_any_shape_are_noised_or_refused(
        ids in shapes(), t in shapes(), uniform in shapes(), labels in shapes(), segments in shapes(), exact: bool, views in views(),
    ) {
        let whole = |shape: &[i64]| Tensor::ones(shape, (Kind::Int64, Device::Cpu));
        let float = |shape: &[i64]| Tensor::full(shape, 0.5, (Kind::Float, Device::Cpu));
        let clean = CleanBatch::new(whole(&ids))
            .and_then(|clean| clean.with_labels(whole(&labels)))
            .and_then(|clean| clean.with_segments(whole(&segments)));
        let Ok(clean) = clean else { return Ok(()) };
        prop_assert!(labels == ids && segments == ids && ids.len() == 2);
        let masking = if exact { Masking::ExactCount } else { Masking::Bernoulli };
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK)).masking(masking).viewed(views);
        let fits = uniform == ids && (t == ids || t == [ids[0], 1]);
        let is_masked = !matches!(views, Views::Autoregressive { .. });
        let found = process.noise_views(clean, &float(&t), &float(&uniform));
        prop_assert_eq!(found.is_ok(), fits || !is_masked, "{:?}", found.err());
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name(value in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-0.1), Just(1.1), Just(-1e300)]) {
        for name in ScheduleName::ALL {
            let found = NoiseSchedule::new(name, value);
            let is_refused = matches!(found, Err(DiffusionError::OutOfRange { name: "eps", .. }));
            prop_assert!(is_refused, "{name}: {found:?}");
        }
        let config = ScheduleConfig { power: Some(value), ..ScheduleConfig::new(ScheduleName::Polynomial, 1e-3) };
        prop_assert_eq!(config.build().is_ok(), value == 1.1);
        let objective = Objective::new(LossNormalization::Token);
        let scoring = |token_loss| objective.scoring(token_loss).validate();
        let smoothed = scoring(TokenLoss { label_smoothing: value, ..TokenLoss::default() });
        prop_assert!(smoothed.is_err());
        prop_assert_eq!(scoring(TokenLoss { z_loss: value, ..TokenLoss::default() }).is_ok(), value == 1.1);
        prop_assert!(objective.weighted(WeightRule::from(LossWeight::Cart).with_cart_p(value)).validate().is_err());
        prop_assert!(objective.weighted(WeightRule::elbo().with_offset(value)).validate().is_err());
        prop_assert_eq!(objective.weighted(WeightRule::elbo().capped(value)).validate().is_ok(), value == 1.1);
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_named_with_its_place(row in 0i64..3, position in 0i64..4, id in VOCAB..VOCAB + 90) {
        let ids = Tensor::ones([3, 4], (Kind::Int64, Device::Cpu));
        let _ = ids.get(row).get(position).fill_(id);
        let clean = CleanBatch::new(ids).unwrap();
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1.0 }, MaskPolicy::new(MASK));
        let half = Tensor::full([3, 4], 0.5, (Kind::Float, Device::Cpu));
        let batch = process.noise(clean, &half, &half).unwrap();
        let denoiser = |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], VOCAB], (Kind::Float, Device::Cpu));
        let found = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts());
        let expected = (id, row, position, VOCAB);
        match found {
            Err(DiffusionError::IdBeyondVocabulary { id, row, position, vocab_size }) => {
                prop_assert_eq!((id, row, position, vocab_size), expected);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// Trap 6, for every way to look at a batch and every normalisation.
#[test]
fn a_batch_in_which_nothing_is_scored_has_a_loss_of_zero_with_a_graph_to_the_logits() {
    let normalizations = [
        LossNormalization::Token,
        LossNormalization::Masked,
        LossNormalization::Sequence,
        LossNormalization::Batch,
        LossNormalization::Slots,
    ];
    for views in [Views::One, Views::Pair, Views::Autoregressive { logits_shift: false }] {
        for normalization in normalizations {
            // No target anywhere.
            let clean = CleanBatch::new(Tensor::from_slice2(&[[2i64, 3]]))
                .and_then(|clean| clean.with_labels(Tensor::from_slice2(&[[IGNORE_INDEX; 2]])))
                .unwrap();
            let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK)).viewed(views);
            let half = Tensor::from_slice2(&[[0.5f32, 0.5]]);
            let logits = Tensor::zeros([1, 2, VOCAB], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let denoiser = |_: &Tensor| logits.shallow_clone();
            for batch in process.noise_views(clean, &half, &half).unwrap() {
                let output =
                    diffusion_loss(&denoiser, &batch, &Objective::new(normalization), &batch.counts()).unwrap();
                assert_eq!(output.loss.double_value(&[]), 0.0);
                output.loss.backward();
                assert_eq!(logits.grad().abs().max().double_value(&[]), 0.0);
            }
        }
    }
}

/// Trap 2: the share of masked tokens is the schedule's, for every schedule and by both ways to mask.
#[test]
fn as_many_tokens_are_masked_as_every_schedule_says() {
    for name in ScheduleName::ALL {
        let schedule = NoiseSchedule::new(name, 1e-3).unwrap();
        for (t, masking) in [
            (0.3f32, Masking::Bernoulli),
            (0.8, Masking::Bernoulli),
            (0.3, Masking::ExactCount),
            (0.8, Masking::ExactCount),
        ] {
            let n = 4_000;
            let process = ForwardProcess::new(schedule.clone(), MaskPolicy::new(MASK)).masking(masking);
            let clean = CleanBatch::new(Tensor::ones([1, n], (Kind::Int64, Device::Cpu))).unwrap();
            let key = dlm_diffusion::NoiseKey::new(5, dlm_diffusion::Purpose::Mask, 0);
            let uniform = Tensor::from_slice(&key.uniforms(0, n as usize)).unsqueeze(0);
            let batch = process.noise(clean, &Tensor::from_slice2(&[[t]]), &uniform).unwrap();
            let (p, rate) = (schedule.p_mask(t.into()), batch.counts().masked as f64 / n as f64);
            let error =
                if masking == Masking::ExactCount { 1.0 / n as f64 } else { 4.0 * (p * (1.0 - p) / n as f64).sqrt() };
            assert!((rate - p).abs() <= error + 1e-6, "{name} at {t}: {rate}, expected {p}");
        }
    }
}

/// Trap 9: in float32 the largest uniform below 1 caps Gumbel noise at about 16.6; 53 bits reach far beyond.
#[test]
fn gumbel_noise_has_draws_of_53_bits_to_come_from() {
    let key = dlm_diffusion::NoiseKey::new(5, dlm_diffusion::Purpose::Sampling, 0);
    let draws = key.uniforms_f64(0, 4096);
    let unit24 = 2f64.powi(24);
    assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
    assert!(
        draws.iter().filter(|u| (**u * unit24).fract() != 0.0).count() > 4000,
        "the draws are finer than float32's"
    );
}
