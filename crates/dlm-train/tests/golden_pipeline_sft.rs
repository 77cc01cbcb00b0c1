//! Loss and metrics of fine-tuning batches, packed and padded, through the real models.

mod support;

use dlm_diffusion::StepMetrics;
use dlm_golden::{assert_number, integers, number};
use dlm_train::NoisedWindow;
use serde_json::Value;
use std::collections::BTreeMap;
use support::{RecordedNoise, axolotl_objective, batch, model};
use tch::{Device, Tensor};

/// Whether the case has a batch and a model that is implemented.
fn check(case: &Value, file: &Value, tensors: &BTreeMap<String, Tensor>) -> bool {
    let (name, model_name) = (case["name"].as_str().unwrap(), case["model"].as_str().unwrap());
    let Some(ids) = tensors.get(&format!("{name}.input_ids")) else { return false };
    let Some(model) = model(&dlm_golden::model(model_name)) else { return false };
    let is_data = |other: &&Value| other["model"] == model_name && other.get("mask_token_id").is_some();
    let data = file["cases"].as_array().unwrap().iter().find(is_data).expect("the data of the model's cases");
    let tensor = |name: &str, x: &str| tensors[&format!("{name}.{x}")].shallow_clone();
    let objective = axolotl_objective(
        data["mask_token_id"].as_i64().unwrap(),
        integers(&data["special_token_ids"]),
        number(&file["eps"]).unwrap(),
        file["importance_weighting"].as_bool().unwrap(),
        true,
    );
    let batch = batch(ids, &tensor(name, "attention_mask"), Some(&tensor(name, "labels")), 0);
    let mut noise = RecordedNoise::default();
    noise.record(&batch, &tensor(name, "t"), &tensor(name, "u"));
    let window = NoisedWindow::new(&[batch], 0, &objective.process().unwrap(), &noise).unwrap();
    let scored = tch::no_grad(|| window.score(&model, Device::Cpu, &objective.loss(), 1)).unwrap();
    let [metrics]: &[StepMetrics; 1] = scored.as_slice().try_into().unwrap();
    let found: BTreeMap<&str, f64> = metrics.named().into_iter().collect();
    assert_number(&format!("{name} loss"), found["loss"], number(&case["loss"]).unwrap(), 0.0, 1e-4);
    for (metric, expected) in case["metrics"].as_object().unwrap() {
        let expected = number(expected).unwrap();
        assert_number(&format!("{name} {metric}"), found[metric.as_str()], expected, 1e-6, 1e-4);
    }
    true
}

#[test]
fn golden_fine_tuning_batches_have_the_loss_and_metrics_of_the_reference() {
    let mut checked = 0;
    for path in dlm_golden::files("pipeline_sft", "json") {
        let file = dlm_golden::json(&path);
        let tensors = dlm_golden::tensors(&path.with_extension("safetensors"));
        checked += file["cases"].as_array().unwrap().iter().filter(|case| check(case, &file, &tensors)).count();
    }
    assert!(checked > 0, "no batch to compare with");
}
