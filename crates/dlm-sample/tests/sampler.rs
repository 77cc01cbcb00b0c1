//! What the sampler promises whatever the network: everything is filled, nothing is changed twice, batches do not
//! matter.

use dlm_diffusion::{Denoiser, DenoiserInput, DiffusionError, Head};
use dlm_sample::{Canvas, DrawRequest, Draws, Generation, KeyedDraws, SampleError, SamplerConfig, sample};
use proptest::prelude::*;
use std::ops::ControlFlow;
use tch::{Kind, Tensor};

const MASK: i64 = 11;
const FORBIDDEN: i64 = 3;
/// Ids 12 to 15 are scored but belong to no token.
const VOCAB_SIZE: i64 = 12;
const N_SCORES: i64 = 16;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_mask_is_filled_once_and_known_tokens_stay(
        canvases in canvases(),
        steps in 1usize..20,
        temperature in prop_oneof![Just(0.0), 0.2f64..3.0],
        seed: u64,
    ) {
        let config = config(steps, temperature).with_trace();
        let found = run(&canvases, &config, &mut KeyedDraws::new(seed));
        for (canvas, generation) in canvases.iter().zip(&found) {
            let n_masks = canvas.masked_positions().len();
            prop_assert!(generation.is_complete());
            prop_assert_eq!(generation.nfe, n_masks.min(steps));
            prop_assert_eq!(generation.trace.len(), steps);
            prop_assert_eq!(generation.trace.last(), Some(&generation.ids));

            let mut revealed: Vec<usize> = generation.reveals.iter().map(|reveal| reveal.position).collect();
            revealed.sort_unstable();
            prop_assert_eq!(&revealed, canvas.masked_positions());

            for (position, (&before, &after)) in canvas.ids().iter().zip(&generation.ids).enumerate() {
                if canvas.masked_positions().contains(&position) {
                    prop_assert!(after != MASK && after != FORBIDDEN && after < VOCAB_SIZE, "{} was predicted", after);
                } else {
                    prop_assert_eq!(before, after);
                }
            }
            for reveal in &generation.reveals {
                prop_assert!(reveal.confidence > 0.0 && reveal.confidence <= 1.0);
                prop_assert_eq!(generation.ids[reveal.position], reveal.id);
            }
        }
    }

    #[test]
    fn a_revealed_token_never_changes(canvases in canvases(), steps in 1usize..20) {
        for generation in run(&canvases, &config(steps, 0.0).with_trace(), &mut KeyedDraws::new(0)) {
            for pair in generation.trace.windows(2) {
                for (&before, &after) in pair[0].iter().zip(&pair[1]) {
                    prop_assert!(before == after || before == MASK);
                }
            }
        }
    }

    #[test]
    fn a_canvas_is_filled_alike_alone_and_beside_others(
        canvases in canvases(),
        steps in 1usize..12,
        temperature in prop_oneof![Just(0.0), 0.2f64..3.0],
        chunk_len in 1usize..9,
    ) {
        let together = run(&canvases, &config(steps, temperature).with_chunk_len(chunk_len), &mut KeyedDraws::new(5));
        for (row, canvas) in canvases.iter().enumerate() {
            let mut draws = KeyedDraws::new(5).for_rows(vec![row as u64]);
            let alone = run(std::slice::from_ref(canvas), &config(steps, temperature), &mut draws).remove(0);
            prop_assert_eq!(&alone.ids, &together[row].ids);
            prop_assert_eq!(&alone.reveals, &together[row].reveals);
            prop_assert_eq!(alone.nfe, together[row].nfe);
        }
    }
}

#[test]
fn a_temperature_draws_from_the_softmax_of_the_scaled_logits() {
    // softmax([0, 1, 2] / 0.5) over the three tokens that are not the mask.
    let denoiser =
        |ids: &Tensor| Tensor::from_slice(&[0f32, 1., 2., 7.]).expand([ids.size()[0], ids.size()[1], 4], false);
    let n = 8000;
    let canvas = Canvas::completion(&[], n, 3).unwrap();
    let config = SamplerConfig::new(3).with_steps(1).with_temperature(0.5);
    let found = sample(&denoiser, &[canvas], &config, &mut KeyedDraws::new(9), &mut ignore).unwrap().remove(0);
    let weights = [0f64, 2.0, 4.0].map(f64::exp);
    for (id, weight) in weights.iter().enumerate() {
        let expected = weight / weights.iter().sum::<f64>();
        let share = found.ids.iter().filter(|&&found| found == id as i64).count() as f64 / n as f64;
        let deviation = (expected * (1.0 - expected) / n as f64).sqrt();
        assert!((share - expected).abs() < 4.0 * deviation, "token {id}: {share}, expected {expected}");
    }
    for reveal in &found.reveals {
        let expected = weights[reveal.id as usize] / weights.iter().sum::<f64>();
        assert!((f64::from(reveal.confidence) - expected).abs() < 1e-6, "the noise is in no confidence");
    }
}

