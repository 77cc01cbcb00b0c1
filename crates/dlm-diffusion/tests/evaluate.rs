//! The estimators of likelihood are unbiased on a model whose likelihoods are known in closed form.

mod common;

use common::{MASK, Toy, exact::Mixture};
use dlm_diffusion::{
    CleanBatch, DiffusionError, ForwardProcess, LossNormalization, MaskPolicy, Masking, NoiseKey, NoiseSchedule,
    Objective, Purpose, ScheduleName, Views, diffusion_loss,
    evaluate::{
        BoundConfig, EvalDocument, KeyedDraws, LikelihoodConfig, LongDocuments, Order, Question, autoregressive, bound,
        chain_loglikelihood, choose, loglikelihood,
    },
};
use tch::Tensor;

const LEN: usize = 8;

fn draws(seed: u64) -> impl FnMut() -> f64 {
    let numbers = NoiseKey::new(seed, Purpose::Preview, 0).uniforms_f64(0, 4096);
    let mut next = 0;
    move || {
        next += 1;
        numbers[next % numbers.len()]
    }
}

fn mixture() -> Mixture {
    Mixture::new(3, LEN, draws(1))
}

fn texts(count: usize) -> Vec<Vec<i64>> {
    let mut draw = draws(2);
    (0..count).map(|_| (0..LEN).map(|_| (draw() * Mixture::MASK as f64) as i64).collect()).collect()
}

fn documents(count: usize) -> Vec<EvalDocument> {
    texts(count).into_iter().enumerate().map(|(id, ids)| EvalDocument::new(id as i64, ids)).collect()
}

