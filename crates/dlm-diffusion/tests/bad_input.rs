//! Whatever shapes and numbers are given, what comes back is a result or an error, never a panic.

mod common;

use common::{MASK, VOCAB};
use dlm_diffusion::{
    CleanBatch, DiffusionError, ForwardProcess, IGNORE_INDEX, LastBlock, LossNormalization, LossWeight, MaskPolicy,
    MaskRange, Masking, NoiseSchedule, Objective, ScheduleConfig, ScheduleName, TokenLoss, Views, WeightRule,
    diffusion_loss,
    evaluate::{BoundConfig, EvalDocument, bound},
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
    #![proptest_config(ProptestConfig::with_cases(64))]

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
    fn mask_ratios_out_of_range_or_in_the_wrong_order_are_refused_by_name(
        min in prop_oneof![3 => -0.5f64..1.5, 1 => Just(f64::NAN)], max in prop_oneof![3 => -0.5f64..1.5, 1 => Just(f64::NAN)],
    ) {
        let eps = 0.01;
        let schedule = NoiseSchedule::Linear { eps };
        let fits = |ratio: f64| (0.0..=1.0).contains(&ratio);
        match MaskRange::new(&schedule, Some(min), Some(max)) {
            Ok(_) => prop_assert!(fits(min) && fits(max) && min <= max && max >= eps),
            Err(DiffusionError::OutOfRange { name: "min_mask_ratio", .. }) => prop_assert!(!fits(min)),
            Err(DiffusionError::OutOfRange { name: "max_mask_ratio", .. }) => prop_assert!(!fits(max) || max < eps),
            Err(DiffusionError::EmptyMaskRange { .. }) => prop_assert!(min > max),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn a_draw_or_timestep_that_is_no_number_between_0_and_1_is_refused_by_name(
        (rows, len) in (1i64..4, 1i64..6), place in 0usize..24, of_t: bool, exact: bool,
        wrong in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-0.01), Just(1.01)],
    ) {
        let good = Tensor::full([rows, len], 0.5, (Kind::Float, Device::Cpu));
        let bad = good.copy();
        let place = place as i64 % (rows * len);
        let _ = bad.get(place / len).get(place % len).fill_(wrong);
        let masking = if exact { Masking::ExactCount } else { Masking::Bernoulli };
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK)).masking(masking);
        let clean = CleanBatch::new(Tensor::ones([rows, len], (Kind::Int64, Device::Cpu))).unwrap();
        let (t, uniform) = if of_t { (&bad, &good) } else { (&good, &bad) };
        let expected = if of_t { "t" } else { "uniform" };
        let found = process.noise(clean, t, uniform).err();
        let is_named = matches!(found, Some(DiffusionError::OutOfRange { name, .. }) if name == expected);
        prop_assert!(is_named, "{found:?}");
    }

    #[test]
    fn a_label_that_is_no_token_is_refused_by_name((rows, len) in (1i64..4, 1i64..6), place in 0usize..24, label in -150i64..150) {
        let ids = Tensor::ones([rows, len], (Kind::Int64, Device::Cpu));
        let labels = ids.copy();
        let place = place as i64 % (rows * len);
        let _ = labels.get(place / len).get(place % len).fill_(label);
        match CleanBatch::new(ids).unwrap().with_labels(labels) {
            Ok(_) => prop_assert!(label >= 0 || label == IGNORE_INDEX),
            Err(DiffusionError::OutOfRange { name: "labels", value, .. }) => prop_assert_eq!(value, label as f64),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn a_document_that_blocks_do_not_divide_is_refused_with_its_place_unless_its_last_block_may_be_shorter(
        lengths in proptest::collection::vec(proptest::collection::vec(1usize..9, 0..4), 1..3), block_length in 1i64..6, pair: bool,
    ) {
        let seq_len = 25;
        let mut segments = Vec::new();
        let mut uneven = None;
        for (row, lengths) in lengths.iter().enumerate() {
            let begin = segments.len();
            for (i, &len) in lengths.iter().enumerate() {
                let position = segments.len() - begin;
                segments.extend(vec![i as i64 + 1; len]);
                if len as i64 % block_length != 0 {
                    uneven = uneven.or(Some((row as i64, position, len)));
                }
            }
            segments.resize(begin + seq_len, 0);
        }
        let shape = [lengths.len() as i64, seq_len as i64];
        let clean = || {
            let ids = Tensor::ones(shape, (Kind::Int64, Device::Cpu));
            CleanBatch::new(ids).and_then(|clean| clean.with_segments(Tensor::from_slice(&segments).view(shape))).unwrap()
        };
        let half = Tensor::full(shape, 0.5, (Kind::Float, Device::Cpu));
        let noise = |last_block| {
            let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(MASK));
            let process = process.in_blocks(block_length, last_block).unwrap().viewed(if pair { Views::Pair } else { Views::One });
            process.noise_views(clean(), &half, &half)
        };
        prop_assert!(noise(LastBlock::Shorter).is_ok());
        match noise(LastBlock::Whole) {
            Ok(_) => prop_assert_eq!(uneven, None),
            Err(DiffusionError::UnevenBlocks { row, position, len, .. }) => prop_assert_eq!(uneven, Some((row, position, len))),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn scores_that_are_not_finite_are_named_with_row_and_document(
        lengths in proptest::collection::vec(proptest::collection::vec(1usize..5, 1..4), 1..4), place in 0usize..60,
        wrong in prop_oneof![Just(f64::NAN), Just(f64::NEG_INFINITY), Just(f64::INFINITY)],
    ) {
        let seq_len = 16;
        let mut segments = Vec::new();
        for (row, lengths) in lengths.iter().enumerate() {
            lengths.iter().enumerate().for_each(|(i, &len)| segments.extend(vec![i as i64 + 1; len]));
            segments.resize((row + 1) * seq_len, 0);
        }
        let real: Vec<usize> = (0..segments.len()).filter(|&slot| segments[slot] > 0).collect();
        let slot = real[place % real.len()];
        let (row, position) = (slot / seq_len, slot % seq_len);
        let shape = [lengths.len() as i64, seq_len as i64];
        let clean = CleanBatch::new(Tensor::ones(shape, (Kind::Int64, Device::Cpu)))
            .and_then(|clean| clean.with_segments(Tensor::from_slice(&segments).view(shape)))
            .unwrap();
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1.0 }, MaskPolicy::new(MASK));
        let half = Tensor::full(shape, 0.5, (Kind::Float, Device::Cpu));
        let batch = process.noise(clean, &half, &half).unwrap();
        let denoiser = |ids: &Tensor| {
            let logits = Tensor::zeros([ids.size()[0], ids.size()[1], VOCAB], (Kind::Float, Device::Cpu));
            // The target's own score: any of the three makes its loss NaN or infinite.
            let _ = logits.get(row as i64).get(position as i64).get(1).fill_(wrong);
            logits
        };
        let found = diffusion_loss(&denoiser, &batch, &Objective::new(LossNormalization::Token), &batch.counts()).err();
        match found {
            Some(DiffusionError::NotFinite { row: named, document, .. }) => {
                prop_assert_eq!((named, document), (row as i64, segments[slot]));
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn documents_of_any_lengths_are_evaluated_or_refused(
        lengths in proptest::collection::vec(0usize..7, 0..4), flags in 0usize..7, max_len in 2usize..9, passes in 1usize..4,
        id in prop_oneof![4 => 0i64..VOCAB, 1 => VOCAB..VOCAB + 5],
    ) {
        let mut documents: Vec<EvalDocument> =
            lengths.iter().enumerate().map(|(i, &len)| EvalDocument::new(i as i64, vec![id; len])).collect();
        if let Some(document) = documents.first_mut() {
            document.is_target.resize(flags, true);
        }
        let denoiser = |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], VOCAB], (Kind::Float, Device::Cpu));
        let config = BoundConfig { passes, max_len: Some(max_len), ..BoundConfig::new(MASK) };
        let fits = lengths.first().is_none_or(|len| *len == flags);
        match bound(&denoiser, &documents, &config) {
            Ok(report) => prop_assert!(fits && id < VOCAB && report.tokens > 0 && report.nats_per_token.is_finite()),
            Err(DiffusionError::ShapeMismatch { name: "is_target", .. }) => prop_assert!(!fits),
            Err(DiffusionError::NothingToScore { .. }) => prop_assert!(fits && lengths.iter().all(|len| *len == 0)),
            Err(DiffusionError::DocumentBeyondVocabulary { document, id: named, vocab_size, .. }) => {
                prop_assert!(id >= VOCAB && lengths[document as usize] > 0);
                prop_assert_eq!((named, vocab_size), (id, VOCAB));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
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

#[test]
fn rows_without_a_token_are_refused() {
    for shape in [[0i64, 0], [0, 3], [3, 0]] {
        let found = CleanBatch::new(Tensor::ones(shape, (Kind::Int64, Device::Cpu)));
        assert!(matches!(found, Err(DiffusionError::ShapeMismatch { name: "ids", .. })), "{shape:?}");
    }
}

#[test]
fn negative_mask_tokens_segments_and_positions_are_refused_by_name() {
    let clean = || CleanBatch::new(Tensor::from_slice2(&[[2i64, 3]])).unwrap();
    let wrong = Tensor::from_slice2(&[[1i64, -1]]);
    let name = |error: DiffusionError| match error {
        DiffusionError::OutOfRange { name, .. } => name,
        other => panic!("{other}"),
    };
    assert_eq!(name(clean().with_segments(wrong.shallow_clone()).unwrap_err()), "segment_ids");
    assert_eq!(name(clean().with_positions(wrong).unwrap_err()), "position_ids");
    let half = Tensor::from_slice2(&[[0.5f32, 0.5]]);
    for masking in [Masking::Bernoulli, Masking::ExactCount] {
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(-1)).masking(masking);
        assert_eq!(name(process.noise(clean(), &half, &half).unwrap_err()), "mask_token_id");
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
