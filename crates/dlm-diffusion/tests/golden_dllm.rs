//! The losses of dllm's MDLM, BD3-LM and Dream trainers from recorded draws and logits.

mod common;

use common::golden::{Case, Recorded, assert_gradients, for_each_case};
use dlm_diffusion::{
    CleanBatch, ForwardProcess, IGNORE_INDEX, LossNormalization, LossWeight, MaskPolicy, MaskRange, NoiseSchedule,
    Objective, PackingIsolation, WeightRule, diffusion_loss,
};
use dlm_golden::assert_number;
use tch::{Device, Kind, Tensor};

/// dllm adds this to every probability that it divides by.
const OFFSET: f64 = 1e-6;

fn weight(name: &str) -> WeightRule {
    let cart = name.strip_prefix("cart[geo_p:").and_then(|rest| rest.strip_suffix(']'));
    match (name, cart) {
        ("scheduler", _) => WeightRule::elbo().with_offset(OFFSET),
        ("uniform", _) => LossWeight::Uniform.into(),
        (_, Some(p)) => WeightRule::from(LossWeight::Cart).with_cart_p(p.parse().expect("a number")),
        _ => panic!("unknown weight {name}"),
    }
}

/// A row with the bos token in front, which is no target.
fn prepended(tensor: &Tensor, value: i64) -> Tensor {
    let column = Tensor::full([tensor.size()[0], 1], value, (Kind::Int64, Device::Cpu));
    Tensor::cat(&[&column, tensor], 1)
}

fn clean(case: &Case<'_>) -> CleanBatch {
    let [mut ids, mut labels, mut attention] = ["ids", "labels", "attention_mask"].map(|what| case.tensor(what));
    if case.flag("bos_prepended") {
        ids = prepended(&ids, case.integer("bos_token_id"));
        labels = prepended(&labels, IGNORE_INDEX);
        attention = prepended(&attention, 1);
    }
    CleanBatch::new(ids).and_then(|b| b.with_labels(labels)).and_then(|b| b.with_segments(attention)).unwrap()
}

#[test]
fn golden_dllm_losses_masks_and_gradients_are_ours() {
    let (mut largest, mut gradients, mut attentions) = (0f64, 0, 0);
    for_each_case("diffusion_dllm", |case| {
        let name = case.name;
        let schedule = match case.text("scheduler") {
            "LinearAlphaScheduler" => NoiseSchedule::Linear { eps: 0.0 },
            "CosineAlphaScheduler" => NoiseSchedule::Sine { eps: 0.0 },
            other => panic!("unknown scheduler {other}"),
        };
        let range = MaskRange::between(case.number("time_epsilon"), 1.0).unwrap();
        let draws = Vec::<f32>::try_from(case.tensor("u_t")).unwrap();
        let t: Vec<f32> = draws.into_iter().map(|draw| range.t_of(draw)).collect();
        // dllm's rows are units, and CART looks over the whole of them.
        let mut process = ForwardProcess::new(schedule, MaskPolicy::new(case.integer("mask_token_id")))
            .within(range)
            .isolating(PackingIsolation::Row);
        if let Some(block_length) = case.json["block_size"].as_i64() {
            process = process.in_blocks(block_length, dlm_diffusion::LastBlock::Shorter).unwrap();
        }
        let batch = process.noise(clean(case), &Tensor::from_slice(&t).unsqueeze(1), &case.tensor("u")).unwrap();
        let input = batch.model_input(batch.masked_positions()).unwrap();
        if let Some(expected) = case.get("attention_4d") {
            // dllm hides padding later on, as a key only.
            let layout = dlm_diffusion::AttentionLayout::full().with_visibility(input.attention.visibility);
            let mask = layout.dense_mask(expected.size()[3], Device::Cpu).expect("blocks have a mask");
            assert_eq!(mask.to_kind(Kind::Uint8), expected, "{name}: attention");
            assert_eq!(input.position_ids.expect("positions of both halves"), case.tensor("position_ids"), "{name}");
            attentions += 1;
        }

        let normalization = match case.text("loss_norm_type") {
            "token" => LossNormalization::Token,
            "sequence" => LossNormalization::Sequence,
            "batch" => LossNormalization::Batch,
            other => panic!("unknown normalisation {other}"),
        };
        let logits = case.tensor("logits").set_requires_grad(true);
        let denoiser = Recorded {
            logits: logits.shallow_clone(),
            ids: case.tensor("model_input_ids"),
            compared: None,
            shifted: case.flag("right_shift_logits"),
        };
        let objective = Objective::new(normalization).weighted(weight(case.text("loss_weight_type")));
        let output = diffusion_loss(&denoiser, &batch, &objective, &batch.counts()).unwrap();
        let (found, expected) = (output.loss.double_value(&[]), case.number("loss"));
        assert_number(name, found, expected, 0.0, 1e-5);
        largest = largest.max((found - expected).abs() / expected.abs());
        output.loss.backward();
        if let Some(expected) = case.get("grad_logits") {
            assert_gradients(name, &logits, &expected);
            gradients += 1;
        }
        // Its metric is the weighted loss over all tokens, whatever the loss is divided by.
        let by_token = Objective::new(LossNormalization::Token).weighted(objective.weight);
        let nll = diffusion_loss(&denoiser, &batch, &by_token, &batch.counts()).unwrap().loss.double_value(&[]);
        assert_number(&format!("{name}: nll"), nll, case.number("nll"), 0.0, 1e-5);
        assert_number(&format!("{name}: ppl"), nll.exp(), case.number("ppl"), 0.0, 2e-4);
    });
    assert!(gradients > 0 && attentions > 0);
    println!("diffusion_dllm: largest error {largest:e}");
}
