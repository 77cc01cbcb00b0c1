//! Keys that were given and mean nothing beside the other settings: they are told, each with the reason.

use super::{
    choices::ObjectiveName,
    keys::Settings,
    resolve::{Ignored, Resolved},
};
use dlm_diffusion::LossWeight;

/// What has no effect of what the user gave; profiles and `compat` may say more than is needed.
pub(super) fn without_effect(resolved: &Resolved) -> Vec<Ignored> {
    let is_given = |key: &str| {
        let origin = resolved.origin(key);
        resolved.is_given(key) && !origin.starts_with("profile ") && !origin.starts_with("diffusion.compat")
    };
    let mut told: Vec<Ignored> = Vec::new();
    for (_, reason, keys) in rules(&resolved.settings).into_iter().filter(|(is_idle, ..)| *is_idle) {
        for &key in keys {
            if is_given(key) && told.iter().all(|ignored| ignored.key != key) {
                told.push(Ignored { key: key.to_owned(), origin: resolved.origin(key), reason: reason.to_owned() });
            }
        }
    }
    told
}

/// When, why and which keys; a key may be in several, of which the first is told.
fn rules(settings: &Settings) -> [(bool, &'static str, &'static [&'static str]); 6] {
    let diffusion = &settings.diffusion;
    [
        (
            settings.adapter.is_none(),
            "`adapter` is unset: all weights are trained",
            &[
                "lora_r",
                "lora_alpha",
                "lora_dropout",
                "lora_target_modules",
                "lora_target_linear",
                "lora_modules_to_save",
                "peft_use_rslora",
            ],
        ),
        (
            diffusion.objective == ObjectiveName::Autoregressive,
            "`objective = \"autoregressive\"` masks nothing",
            &[
                "diffusion.masking",
                "diffusion.timesteps",
                "diffusion.min_mask_ratio",
                "diffusion.max_mask_ratio",
                "diffusion.importance_weighting",
                "diffusion.loss_weight",
            ],
        ),
        (
            diffusion.block_length.is_none(),
            "`block_length` is unset: there are no blocks",
            &["diffusion.last_block", "diffusion.block_start"],
        ),
        (
            !diffusion.importance_weighting,
            "`importance_weighting` is off: masked tokens weigh all alike",
            &["diffusion.loss_weight", "diffusion.cart_p"],
        ),
        (diffusion.loss_weight != LossWeight::Cart, "it is for `loss_weight = \"cart\"`", &["diffusion.cart_p"]),
        (
            !diffusion.generate_samples,
            "`generate_samples` is off",
            &[
                "diffusion.generation_interval",
                "diffusion.num_generation_samples",
                "diffusion.generation_steps",
                "diffusion.generation_temperature",
                "diffusion.generation_max_length",
            ],
        ),
    ]
}