#[test]
fn the_seed_decides_the_draws_and_nothing_else_does() {
    let canvases = [Canvas::completion(&[1, 2], 12, MASK).unwrap()];
    let ids = |seed| run(&canvases, &config(4, 2.0), &mut KeyedDraws::new(seed)).remove(0).ids;
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
}

#[test]
fn an_observer_sees_every_step_and_may_stop_one_canvas() {
    let canvases = [Canvas::completion(&[1], 6, MASK).unwrap(), Canvas::completion(&[2, 4], 6, MASK).unwrap()];
    let mut events = Vec::new();
    let mut observer = |event: &dlm_sample::StepEvent<'_>| {
        events.push((event.row, event.step, event.remaining, event.revealed.len()));
        if event.row == 0 && event.step == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let config = config(3, 0.0).with_trace();
    let found = sample(&HashDenoiser, &canvases, &config, &mut KeyedDraws::new(0), &mut observer).unwrap();
    assert_eq!(events, [(0, 0, 4, 2), (1, 0, 4, 2), (0, 1, 2, 2), (1, 1, 2, 2), (1, 2, 0, 2)]);
    assert!(!found[0].is_complete() && found[1].is_complete());
    assert_eq!(found[0].ids.iter().filter(|&&id| id == MASK).count(), 2);
    assert_eq!((found[0].nfe, found[0].trace.len(), found[1].trace.len()), (2, 2, 3));
    assert_eq!(found[1].ids, run(&canvases[1..], &config, &mut KeyedDraws::new(0))[0].ids);
}

#[test]
fn a_canvas_without_masks_costs_no_pass() {
    let canvases =
        [Canvas::completion(&[1, 2], 0, MASK).unwrap(), Canvas::mask_positions(&[MASK, 1], &[], MASK).unwrap()];
    let found = run(&canvases, &config(5, 0.0), &mut KeyedDraws::new(0));
    assert!(found.iter().all(|generation| generation.nfe == 0 && generation.is_complete()));
    assert_eq!(found[1].ids, [MASK, 1], "a mask token of the text itself is context");
    assert!(run(&[], &config(5, 0.0), &mut KeyedDraws::new(0)).is_empty());
}

#[test]
fn documents_of_a_canvas_are_given_to_the_network() {
    let ids = [1, 2, 4, 5, 6, 7];
    let whole = Canvas::mask_positions(&ids, &[1, 4], MASK).unwrap().with_segments(&[1, 1, 1, 2, 2, 2]).unwrap();
    let whole = whole.with_positions(&[0, 1, 2, 0, 1, 2]).unwrap();
    let parts = [&ids[..3], &ids[3..]].map(|part| Canvas::mask_positions(part, &[1], MASK).unwrap());
    let config = config(2, 0.0);
    let parts = run(&parts, &config, &mut KeyedDraws::new(0));
    let expected = [parts[0].ids.clone(), parts[1].ids.clone()].concat();
    assert_eq!(run(&[whole], &config, &mut KeyedDraws::new(0))[0].ids, expected);
}

#[test]
fn scores_that_are_not_finite_are_refused_with_their_place() {
    let denoiser = |ids: &Tensor| {
        let logits = Tensor::zeros([ids.size()[0], ids.size()[1], 4], (Kind::Float, tch::Device::Cpu));
        let _ = logits.get(0).get(2).get(1).fill_(f64::NAN);
        logits
    };
    let canvas = Canvas::completion(&[1], 3, 3).unwrap();
    let error = sample(&denoiser, &[canvas], &SamplerConfig::new(3), &mut KeyedDraws::new(0), &mut ignore).unwrap_err();
    assert_eq!(error.to_string(), "the scores of canvas 0 are not finite at position 2 in step 0");
}

#[test]
fn ids_that_do_not_fit_the_vocabulary_are_refused() {
    let refused = |ids: &[i64], config: SamplerConfig| {
        let canvas = Canvas::completion(ids, 2, MASK).unwrap();
        sample(&HashDenoiser, &[canvas], &config, &mut KeyedDraws::new(0), &mut ignore).unwrap_err().to_string()
    };
    assert_eq!(refused(&[1, 40], config(1, 0.0)), "canvas token id 40 is outside the vocabulary of 12 tokens");
    assert_eq!(refused(&[1, -1], config(1, 0.0)), "`canvas ids` is -1, but must be at least 0");
    let beyond = SamplerConfig::new(MASK).with_forbidden_ids(vec![N_SCORES]);
    assert_eq!(refused(&[1], beyond), "forbidden token id 16 is outside the vocabulary of 16 tokens");
    let everything = SamplerConfig::new(MASK).with_forbidden_ids((0..N_SCORES).collect());
    assert_eq!(refused(&[1], everything), "all 16 tokens of the vocabulary are forbidden");
    let another = SamplerConfig::new(MASK + 1);
    assert_eq!(refused(&[1], another), "canvas 0 holds id 11 at masked position 1, but `mask_token_id` is 12");
}

