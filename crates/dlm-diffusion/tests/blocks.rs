//! Block diffusion at its ends: one block is plain masked diffusion, blocks of one token are autoregressive. And attention annealing.

mod common;

use common::{MASK, Toy};
use dlm_diffusion::{
    AttentionLayout, BlockStart, CleanBatch, Denoiser, DenoiserInput, ForwardProcess, LossNormalization, LossWeight,
    MaskPolicy, NoiseKey, NoiseSchedule, NoisedBatch, Objective, PackingIsolation, Purpose, Visibility, diffusion_loss,
};
use proptest::prelude::*;
use tch::Tensor;

const LINEAR: NoiseSchedule = NoiseSchedule::Linear { eps: 1e-3 };

fn noise(process: &ForwardProcess, ids: &[i64], t: f32, seed: u64) -> NoisedBatch {
    let clean = CleanBatch::new(Tensor::from_slice(ids).unsqueeze(0)).unwrap();
    let uniform = Tensor::from_slice(&NoiseKey::new(seed, Purpose::Mask, 0).uniforms(0, ids.len())).unsqueeze(0);
    process.noise(clean, &Tensor::from_slice2(&[[t]]), &uniform).unwrap()
}

fn loss(denoiser: &Toy, batch: &NoisedBatch, weight: LossWeight) -> (f64, Tensor) {
    let objective = Objective::new(LossNormalization::Token).weighted(weight);
    let output = diffusion_loss(denoiser, batch, &objective, &batch.counts()).unwrap();
    output.loss.backward();
    (output.loss.double_value(&[]), denoiser.take_gradient())
}

/// `-log p` of `target` from the last state of a text, which predicts it, or from that of the token before it.
fn nll_at_the_end(denoiser: &Toy, ids: &[i64], visibility: Visibility, target: i64) -> f64 {
    let ids = Tensor::from_slice(ids).unsqueeze(0);
    let attention = AttentionLayout::full().with_visibility(visibility);
    let last = Tensor::from_slice(&[ids.size()[1] - 1]);
    let hidden = denoiser.hidden_states(&DenoiserInput::new(&ids, &attention).at(&last)).unwrap();
    let ones = Tensor::from_slice(&[1f32]);
    let scores = denoiser.head().weighted_nll(&hidden, &Tensor::from_slice(&[target]), &ones).unwrap();
    scores.nll.double_value(&[0])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Trap 3, first half.
    #[test]
    fn a_block_as_long_as_the_row_is_plain_masked_diffusion(
        ids in proptest::collection::vec(1i64..MASK, 1..12), t in 0.1f32..1.0, seed: u64, longer in 0i64..3, shifted: bool,
    ) {
        let denoiser = Toy::new(2, shifted.then_some(PackingIsolation::Document));
        let plain = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK));
        let blocks = plain.clone().in_blocks(ids.len() as i64 + longer, dlm_diffusion::LastBlock::Shorter).unwrap();
        let (a, b) = (noise(&plain, &ids, t, seed), noise(&blocks, &ids, t, seed));
        prop_assume!(a.counts().masked > 0);
        let (a, b) = (loss(&denoiser, &a, LossWeight::Auto), loss(&denoiser, &b, LossWeight::Auto));
        prop_assert!((a.0 - b.0).abs() <= 1e-5 * a.0.abs());
        let scale = a.1.abs().max().double_value(&[]);
        prop_assert!((&a.1 - &b.1).abs().max().double_value(&[]) <= 1e-5 * scale);
    }

    /// Trap 3, second half: one uncached forward pass for each prefix and a mask behind it.
    #[test]
    fn blocks_of_one_token_at_t_1_sum_the_autoregressive_likelihood_of_every_prefix_and_a_mask(
        ids in proptest::collection::vec(1i64..MASK, 1..10), seed: u64,
    ) {
        let denoiser = Toy::new(3, None);
        let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).in_blocks(1, dlm_diffusion::LastBlock::Shorter).unwrap();
        let batch = noise(&process, &ids, 1.0, seed);
        prop_assert_eq!(batch.counts().masked as usize, ids.len(), "all is masked at t = 1");
        let found = loss(&denoiser, &batch, LossWeight::Elbo).0 * ids.len() as f64 / 0.999;
        let nll = |i: usize| nll_at_the_end(&denoiser, &[&ids[..i], &[MASK]].concat(), Visibility::Causal, ids[i]);
        let expected: f64 = (0..ids.len()).map(nll).sum();
        prop_assert!((found - expected).abs() <= 1e-5 * expected, "{found}, expected {expected}");
    }

    /// What a cache holds when a block is begun: clean blocks before it, seen block-causally, and then the masks of the block.
    #[test]
    fn with_a_shift_and_clean_starts_every_block_is_predicted_as_a_cache_would(
        ids in proptest::collection::vec(1i64..MASK, 2..10), block_length in 1usize..5, seed: u64,
    ) {
        let denoiser = Toy::new(4, Some(PackingIsolation::Document));
        let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).in_blocks(block_length as i64, dlm_diffusion::LastBlock::Shorter).unwrap();
        let batch = noise(&process, &ids, 1.0, seed);
        let found = loss(&denoiser, &batch, LossWeight::Uniform).0 * ids.len() as f64;
        let mut expected = 0.0;
        for start in (0..ids.len()).step_by(block_length) {
            let end = (start + block_length).min(ids.len());
            let row = [&ids[..start], &vec![MASK; end - start]].concat();
            let row = Tensor::from_slice(&row).unsqueeze(0);
            let visibility = Visibility::BlockCausal { block_length: block_length as i64 };
            let attention = AttentionLayout::full().with_visibility(visibility);
            let wanted = Tensor::from_slice(&(start as i64..end as i64).collect::<Vec<_>>());
            let hidden = denoiser.hidden_states(&DenoiserInput::new(&row, &attention).at(&wanted)).unwrap();
            let targets = Tensor::from_slice(&ids[start..end]);
            let ones = Tensor::ones([(end - start) as i64], (tch::Kind::Float, tch::Device::Cpu));
            expected += denoiser.head().weighted_nll(&hidden, &targets, &ones).unwrap().weighted_sum.double_value(&[]);
        }
        prop_assert!((found - expected).abs() <= 1e-5 * expected, "{found}, expected {expected}");
    }
}

