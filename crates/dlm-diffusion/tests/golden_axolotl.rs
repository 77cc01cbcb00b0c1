//! Masking, attention, loss, metrics and gradients equal Axolotl's, from the draws and logits that it recorded.

use dlm_diffusion::{
    Accumulation, AttentionLayout, CleanBatch, ForwardProcess, LossNormalization, LossWeight, MaskPolicy,
    NoiseSchedule, NoisedBatch, Objective, PackingIsolation, ScheduleName, StepMetrics, diffusion_loss,
    predicting_positions,
};
use dlm_golden::{assert_close, assert_number, files, integers, json, number, tensors};
use serde_json::Value;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

type Tensors = BTreeMap<String, Tensor>;

/// A recorded micro-batch: what Axolotl was given, noised by us.
struct Case<'a> {
    name: &'a str,
    json: &'a Value,
    tensors: &'a Tensors,
}

impl Case<'_> {
    fn tensor(&self, what: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{}.{what}", self.name))
    }

    fn ids(&self) -> &Tensor {
        self.tensor("ids").or_else(|| self.tensor("input_ids")).expect("ids")
    }

    fn noised(&self, eps: f64, policy: MaskPolicy) -> NoisedBatch {
        let copy = Tensor::shallow_clone;
        let mut clean = CleanBatch::new(copy(self.ids())).unwrap();
        if let Some(labels) = self.tensor("labels") {
            clean = clean.with_labels(copy(labels)).unwrap();
        }
        if let Some(segments) = self.tensor("attention_mask") {
            clean = clean.with_segments(copy(segments)).unwrap();
        }
        let schedule = NoiseSchedule::new(ScheduleName::Linear, eps).unwrap();
        let process = ForwardProcess::new(schedule, policy).isolating(PackingIsolation::Row);
        process.noise(clean, &self.tensor("t").expect("t").unsqueeze(1), self.tensor("u").expect("u")).unwrap()
    }

    /// Axolotl's loss: by row where there are labels; otherwise over every slot, or over masked tokens when nothing is weighted.
    fn objective(&self, importance_weighting: bool) -> Objective {
        let normalization = match (self.tensor("labels"), importance_weighting) {
            (Some(_), _) => LossNormalization::Sequence,
            (None, true) => LossNormalization::Slots,
            (None, false) => LossNormalization::Masked,
        };
        let weight = if importance_weighting { LossWeight::Auto } else { LossWeight::Uniform };
        Objective::new(normalization).weighted(weight).accumulated(Accumulation::MicroBatch)
    }

    fn policy(&self, of: &Value) -> MaskPolicy {
        let mask_token_id = of["mask_token_id"].as_i64().expect("a mask token id");
        MaskPolicy::new(mask_token_id).sparing(integers(&of["special_token_ids"]))
    }
}

fn assert_metrics(name: &str, found: StepMetrics, expected: &Value, is_answer: bool, without: &[&str]) {
    let found = if is_answer { found } else { found.without_answers() };
    let keep = |name: &&str| *name != "nelbo" && !without.contains(name);
    let found: BTreeMap<&str, f64> = found.named().into_iter().filter(|(name, _)| keep(name)).collect();
    let expected = expected.as_object().expect("metrics").iter().map(|(name, value)| (name.as_str(), value));
    let expected: BTreeMap<&str, f64> =
        expected.filter(|(name, _)| keep(name)).map(|(name, value)| (name, number(value).expect("a number"))).collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}: metrics");
    for (metric, value) in found {
        assert_number(&format!("{name}: {metric}"), value, expected[metric], 1e-7, 1e-5);
    }
}