#[test]
fn draws_of_another_shape_are_refused() {
    struct TooFew;
    impl Draws for TooFew {
        fn uniforms(&mut self, _: &DrawRequest<'_>) -> dlm_sample::Result<Tensor> {
            Ok(Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu)))
        }
    }
    let canvas = Canvas::completion(&[1], 2, MASK).unwrap();
    let error = sample(&HashDenoiser, &[canvas], &config(1, 1.0), &mut TooFew, &mut ignore).unwrap_err();
    assert!(matches!(error, SampleError::DrawsMismatch { step: 0, expected: [2, N_SCORES], .. }), "{error}");
}

#[test]
fn a_network_that_answers_for_other_positions_is_refused() {
    struct TooFew;
    impl Denoiser for TooFew {
        fn hidden_states(&self, _: &DenoiserInput<'_>) -> dlm_diffusion::Result<Tensor> {
            Ok(Tensor::zeros([1, N_SCORES], (Kind::Float, tch::Device::Cpu)))
        }
        fn head(&self) -> &dyn Head {
            &Scores
        }
    }
    let canvas = Canvas::completion(&[1], 2, MASK).unwrap();
    let error = sample(&TooFew, &[canvas], &config(1, 0.0), &mut KeyedDraws::new(0), &mut ignore).unwrap_err();
    let expected = "`hidden states` is shaped [1, 16], but [2, hidden] was expected";
    assert!(matches!(&error, SampleError::Denoiser(DiffusionError::ShapeMismatch { .. })), "{error}");
    assert_eq!(error.to_string(), expected);
}

fn config(steps: usize, temperature: f64) -> SamplerConfig {
    let config = SamplerConfig::new(MASK).with_steps(steps).with_temperature(temperature);
    config.with_vocab_size(VOCAB_SIZE).with_forbidden_ids(vec![FORBIDDEN])
}

fn run(canvases: &[Canvas], config: &SamplerConfig, draws: &mut dyn Draws) -> Vec<Generation> {
    sample(&HashDenoiser, canvases, config, draws, &mut ignore).unwrap()
}

fn ignore(_: &dlm_sample::StepEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Up to four canvases of up to twelve tokens, any of which may be masked.
fn canvases() -> impl Strategy<Value = Vec<Canvas>> {
    let canvas = proptest::collection::vec((0..MASK, any::<bool>()), 1..13).prop_map(|tokens| {
        let ids: Vec<i64> = tokens.iter().map(|(id, _)| *id).collect();
        let masked: Vec<usize> = (0..ids.len()).filter(|&position| tokens[position].1).collect();
        Canvas::mask_positions(&ids, &masked, MASK).unwrap()
    });
    proptest::collection::vec(canvas, 1..5)
}

/// A network whose scores at a position follow, by a hash, from its rotary position and from all tokens of its
/// document, and from nothing else.
struct HashDenoiser;

struct Scores;

impl Head for Scores {
    fn logits(&self, hidden: &Tensor) -> dlm_diffusion::Result<Tensor> {
        Ok(hidden.shallow_clone())
    }
}

impl Denoiser for HashDenoiser {
    fn hidden_states(&self, input: &DenoiserInput<'_>) -> dlm_diffusion::Result<Tensor> {
        let (rows, seq_len) = input.ids.size2()?;
        let position = |row, token| input.position_ids.map_or(token, |ids| ids.int64_value(&[row, token]));
        let mut scores = Vec::new();
        for flat in Vec::<i64>::try_from(input.wanted.expect("masks are wanted"))? {
            let (row, query) = (flat / seq_len, flat % seq_len);
            assert!(row < rows);
            let visible = (0..seq_len).filter(|&key| input.attention.allow(row, query, key));
            let seen =
                visible.fold(0, |hash, key| mix(hash ^ mix(position(row, key)) ^ input.ids.int64_value(&[row, key])));
            let own = mix(seen ^ position(row, query));
            scores.extend((0..N_SCORES).map(|id| (mix(own ^ mix(id)) >> 16 & 0xffff) as f32 / 16384.0));
        }
        Ok(Tensor::from_slice(&scores).view([-1, N_SCORES]))
    }

    fn head(&self) -> &dyn Head {
        &Scores
    }
}

/// One round of splitmix64.
fn mix(value: i64) -> i64 {
    let mut z = (value as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as i64
}