/// The mean of estimates lies within three standard errors of the truth, and the error is small enough to mean something.
fn assert_unbiased(what: &str, estimates: &[f64], truth: f64) -> f64 {
    let n = estimates.len() as f64;
    let mean = estimates.iter().sum::<f64>() / n;
    let deviation = (estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let error = deviation / n.sqrt();
    assert!((mean - truth).abs() <= 3.0 * error + 1e-6, "{what}: {mean} +- {error}, the truth is {truth}");
    assert!(error < 0.02 * truth.abs(), "{what}: {mean} +- {error} says little");
    deviation
}

/// Trap 11: unbiased where the likelihood is known.
#[test]
fn the_bound_of_whole_documents_is_unbiased_and_its_error_is_what_it_says() {
    let (mixture, documents) = (mixture(), documents(6));
    let truth = -documents.iter().map(|d| mixture.log_likelihood(&d.ids)).sum::<f64>() / (6 * LEN) as f64;
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    for passes in [1, 3] {
        let (mut estimates, mut errors) = (Vec::new(), Vec::new());
        for seed in 0..100 {
            let config = BoundConfig { passes, seed, ..BoundConfig::new(Mixture::MASK) };
            let found = bound(&denoiser, &documents, &config).unwrap();
            estimates.push(found.nats_per_token);
            errors.push(found.monte_carlo_error.powi(2));
            assert_eq!((found.documents, found.tokens, found.rows), (6, 6 * LEN as u64, 6 * 2 * passes as u64));
        }
        let deviation = assert_unbiased("the bound", &estimates, truth);
        let said = (errors.iter().sum::<f64>() / errors.len() as f64).sqrt();
        assert!((said / deviation - 1.0).abs() < 0.25, "said {said}, found {deviation}");
    }
}

#[test]
fn as_many_passes_as_tokens_leave_no_error_but_which_tokens_are_masked() {
    // A denoiser that looks at nothing: the loss of a token does not depend on the others.
    let denoiser = |ids: &Tensor| {
        let logits = Tensor::from_slice(&[0.0f32, 1.0, -1.0, 0.5, -9.0]);
        logits.expand([ids.size()[0], ids.size()[1], 5], false)
    };
    let mut document = EvalDocument::new(3, vec![2; LEN]);
    document.bytes = Some(4);
    let config = BoundConfig { passes: LEN, ..BoundConfig::new(Mixture::MASK) };
    let found = bound(&denoiser, &[document], &config).unwrap();
    let nll = [0.0f64, 1.0, -1.0, 0.5, -9.0].iter().map(|x| x.exp()).sum::<f64>().ln() + 1.0;
    assert!((found.nats_per_token - nll).abs() < 1e-5 && found.monte_carlo_error < 1e-6);
    assert!((found.bits_per_byte.unwrap() - nll * 2.0 / 2f64.ln()).abs() < 1e-5);
    assert!((found.perplexity - nll.exp()).abs() < 1e-3);
    assert_eq!(found.standard_error, None);
    assert!(found.by_mask_ratio.iter().filter(|bin| bin.tokens > 0).all(|bin| (bin.nats.unwrap() - nll).abs() < 1e-5));
    assert_eq!(found.accuracy, 0.0);
}

#[test]
fn batches_and_order_of_documents_change_nothing() {
    let (mixture, mut documents) = (mixture(), documents(5));
    documents[2].ids.truncate(3);
    documents[2].is_target.truncate(3);
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    let config = BoundConfig::new(Mixture::MASK);
    let found = bound(&denoiser, &documents, &config).unwrap();
    documents.reverse();
    let again = bound(&denoiser, &documents, &BoundConfig { batch_size: 3, ..config }).unwrap();
    // The mixture does not know padding from text, so only documents of full length are compared by it; the count is.
    assert_eq!((found.tokens, found.rows), (again.tokens, again.rows));
    let full = |documents: &[EvalDocument], batch_size| {
        let full: Vec<EvalDocument> = documents.iter().filter(|d| d.ids.len() == LEN).cloned().collect();
        bound(&denoiser, &full, &BoundConfig { batch_size, ..BoundConfig::new(Mixture::MASK) }).unwrap().nats_per_token
    };
    let a = full(&documents, 1);
    documents.reverse();
    assert!((a - full(&documents, 7)).abs() < 1e-6);
}

#[test]
fn what_is_left_out_is_told() {
    let denoiser =
        |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], 5], (tch::Kind::Float, tch::Device::Cpu));
    let mut prompted = EvalDocument::new(1, vec![1, 2, 3, 0, 2]);
    prompted.is_target[..2].fill(false);
    let empty = EvalDocument { is_target: vec![false; 2], ..EvalDocument::new(2, vec![1, 2]) };
    let long = EvalDocument::new(3, vec![1; 12]);
    let config = BoundConfig { never_mask: vec![0], max_len: Some(5), ..BoundConfig::new(Mixture::MASK) };
    let of = |long_documents| {
        let config = BoundConfig { long: long_documents, ..config.clone() };
        bound(&denoiser, &[prompted.clone(), empty.clone(), long.clone()], &config).unwrap()
    };
    let cut = of(LongDocuments::Cut);
    assert_eq!((cut.documents, cut.tokens), (2, 2 + 5));
    assert_eq!((cut.excluded.prompt_tokens, cut.excluded.never_masked_tokens, cut.excluded.cut_tokens), (4, 1, 7));
    assert_eq!((cut.excluded.empty_documents, cut.excluded.long_documents), (1, 0));
    let skip = of(LongDocuments::Skip);
    assert_eq!((skip.documents, skip.tokens, skip.excluded.long_documents), (1, 2, 1));
    let roll = of(LongDocuments::Roll { context: 2 });
    assert_eq!((roll.documents, roll.tokens, roll.excluded.cut_tokens), (2, 2 + 12, 0));
    assert!(matches!(bound(&denoiser, &[empty], &config), Err(DiffusionError::NothingToScore { .. })));
}

#[test]
fn settings_out_of_range_and_flags_that_do_not_fit_are_refused() {
    let denoiser =
        |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], 5], (tch::Kind::Float, tch::Device::Cpu));
    let config = BoundConfig::new(Mixture::MASK);
    let wrong = [
        BoundConfig { passes: 0, ..config.clone() },
        BoundConfig { replicates: 1, ..config.clone() },
        BoundConfig { batch_size: 0, ..config.clone() },
        BoundConfig { bins: 0, ..config.clone() },
        BoundConfig { max_len: Some(1), ..config.clone() },
        BoundConfig { max_len: Some(4), long: LongDocuments::Roll { context: 4 }, ..config.clone() },
        BoundConfig { block_length: Some(0), ..config.clone() },
    ];
    for config in wrong {
        assert!(
            matches!(bound(&denoiser, &documents(1), &config), Err(DiffusionError::OutOfRange { .. })),
            "{config:?}"
        );
    }
    let document = EvalDocument { is_target: vec![true], ..EvalDocument::new(0, vec![1, 2]) };
    assert!(matches!(
        bound(&denoiser, &[document], &config),
        Err(DiffusionError::ShapeMismatch { name: "is_target", .. })
    ));
    let nan =
        |ids: &Tensor| Tensor::full([ids.size()[0], ids.size()[1], 5], f64::NAN, (tch::Kind::Float, tch::Device::Cpu));
    let document = EvalDocument::new(41, vec![1, 2]);
    assert!(matches!(bound(&nan, &[document], &config), Err(DiffusionError::NotFiniteDocument { document: 41 })));
}