#[test]
fn which_state_predicts_the_first_token_of_a_block_shows_in_the_loss() {
    let mut denoiser = Toy::new(4, Some(PackingIsolation::Document));
    let process =
        ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap();
    let batch = noise(&process, &[3, 1, 4, 1, 5, 9], 1.0, 0);
    let clean = loss(&denoiser, &batch, LossWeight::Auto).0;
    denoiser.block_start = BlockStart::Noisy;
    let noisy = loss(&denoiser, &batch, LossWeight::Auto).0;
    assert!((clean - noisy).abs() > 1e-3 * clean, "{clean} and {noisy}");
}

#[test]
fn the_length_of_blocks_shows_in_the_loss() {
    let denoiser = Toy::new(4, None);
    let losses: Vec<f64> = [1, 2, 6]
        .map(|block_length| {
            let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK))
                .in_blocks(block_length, dlm_diffusion::LastBlock::Shorter)
                .unwrap();
            loss(&denoiser, &noise(&process, &[3, 1, 4, 1, 5, 9], 1.0, 0), LossWeight::Auto).0
        })
        .to_vec();
    assert!((losses[0] - losses[1]).abs() > 1e-4 && (losses[1] - losses[2]).abs() > 1e-4, "{losses:?}");
}

#[test]
fn attention_anneals_from_causal_to_bidirectional() {
    let denoiser = Toy::new(4, None);
    let key = NoiseKey::new(1, Purpose::Annealing, 0);
    let of = |visibility| {
        let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).seen(visibility);
        loss(&denoiser, &noise(&process, &[3, 1, 4, 1, 5, 9], 0.7, 3), LossWeight::Auto).0
    };
    let losses: Vec<f64> = (0..=4).map(|step| of(Visibility::annealed(step, 4, key))).collect();
    assert_eq!((losses[0], losses[4]), (of(Visibility::Causal), of(Visibility::Bidirectional)));
    assert!(losses.windows(2).all(|pair| (pair[0] - pair[1]).abs() > 1e-6), "{losses:?}");
}

#[test]
fn an_autoregressive_loss_has_no_blocks() {
    let process =
        ForwardProcess::new(LINEAR, MaskPolicy::new(MASK)).in_blocks(2, dlm_diffusion::LastBlock::Shorter).unwrap();
    let clean = CleanBatch::new(Tensor::from_slice2(&[[1i64, 2]])).unwrap();
    assert!(process.autoregressive(clean, false).is_err());
}

#[test]
fn an_autoregressive_loss_is_the_sum_over_prefixes_with_and_without_a_shift() {
    let ids = [3i64, 1, 4, 1, 5, 9];
    for shifted in [false, true] {
        let denoiser = Toy::new(6, shifted.then_some(PackingIsolation::Document));
        let clean = CleanBatch::new(Tensor::from_slice(&ids).unsqueeze(0)).unwrap();
        let process = ForwardProcess::new(LINEAR, MaskPolicy::new(MASK));
        let batch = process.autoregressive(clean, shifted).unwrap();
        assert_eq!((batch.counts().masked, batch.counts().maskable), (5, 5));
        let found = loss(&denoiser, &batch, LossWeight::Auto).0 * 5.0;
        let plain = Toy::new(6, None);
        let expected: f64 = (1..ids.len()).map(|i| nll_at_the_end(&plain, &ids[..i], Visibility::Causal, ids[i])).sum();
        assert!((found - expected).abs() < 1e-5 * expected, "{found}, expected {expected}");
    }
}
