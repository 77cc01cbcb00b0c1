//! The losses of MDLM (SUBS, continuous time) and of BD3-LM from recorded draws and logits.

mod common;

use common::golden::{Case, Recorded, assert_gradients, for_each_case, laid_out};
use dlm_diffusion::{
    CleanBatch, DiffusionError, ForwardProcess, LossNormalization, LossWeight, MaskPolicy, MaskRange, NoiseSchedule,
    NoisedBatch, Objective, TokenLoss, WeightRule, diffusion_loss, slot_t,
};
use dlm_golden::{assert_close, assert_number};
use tch::{Kind, Tensor};

/// Smallest probability of MDLM's schedules.
const EPS: f64 = 1e-3;

fn clean(case: &Case<'_>) -> CleanBatch {
    let real = case.tensor("attention_mask").to_kind(Kind::Int64);
    CleanBatch::new(case.tensor("x0")).and_then(|batch| batch.with_segments(real)).unwrap()
}

/// Draws of timesteps, spread over slots where the case says so.
fn draws(case: &Case<'_>) -> Vec<f32> {
    let draws = Vec::<f32>::try_from(case.tensor("u_t").flatten(0, -1)).unwrap();
    let slots = draws.len() as u64;
    let spread = |(slot, u)| slot_t(u, slot as u64, slots);
    if case.flag("antithetic_sampling") { draws.into_iter().enumerate().map(spread).collect() } else { draws }
}

/// Compares loss, token losses and gradients; `scale` and `of_token` are what our loss and token losses are to theirs.
fn compare(case: &Case<'_>, batch: &NoisedBatch, objective: &Objective, saw: &str, scale: f64, of_token: f64) {
    let (name, real) = (case.name, batch.clean().is_real());
    let ids = case.tensor(saw);
    let halves = ids.size()[1] / real.size()[1];
    let logits = case.tensor("logits").set_requires_grad(true);
    let denoiser = Recorded {
        logits: logits.shallow_clone(),
        ids,
        // They mask padding too, without scoring it.
        compared: Some(Tensor::cat(&vec![&real; halves as usize], 1)),
        shifted: false,
    };
    let output = diffusion_loss(&denoiser, batch, objective, &batch.counts()).unwrap();
    let expected = case.number("loss") * scale;
    assert_number(name, output.loss.double_value(&[]), expected, 0.0, 1e-5);
    output.loss.backward();
    if let Some(expected) = case.get("grad_logits") {
        assert_gradients(name, &logits, &(expected * scale));
    }
    // One token's share of the loss, times the tokens: its weighted negative log-likelihood.
    let positions = batch.masked_positions();
    let log_p = logits.detach().index_fill(2, &Tensor::from_slice(&[case.integer("mask_index")]), f64::NEG_INFINITY);
    let log_p = log_p.log_softmax(-1, Kind::Float).flatten(0, 1).index_select(0, positions);
    let targets = case.tensor("x0").flatten(0, 1).index_select(0, positions).unsqueeze(1);
    let nll = -log_p.gather(1, &targets, false).squeeze_dim(1);
    let weighted = nll * objective.coefficients(batch, &batch.counts()) * batch.counts().maskable as f64;
    let found = laid_out(positions, &weighted, &real.size());
    let expected = case.tensor("nlls") * real.to_kind(Kind::Float) * of_token;
    assert_close(&format!("{name}: nlls"), &found, &expected, 1e-5, 2e-5);
}

fn subs(case: &Case<'_>, weight: WeightRule) -> Objective {
    let forbidden = Some(case.integer("mask_index"));
    Objective::new(LossNormalization::Token).weighted(weight).scoring(TokenLoss { forbidden, ..TokenLoss::default() })
}

