//! The losses of LLaDA's guidelines, pretraining and fine-tuning, from recorded draws and logits.

mod common;

use common::golden::{Recorded, assert_gradients, for_each_case};
use dlm_diffusion::{
    CleanBatch, ForwardProcess, IGNORE_INDEX, LossNormalization, MaskPolicy, NoiseSchedule, Objective, diffusion_loss,
};
use dlm_golden::assert_number;
use tch::{Device, Kind, Tensor};

#[test]
fn golden_llada_losses_masks_and_gradients_are_ours() {
    let mut largest = 0f64;
    for_each_case("diffusion_llada", |case| {
        let (name, ids) = (case.name, case.tensor("ids"));
        let size = ids.size();
        let mut clean = CleanBatch::new(ids.shallow_clone()).unwrap();
        // Pretraining averages over every slot, fine-tuning over each answer and then the rows.
        let mut normalization = LossNormalization::Slots;
        if let Some(prompts) = case.get("prompt_lengths") {
            let columns = Tensor::arange(size[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
            let is_prompt = columns.lt_tensor(&prompts.unsqueeze(1));
            clean = clean.with_labels(ids.masked_fill(&is_prompt, IGNORE_INDEX)).unwrap();
            normalization = LossNormalization::Sequence;
        }
        let policy = MaskPolicy::new(case.integer("mask_token_id"));
        let process = ForwardProcess::new(NoiseSchedule::Linear { eps: 1e-3 }, policy);
        let batch = process.noise(clean, &case.tensor("t").unsqueeze(1), &case.tensor("u")).unwrap();
        assert_eq!(batch.noised().p_mask, case.tensor("p_mask"), "{name}");
        assert_eq!(batch.noised().ids, case.tensor("noisy"), "{name}");

        let logits = case.tensor("logits").set_requires_grad(true);
        let denoiser =
            Recorded { logits: logits.shallow_clone(), ids: case.tensor("noisy"), compared: None, shifted: false };
        let output = diffusion_loss(&denoiser, &batch, &Objective::new(normalization), &batch.counts()).unwrap();
        let (found, expected) = (output.loss.double_value(&[]), case.number("loss"));
        assert_number(name, found, expected, 0.0, 1e-5);
        largest = largest.max((found - expected).abs() / expected.abs().max(1e-9));
        output.loss.backward();
        if expected != 0.0 {
            assert_gradients(name, &logits, &case.tensor("grad_logits"));
        }
    });
    println!("diffusion_llada: largest error {largest:e}");
}