#[test]
fn the_bound_in_blocks_is_unbiased() {
    // Blocks of a length the text has are one block, whose clean half nothing looks at.
    let (mixture, documents) = (mixture(), documents(3));
    let truth = -documents.iter().map(|d| mixture.log_likelihood(&d.ids)).sum::<f64>() / (3 * LEN) as f64;
    let denoiser = |ids: &Tensor| {
        let noised = mixture.logits(&ids.narrow(1, 0, LEN as i64));
        Tensor::cat(&[&noised, &noised], 1)
    };
    let of_seed = |seed| {
        let config = BoundConfig { seed, block_length: Some(LEN as i64), ..BoundConfig::new(Mixture::MASK) };
        bound(&denoiser, &documents, &config).unwrap().nats_per_token
    };
    assert_unbiased("one block", &(0..80).map(of_seed).collect::<Vec<f64>>(), truth);
}

/// Trap 11: the same of an answer given a prompt.
#[test]
fn conditional_likelihood_is_unbiased_by_monte_carlo_and_exact_by_the_chain_in_any_order() {
    let mixture = mixture();
    let text = &texts(1)[0];
    let (prompt, answer) = text.split_at(3);
    let given = [prompt, &[Mixture::MASK; LEN - 3]].concat();
    let truth = mixture.log_likelihood(text) - mixture.log_likelihood(&given);
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    let config = LikelihoodConfig { samples: 16, batch_size: 4, ..LikelihoodConfig::new(Mixture::MASK) };
    let estimate = |seed| {
        let key = NoiseKey::new(seed, Purpose::Evaluation, 0).of_document(1, 0);
        loglikelihood(&denoiser, prompt, answer, &config, &mut KeyedDraws(key)).unwrap().log_likelihood
    };
    assert_unbiased("an answer", &(0..100).map(estimate).collect::<Vec<f64>>(), truth);
    for order in [Order::LeftToRight, Order::Listed(vec![4, 0, 2, 1, 3])] {
        let found = chain_loglikelihood(&denoiser, prompt, answer, &order, &config).unwrap();
        assert!((found.log_likelihood - truth).abs() < 1e-4, "{order:?}: {}", found.log_likelihood);
        assert_eq!(found.rows, 5);
    }
    let wrong = Order::Listed(vec![0, 0, 1, 2, 3]);
    assert!(chain_loglikelihood(&denoiser, prompt, answer, &wrong, &config).is_err());
}

/// Trap 11: there is only one way to mask a single token.
#[test]
fn the_likelihood_of_a_single_token_is_exact_with_one_draw() {
    let mixture = mixture();
    let text = &texts(2)[1];
    let (prompt, answer) = text.split_at(LEN - 1);
    let truth = mixture.log_likelihood(text) - mixture.log_likelihood(&[prompt, &[Mixture::MASK]].concat());
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    let key = NoiseKey::new(0, Purpose::Evaluation, 0);
    let config = LikelihoodConfig::new(Mixture::MASK);
    let found = loglikelihood(&denoiser, prompt, answer, &config, &mut KeyedDraws(key)).unwrap();
    assert!((found.log_likelihood - truth).abs() < 1e-5);
    assert_eq!((found.rows, found.standard_error), (1, Some(0.0)));
    assert!(matches!(
        loglikelihood(&denoiser, prompt, &[], &config, &mut KeyedDraws(key)),
        Err(DiffusionError::NothingToScore { .. })
    ));
}