#[test]
fn golden_mdlm_losses_are_ours() {
    let mut compared = 0;
    for_each_case("diffusion_mdlm", |case| {
        let is_continuous = case.json["parameterization"] == "subs" && case.json["T"] == 0;
        if !is_continuous {
            return;
        }
        let by_logarithm = case.flag("importance_sampling") || case.flag("change_of_variables");
        let loglinear = NoiseSchedule::LogLinear { eps: EPS };
        // MDLM draws t so that the logarithm of p is even, between 1 - exp(-eps) and p(1).
        let p_min = 1.0 - (-EPS).exp();
        let p_max = loglinear.p_mask(1.0);
        let schedule = match case.text("noise") {
            "loglinear" if by_logarithm => NoiseSchedule::Exponential { p_min, p_max },
            "loglinear" => loglinear,
            "cosine" => NoiseSchedule::MdlmCosine { eps: EPS },
            "cosinesqr" => NoiseSchedule::CosineSquared { eps: EPS },
            "geometric" => NoiseSchedule::Geometric { sigma_min: EPS, sigma_max: 1.0 },
            "linear" => NoiseSchedule::LinearSigma { sigma_min: 0.0, sigma_max: 10.0 },
            other => panic!("unknown noise {other}"),
        };
        // Its constant weight then leaves out the logarithm of p(1).
        let scale = if by_logarithm { (p_max / p_min).ln() / -p_min.ln() } else { 1.0 };
        let range = MaskRange::between(case.number("sampling_eps"), 1.0).unwrap();
        let t: Vec<f32> = draws(case).into_iter().map(|draw| range.t_of(draw)).collect();
        let policy = MaskPolicy::new(case.integer("mask_index"));
        let process = ForwardProcess::new(schedule, policy).within(range);
        let batch = process.noise(clean(case), &Tensor::from_slice(&t).unsqueeze(1), &case.tensor("u")).unwrap();
        compare(case, &batch, &subs(case, WeightRule::elbo()), "xt", scale, scale);
        compared += 1;
    });
    assert!(compared > 0);
}

#[test]
fn golden_bd3lm_losses_are_ours() {
    for_each_case("diffusion_bd3lm", |case| {
        assert_eq!(case.text("noise"), "loglinear");
        let (t_min, t_max) = (case.number("sampling_eps_min"), case.number("sampling_eps_max"));
        let range = MaskRange::between(t_min, t_max).unwrap();
        let block_length = case.integer("block_size");
        let blocks: Vec<f32> = draws(case).into_iter().map(|draw| range.t_of(draw)).collect();
        let of_blocks = Tensor::from_slice(&blocks).view_as(&case.tensor("u_t"));
        let t = of_blocks.repeat_interleave_self_int(block_length, 1, None::<i64>);
        // MDLM's scale has its eps on the clean end; BD3-LM's own has none.
        let eps = if case.flag("mdlm_loss_scale") { EPS } else { 0.0 };
        let schedule = NoiseSchedule::LogLinear { eps };
        let policy = MaskPolicy::new(case.integer("mask_index"));
        let process = ForwardProcess::new(schedule, policy)
            .within(range)
            .in_blocks(block_length, dlm_diffusion::LastBlock::Shorter)
            .unwrap();
        let x0 = case.tensor("x0");
        let mut clean = clean(case);
        if case.flag("ignore_bos") {
            // The first token is never masked; it still counts in the average.
            let labels = x0.copy();
            let _ = labels.narrow(1, 0, 1).fill_(dlm_diffusion::IGNORE_INDEX);
            clean = clean.with_labels(labels).unwrap();
        }
        let batch = process.noise(clean, &t, &case.tensor("u")).unwrap();
        // Above one half the weight hardly varies, and BD3-LM leaves it out.
        let weight = if t_min > 0.5 { LossWeight::Uniform.into() } else { WeightRule::elbo() };
        let counted = case.tensor("attention_mask").sum(Kind::Double).double_value(&[]);
        let scale = counted / batch.counts().maskable as f64;
        compare_bd3lm(case, &batch, &subs(case, weight), scale);
    });
}

fn compare_bd3lm(case: &Case<'_>, batch: &NoisedBatch, objective: &Objective, scale: f64) {
    let input = batch.model_input(batch.masked_positions()).unwrap();
    assert_eq!(input.ids.size(), case.tensor("model_input_ids").size());
    compare(case, batch, objective, "model_input_ids", scale, 1.0);
}

#[test]
fn a_process_in_blocks_of_nothing_is_refused() {
    let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 0.0 }, MaskPolicy::new(1));
    assert!(matches!(
        process.in_blocks(0, dlm_diffusion::LastBlock::Shorter),
        Err(DiffusionError::OutOfRange { name: "block_length", .. })
    ));
}