fn for_each_case(prefix: &str, mut check: impl FnMut(&Value, &Case<'_>)) {
    let mut cases = 0;
    for path in files(prefix, "json") {
        let file = json(&path);
        let Some(recorded) = file["cases"].as_array() else {
            continue; // the helpers, which have tests of their own
        };
        let tensors = tensors(&path.with_extension("safetensors"));
        for json in recorded.iter().filter(|case| case.get("error").is_none()) {
            let name = json["name"].as_str().expect("a name");
            check(&file, &Case { name, json, tensors: &tensors });
            cases += 1;
        }
    }
    assert!(cases > 0, "no cases in {prefix}*");
}

#[test]
fn every_golden_case_is_masked_like_axolotl_does() {
    for_each_case("diffusion_axolotl", |_, case| {
        let name = case.name;
        let batch = case.noised(number(&case.json["eps"]).expect("eps"), case.policy(case.json));
        let expected = |what| case.tensor(what).unwrap_or_else(|| panic!("{name}: {what}"));
        assert_eq!(batch.noised().p_mask, *expected("p_mask"), "{name}: p_mask");
        assert_eq!(batch.noised().is_masked.to_kind(Kind::Uint8), *expected("masked"), "{name}: masked");
        assert_eq!(batch.noised().ids, *expected("noisy"), "{name}: noisy");
    });
}

#[test]
fn every_golden_case_attends_like_axolotl_does() {
    for_each_case("diffusion_axolotl", |_, case| {
        let Some(expected) = case.tensor("attention_4d") else { return };
        let seq_len = case.ids().size()[1];
        let layout = case
            .tensor("attention_mask")
            .map_or_else(AttentionLayout::full, |mask| AttentionLayout::segments(mask).expect("segments"));
        let dense = layout.dense_mask(seq_len, Device::Cpu).unwrap_or_else(|| expected.ones_like().to_kind(Kind::Bool));
        assert_eq!(dense.to_kind(Kind::Uint8), *expected, "{}", case.name);
    });
}

#[test]
fn every_golden_case_has_the_loss_the_metrics_and_the_gradients_of_axolotl() {
    let mut gradients = 0;
    for_each_case("diffusion_axolotl", |_, case| {
        let (name, json) = (case.name, case.json);
        let batch = case.noised(number(&json["eps"]).expect("eps"), case.policy(json));
        let objective = case.objective(json["importance_weighting"].as_bool().expect("a flag"));
        // Axolotl predicts each token from the state before it; the recorded logits are not shifted yet.
        let logits = case.tensor("logits").map(|logits| logits.copy().set_requires_grad(true));
        let denoiser = |ids: &Tensor| {
            assert_eq!(*ids, batch.noised().ids, "{name}: what the denoiser is given");
            let logits = logits.as_ref().expect("the denoiser is called only where Axolotl calls the model");
            let (rows, seq_len) = batch.clean().shape();
            let everywhere = Tensor::arange(rows * seq_len, (Kind::Int64, Device::Cpu));
            let sources = predicting_positions(&everywhere, seq_len, None, PackingIsolation::Row).unwrap();
            logits.flatten(0, 1).index_select(0, &sources).view_as(logits)
        };
        let output = diffusion_loss(&denoiser, &batch, &objective, &batch.counts()).unwrap();

        let expected = case.tensor("loss").expect("a loss");
        assert_close(&format!("{name}: loss"), &output.loss, expected, 0.0, 1e-5);
        assert_number(name, output.loss.double_value(&[]), number(&json["loss"]).expect("a loss"), 0.0, 1e-5);
        let is_answer = json["datasets_configured"].as_bool().expect("a flag");
        assert_metrics(name, output.metrics, &json["metrics"], is_answer, &[]);
        assert_eq!(output.loss.requires_grad(), logits.is_some(), "{name}: a graph");
        if let Some(logits) = logits {
            output.loss.backward();
            if let Some(expected) = case.tensor("grad_logits") {
                assert_close(&format!("{name}: gradient"), &logits.grad(), expected, 1e-4, 1e-3);
                // The tolerance above is as large as many gradients: the same, relative to the largest.
                let scale = expected.abs().max();
                assert_close(&format!("{name}: gradient"), &(logits.grad() / &scale), &(expected / &scale), 1e-5, 0.0);
                gradients += 1;
            }
        }
    });
    assert!(gradients > 0, "no gradients were compared");
}

#[test]
fn the_noise_of_every_golden_pipeline_batch_has_the_counts_of_axolotl() {
    for_each_case("pipeline_sft", |file, case| {
        let Some(model) = case.json["model"].as_str().filter(|_| case.json["loss"].is_number()) else { return };
        let cases = file["cases"].as_array().expect("cases");
        let data =
            cases.iter().find(|data| data["model"] == model && data["conversations"].is_array()).expect("its data");
        let batch = case.noised(number(&file["eps"]).expect("eps"), case.policy(data));
        let objective = case.objective(file["importance_weighting"].as_bool().expect("a flag"));
        // The logits were not recorded; these numbers do not depend on them.
        let vocab = case.ids().max().int64_value(&[]) + 1;
        let denoiser = |ids: &Tensor| Tensor::zeros([ids.size()[0], ids.size()[1], vocab], (Kind::Float, Device::Cpu));
        let output = diffusion_loss(&denoiser, &batch, &objective, &batch.counts()).unwrap();
        assert_metrics(case.name, output.metrics, &case.json["metrics"], true, &["loss", "ce_loss", "accuracy"]);
    });
}

fn helpers(what: &str) -> Vec<Value> {
    let of = |file: Value| file[what].as_array().cloned().unwrap_or_default();
    let cases: Vec<Value> = files("diffusion_axolotl_helpers", "json").iter().flat_map(|path| of(json(path))).collect();
    assert!(!cases.is_empty(), "no {what}");
    cases
}

fn nested(value: &Value) -> Tensor {
    match value {
        Value::Array(items) => Tensor::stack(&items.iter().map(nested).collect::<Vec<_>>(), 0),
        _ => Tensor::from(number(value).expect("a number")),
    }
}

#[test]
fn golden_logits_are_shifted_as_predicting_positions_says() {
    for case in helpers("shift_logits") {
        let (input, output) = (nested(&case["input"]), nested(&case["output"]));
        let size = input.size();
        let everywhere = Tensor::arange(size[0] * size[1], (Kind::Int64, Device::Cpu));
        let sources = predicting_positions(&everywhere, size[1], None, PackingIsolation::Row).unwrap();
        assert_eq!(input.flatten(0, 1).index_select(0, &sources).view_as(&output), output);
    }
}

#[test]
fn golden_attention_masks_are_the_dense_masks_of_their_segments() {
    for case in helpers("bidirectional_mask") {
        let segments = nested(&case["attention_mask"]).to_kind(Kind::Int64);
        let mask = AttentionLayout::segments(&segments).unwrap().dense_mask(segments.size()[1], Device::Cpu).unwrap();
        assert_eq!(mask.to_kind(Kind::Int64), nested(&case["mask"]).to_kind(Kind::Int64), "{}", case["attention_mask"]);
    }
}

/// The settings of `config_axolotl` that this crate judges: accepted there and here, or refused there and here.
#[test]
fn golden_settings_of_schedules_and_ratios_are_accepted_or_refused_alike() {
    let known = ["noise_schedule", "eps", "min_mask_ratio", "max_mask_ratio"];
    let mut judged = 0;
    for path in files("config_axolotl", "json") {
        for case in json(&path)["cases"].as_array().expect("cases") {
            let config = case["config"].as_object().expect("a config");
            if config.is_empty() || !config.keys().all(|key| known.contains(&key.as_str())) {
                continue;
            }
            let given = |key: &str| match config.get(key) {
                Some(Value::String(text)) => Some(text.parse().expect("a number")),
                value => value.and_then(Value::as_f64),
            };
            let name = config.get("noise_schedule").and_then(Value::as_str).unwrap_or("linear");
            let found = name.parse().and_then(|name| NoiseSchedule::new(name, given("eps").unwrap_or(1e-3))).and_then(
                |schedule| dlm_diffusion::MaskRange::new(&schedule, given("min_mask_ratio"), given("max_mask_ratio")),
            );
            assert_eq!(found.is_ok(), case.get("result").is_some(), "{}: {found:?}", case["config"]);
            judged += 1;
        }
    }
    assert!(judged > 0, "no settings were judged");
}