#[test]
fn the_most_likely_choice_is_found_and_length_can_decide() {
    let mixture = mixture();
    let text = &texts(1)[0];
    let mut choices: Vec<Vec<i64>> = (0..Mixture::MASK).map(|token| vec![token; 3]).collect();
    choices.push(text[5..].to_vec());
    let of = |choice: &Vec<i64>| mixture.log_likelihood(&[&text[..5], choice].concat());
    let best = (0..choices.len()).max_by(|&a, &b| of(&choices[a]).total_cmp(&of(&choices[b]))).unwrap();
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    let mut lengths = vec![3; choices.len()];
    let config = LikelihoodConfig { samples: 64, ..LikelihoodConfig::new(Mixture::MASK) };
    let mut question = Question { id: 1, context: text[..5].to_vec(), choices, lengths: lengths.clone() };
    for order in [Some(&Order::LeftToRight), None] {
        let found = choose(&denoiser, &question, order, &config, 7).unwrap();
        assert_eq!((found.by_likelihood, found.by_length), (best, best), "{found:?}");
    }
    // Ten thousand bytes make any choice likely by byte.
    let other = (best + 1) % lengths.len();
    lengths[other] = 10_000;
    question.lengths = lengths;
    let found = choose(&denoiser, &question, Some(&Order::LeftToRight), &config, 7).unwrap();
    assert_eq!((found.by_likelihood, found.by_length), (best, other));
    question.choices.clear();
    assert!(choose(&denoiser, &question, None, &config, 7).is_err());
}

#[test]
fn autoregressive_evaluation_scores_each_token_given_those_before_it() {
    let documents = [EvalDocument::new(0, vec![1, 5, 2, 7]), EvalDocument::new(1, vec![3, 3, 8])];
    for shift in [false, true] {
        let denoiser = Toy::new(3, shift.then_some(dlm_diffusion::PackingIsolation::Document));
        let found = autoregressive(&denoiser, &documents, shift, &BoundConfig::new(MASK)).unwrap();
        // A prefix at a time, each by itself.
        let mut nats = 0.0;
        let plain = Toy::new(3, None);
        for document in &documents {
            for end in 1..document.ids.len() {
                let ids = Tensor::from_slice(&document.ids[..end]).unsqueeze(0);
                let attention = dlm_diffusion::AttentionLayout::causal();
                let last = Tensor::from_slice(&[end as i64 - 1]);
                let input = dlm_diffusion::DenoiserInput::new(&ids, &attention).at(&last);
                let hidden = dlm_diffusion::Denoiser::hidden_states(&plain, &input).unwrap();
                let target = Tensor::from_slice(&[document.ids[end]]);
                let head = dlm_diffusion::Denoiser::head(&plain);
                let scores = head.weighted_nll(&hidden, &target, &Tensor::from_slice(&[1f32])).unwrap();
                nats += scores.nll.double_value(&[0]);
            }
        }
        assert_eq!(found.tokens, 5);
        assert!((found.nats_per_token - nats / 5.0).abs() < 1e-5, "{} and {}", found.nats_per_token, nats / 5.0);
        assert_eq!(found.monte_carlo_error, 0.0);
    }
}

/// Losses of single passes over copies of a text, weighed as the bound asks, in nats of the whole text: their mean.
fn training_estimate(mixture: &Mixture, text: &[i64], process: &ForwardProcess, rows: u64, seed: u64) -> f64 {
    let key = |purpose, row| NoiseKey::new(seed, purpose, 0).of_document(row, 0);
    let shape = [rows as i64, text.len() as i64];
    let clean = CleanBatch::new(Tensor::from_slice(text).unsqueeze(0).repeat([rows as i64, 1])).unwrap();
    let t: Vec<f32> = (0..rows).map(|row| key(Purpose::Timestep, row).uniform(0)).collect();
    let uniform: Vec<f32> = (0..rows).flat_map(|row| key(Purpose::Mask, row).uniforms(0, text.len())).collect();
    let (t, uniform) = (Tensor::from_slice(&t).unsqueeze(1), Tensor::from_slice(&uniform).view(shape));
    let views = process.noise_views(clean, &t, &uniform).unwrap();
    let denoiser = |ids: &Tensor| mixture.logits(ids);
    let objective = Objective::new(LossNormalization::Token).weighted(dlm_diffusion::WeightRule::elbo());
    let counts = views.iter().map(dlm_diffusion::NoisedBatch::counts).sum();
    let of = |view| diffusion_loss(&denoiser, view, &objective, &counts).unwrap().loss.double_value(&[]);
    views.iter().map(of).sum::<f64>() * text.len() as f64
}

