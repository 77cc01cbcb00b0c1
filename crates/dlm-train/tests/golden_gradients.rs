//! Gradients of Axolotl's loss through the real models.

mod support;

use dlm_golden::{assert_close, assert_number};
use dlm_train::{AdamW, NoisedWindow, OptimizerConfig};
use std::path::Path;
use support::{RecordedNoise, axolotl_objective, batch, model};
use tch::Device;

/// Whether the file had gradients and a model that is implemented.
fn check(path: &Path) -> bool {
    let metadata = dlm_golden::metadata(path);
    let tensors = dlm_golden::tensors(path);
    let (Some(name), Some(t)) = (metadata.get("model"), tensors.get("grad_t")) else { return false };
    // Families without a shift have another loss in these files.
    let (Some(special), Some(model)) = (metadata.get("special_token_ids"), model(&dlm_golden::model(name))) else {
        return false;
    };
    let never_mask = dlm_golden::integers(&serde_json::from_str(special).unwrap());
    let importance_weighting = metadata["importance_weighting"] == "True";
    let mask_token_id = metadata["mask_token_id"].parse().unwrap();
    let eps = metadata["eps"].parse().unwrap();
    let objective = axolotl_objective(mask_token_id, never_mask, eps, importance_weighting, false);
    let batch = batch(&tensors["ids"], &tensors["attention_mask"], None, 0);
    let mut noise = RecordedNoise::default();
    noise.record(&batch, t, &tensors["grad_u"]);
    let window = NoisedWindow::new(&[batch], 0, &objective.process().unwrap(), &noise).unwrap();
    let metrics = window.score(&model, Device::Cpu, &objective.loss(), 1).unwrap();
    let loss = metrics[0].loss.value().unwrap();
    assert_number(&format!("{name} loss"), loss, tensors["grad_loss"].double_value(&[]), 0.0, 1e-4);
    for (parameter, tensor) in model.named_parameters() {
        if let Some(expected) = tensors.get(&format!("grad.{parameter}")) {
            assert_close(&format!("{name} {parameter}"), &tensor.grad(), expected, 1e-4, 1e-3);
        }
    }
    let norm = AdamW::new(model.named_parameters(), &OptimizerConfig::default()).clip_gradients().unwrap();
    let expected = tensors["grad_global_norm"].double_value(&[]);
    assert_number(&format!("{name} norm"), norm, expected, 1e-4, 1e-4);
    true
}

#[test]
fn golden_gradients_of_the_loss_are_those_of_the_reference() {
    let checked = dlm_golden::files("model_", "safetensors").iter().filter(|path| check(path)).count();
    assert!(checked > 0, "no model with gradients to compare with");
}