#[test]
fn training_losses_estimate_the_bound_on_every_schedule_with_exact_counts_and_with_complementary_pairs() {
    let mixture = mixture();
    let text = &texts(1)[0];
    let truth = -mixture.log_likelihood(text);
    let schedules = [
        ScheduleName::Linear,
        ScheduleName::Cosine,
        ScheduleName::CosineSquared,
        ScheduleName::Polynomial,
        ScheduleName::Geometric,
    ];
    for name in schedules {
        for masking in [Masking::Bernoulli, Masking::ExactCount] {
            let schedule = NoiseSchedule::new(name, 1e-4).unwrap();
            let process = ForwardProcess::new(schedule, MaskPolicy::new(Mixture::MASK)).masking(masking);
            let estimates: Vec<f64> =
                (0..40).map(|seed| training_estimate(&mixture, text, &process, 64, seed)).collect();
            assert_within(&format!("{name} {masking:?}"), &estimates, truth);
        }
    }
    for masking in [Masking::Bernoulli, Masking::ExactCount] {
        let schedule = NoiseSchedule::Linear { eps: 0.0 };
        let process =
            ForwardProcess::new(schedule, MaskPolicy::new(Mixture::MASK)).masking(masking).viewed(Views::Pair);
        let estimates: Vec<f64> = (0..40).map(|seed| training_estimate(&mixture, text, &process, 32, seed)).collect();
        assert_within(&format!("a pair, {masking:?}"), &estimates, truth);
    }
}

fn assert_within(what: &str, estimates: &[f64], truth: f64) {
    let n = estimates.len() as f64;
    let mean = estimates.iter().sum::<f64>() / n;
    let error = (estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
    assert!((mean - truth).abs() <= 3.0 * error, "{what}: {mean} +- {error}, the truth is {truth}");
}

/// On a text whose positions differ, and on one whose tokens are all alike, where only what else is masked makes losses differ.
#[test]
fn stratified_exact_counts_are_unbiased_and_need_an_eighth_of_the_passes_of_plain_masks_for_the_same_error() {
    const LONG: usize = 32;
    const SEEDS: u64 = 100;
    let mut draw = draws(4);
    let text: Vec<i64> = (0..LONG).map(|_| if draw() < 0.7 { 0 } else { (draw() * 4.0) as i64 }).collect();
    for (what, mixture) in [("mixed", Mixture::new(2, LONG, draws(1))), ("alike", Mixture::alike(LONG))] {
        let truth = -mixture.log_likelihood(&text);
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, MaskPolicy::new(Mixture::MASK));
        let plain: Vec<f64> = (0..SEEDS).map(|seed| training_estimate(&mixture, &text, &process, 64, seed)).collect();
        let denoiser = |ids: &Tensor| mixture.logits(ids);
        let document = [EvalDocument::new(0, text.clone())];
        let stratified = |passes, replicates| -> Vec<f64> {
            let of_seed = |seed| {
                let config = BoundConfig { passes, replicates, seed, ..BoundConfig::new(Mixture::MASK) };
                bound(&denoiser, &document, &config).unwrap().nats_per_token * LONG as f64
            };
            (0..SEEDS).map(of_seed).collect()
        };
        let of_plain = assert_unbiased(&format!("{what}, 64 plain passes"), &plain, truth);
        let few = assert_unbiased(&format!("{what}, 8 stratified passes"), &stratified(4, 2), truth);
        let more = assert_unbiased(&format!("{what}, 16 stratified passes"), &stratified(8, 2), truth);
        assert!(few <= of_plain, "{what}, 8 stratified passes: {few}; 64 plain ones: {of_plain}");
        assert!(more < 0.8 * few, "{what}, 16 stratified passes: {more}; 8: {few}");
    }
}
