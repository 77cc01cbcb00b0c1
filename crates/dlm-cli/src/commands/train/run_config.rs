//! Settings to what the trainer is told.

use super::setup::Data;
use crate::settings::{Bf16, Compat, ObjectiveName, Settings, Strategy};
use dlm_diffusion::{AutoregressivePart, LossWeight};
use dlm_tokenizer::{MaskToken, Tokenizer};
use dlm_train::{
    BatchConfig, CheckpointConfig, EvaluationConfig, Interval, LrScheduleConfig, ObjectiveConfig, OptimizerConfig,
    Precision, PreviewConfig, RunConfig, RunLength, Warmup,
};

/// Steps between evaluations and checkpoints where the settings say nothing, as in transformers.
const DEFAULT_INTERVAL: u64 = 500;

/// Everything the trainer is told beside model and data.
pub(super) fn run_config(
    settings: &Settings,
    data: &Data,
    tokenizer: &Tokenizer,
    mask: &MaskToken,
    never_mask: &[i64],
    logits_shift: bool,
) -> anyhow::Result<RunConfig> {
    let micro_batch_size = usize::try_from(settings.micro_batch_size)?;
    Ok(RunConfig {
        output_dir: settings.output_dir.clone().into(),
        seed: settings.seed,
        length: settings.max_steps.map_or(RunLength::Epochs(settings.num_epochs), RunLength::Steps),
        logging_steps: settings.logging_steps,
        objective: objective(settings, i64::from(mask.id), never_mask, logits_shift),
        batches: BatchConfig {
            micro_batch_size,
            gradient_accumulation_steps: usize::try_from(settings.gradient_accumulation_steps)?,
            shuffle: true,
        },
        read_ahead: usize::try_from(settings.dataloader_prefetch_factor)?,
        precision: precision(settings)?,
        gradient_checkpointing: settings.gradient_checkpointing,
        optimizer: OptimizerConfig {
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            eps: settings.adam_epsilon,
            weight_decay: settings.weight_decay,
            max_grad_norm: Some(settings.max_grad_norm).filter(|max| *max > 0.0),
        },
        lr_schedule: LrScheduleConfig {
            learning_rate: settings.learning_rate,
            scheduler: settings.lr_scheduler,
            warmup: settings.warmup_steps.map_or(Warmup::Ratio(settings.warmup_ratio), Warmup::Steps),
        },
        checkpoints: CheckpointConfig {
            every: interval(settings.save_strategy, settings.save_steps, settings.saves_per_epoch),
            total_limit: settings.save_total_limit.map(usize::try_from).transpose()?,
        },
        evaluation: EvaluationConfig {
            every: interval(settings.eval_strategy, settings.eval_steps, settings.evals_per_epoch),
            micro_batch_size,
            max_rows: settings.max_eval_samples.map(usize::try_from).transpose()?,
            passes: usize::try_from(settings.eval_passes)?,
            tokens_per_byte: data.tokens_per_byte(tokenizer, never_mask)?,
        },
        previews: previews(settings, tokenizer)?,
    })
}

/// The kinds of numbers that the settings ask for.
fn precision(settings: &Settings) -> anyhow::Result<Precision> {
    let is_mixed = match settings.bf16 {
        Bf16::Off => false,
        Bf16::On => true,
        Bf16::Auto => !settings.bfloat16 && has_bf16(&settings.device),
    };
    match (settings.bfloat16, is_mixed) {
        (true, true) => {
            anyhow::bail!("`bf16` keeps weights in float32 and `bfloat16` does not: set one of the two to `false`")
        }
        (true, false) => Ok(Precision::Bfloat16),
        (false, true) => Ok(Precision::Mixed),
        (false, false) => Ok(Precision::Float32),
    }
}

/// Whether the device multiplies bfloat16 faster than float32.
fn has_bf16(device: &str) -> bool {
    let is_cpu = device == "cpu" || (device == "auto" && !tch::Cuda::is_available());
    !is_cpu || crate::commands::doctor::bf16_in_hardware(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn interval(strategy: Strategy, steps: Option<u64>, per_epoch: Option<u64>) -> Interval {
    match (strategy, steps, per_epoch) {
        (Strategy::No, ..) => Interval::Never,
        (Strategy::Epoch, ..) => Interval::PerEpoch(1),
        (Strategy::Steps, Some(steps), _) => Interval::Steps(steps),
        (Strategy::Steps, None, Some(times)) => Interval::PerEpoch(times),
        (Strategy::Steps, None, None) => Interval::Steps(DEFAULT_INTERVAL),
    }
}

fn objective(settings: &Settings, mask_token_id: i64, never_mask: &[i64], logits_shift: bool) -> ObjectiveConfig {
    let diffusion = &settings.diffusion;
    ObjectiveConfig {
        noise_schedule: diffusion.noise_schedule,
        eps: diffusion.eps,
        sigma_min: diffusion.sigma_min,
        sigma_max: diffusion.sigma_max,
        schedule_power: diffusion.schedule_power,
        min_mask_ratio: diffusion.min_mask_ratio,
        max_mask_ratio: diffusion.max_mask_ratio,
        timesteps: diffusion.timesteps,
        loss_weight: if diffusion.importance_weighting { diffusion.loss_weight } else { LossWeight::Uniform },
        masking: diffusion.masking,
        complementary_masks: diffusion.complementary_masks,
        block_length: diffusion.block_length.clone(),
        last_block: diffusion.last_block,
        attention_annealing_steps: diffusion.attention_annealing_steps,
        autoregressive: (diffusion.objective == ObjectiveName::Autoregressive).then_some(logits_shift),
        autoregressive_part: (diffusion.autoregressive_weight > 0.0)
            .then_some(AutoregressivePart { weight: diffusion.autoregressive_weight, logits_shift }),
        random_length_probability: diffusion.random_length_probability,
        prompt_drop_probability: diffusion.prompt_drop_probability,
        loss_weight_cap: diffusion.loss_weight_cap,
        loss_weight_offset: diffusion.loss_weight_offset,
        cart_p: diffusion.cart_p,
        label_smoothing: diffusion.label_smoothing,
        z_loss: diffusion.z_loss,
        forbid_mask: diffusion.forbid_mask,
        loss_normalization: diffusion.loss_normalization,
        accumulation: diffusion.accumulation,
        packing_isolation: settings.packing_isolation,
        mask_token_id,
        never_mask: never_mask.to_vec(),
    }
}

fn previews(settings: &Settings, tokenizer: &Tokenizer) -> anyhow::Result<Option<PreviewConfig>> {
    let diffusion = &settings.diffusion;
    if !diffusion.generate_samples {
        return Ok(None);
    }
    Ok(Some(PreviewConfig {
        interval: diffusion.generation_interval,
        count: usize::try_from(diffusion.num_generation_samples)?,
        steps: usize::try_from(diffusion.generation_steps)?,
        temperature: diffusion.generation_temperature,
        max_length: usize::try_from(diffusion.generation_max_length)?,
        vocab_size: Some(i64::try_from(tokenizer.len())?),
    }))
}

/// Whether a model from scratch predicts each token from the state before it, as Axolotl trains every model.
pub(super) fn shifts_from_scratch(settings: &Settings) -> bool {
    settings.diffusion.compat == Compat::Axolotl
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Sources;

    #[test]
    fn intervals_are_what_the_strategy_says_and_500_steps_where_nothing_does() {
        assert_eq!(interval(Strategy::Steps, Some(7), None), Interval::Steps(7));
        assert_eq!(interval(Strategy::Steps, None, Some(2)), Interval::PerEpoch(2));
        assert_eq!(interval(Strategy::Steps, None, None), Interval::Steps(500));
        assert_eq!(interval(Strategy::Epoch, None, None), Interval::PerEpoch(1));
        assert_eq!(interval(Strategy::No, None, None), Interval::Never);
    }

    #[test]
    fn without_importance_weighting_every_weight_is_uniform() {
        let mut settings = Settings::default();
        settings.diffusion.importance_weighting = false;
        settings.diffusion.loss_weight = LossWeight::Elbo;
        assert_eq!(objective(&settings, 1, &[], false).loss_weight, LossWeight::Uniform);
    }

    #[test]
    fn every_setting_of_the_objective_reaches_the_trainer_and_changes_what_it_does() {
        let of = |assignments: &[&str]| {
            let assignments = assignments.iter().map(|text| (*text).to_owned()).collect();
            let resolved = crate::settings::resolve(&Sources { assignments, ..Sources::default() }).unwrap();
            objective(&resolved.settings, 9, &[], true)
        };
        let base = of(&[]);
        let assignments: [&[&str]; 29] = [
            &["diffusion.noise_schedule=sine"],
            &["diffusion.noise_schedule=geometric"],
            &["diffusion.noise_schedule=geometric", "diffusion.sigma_min=0.01"],
            &["diffusion.noise_schedule=linear_sigma", "diffusion.sigma_max=5"],
            &["diffusion.noise_schedule=polynomial", "diffusion.schedule_power=3"],
            &["diffusion.eps=0.01"],
            &["diffusion.min_mask_ratio=0.1"],
            &["diffusion.max_mask_ratio=0.9"],
            &["diffusion.objective=autoregressive"],
            &["diffusion.autoregressive_weight=0.5"],
            &["diffusion.autoregressive_weight=0.1"],
            &["diffusion.masking=exact_count"],
            &["diffusion.complementary_masks=true"],
            &["diffusion.block_length=32"],
            &["diffusion.block_length=0:1, 500:32"],
            &["diffusion.block_length=32", "diffusion.last_block=whole"],
            &["diffusion.attention_annealing_steps=100"],
            &["diffusion.random_length_probability=0.01"],
            &["diffusion.prompt_drop_probability=0.1"],
            &["diffusion.loss_weight=cart"],
            &["diffusion.loss_weight_cap=5"],
            &["diffusion.loss_weight_offset=1e-6"],
            &["diffusion.cart_p=0.1"],
            &["diffusion.label_smoothing=0.1"],
            &["diffusion.z_loss=1e-4"],
            &["diffusion.forbid_mask=true"],
            &["diffusion.timesteps=independent"],
            &["diffusion.loss_normalization=batch"],
            &["diffusion.accumulation=micro_batch"],
        ];
        let mut seen = vec![base];
        for assignments in assignments {
            let config = of(assignments);
            config.process().unwrap();
            assert!(!seen.contains(&config), "{assignments:?} changes nothing");
            seen.push(config);
        }
    }

    #[test]
    fn bf16_is_mixed_precision_bfloat16_is_pure_and_both_are_refused() {
        let of =
            |bf16, bfloat16| precision(&Settings { bf16, bfloat16, device: "cpu".to_owned(), ..Settings::default() });
        assert_eq!(of(Bf16::Off, false).unwrap(), Precision::Float32);
        assert_eq!(of(Bf16::On, false).unwrap(), Precision::Mixed);
        assert_eq!(of(Bf16::Off, true).unwrap(), Precision::Bfloat16);
        assert_eq!(of(Bf16::Auto, true).unwrap(), Precision::Bfloat16);
        assert!(of(Bf16::On, true).unwrap_err().to_string().contains("`bfloat16`"));
        let auto = if has_bf16("cpu") { Precision::Mixed } else { Precision::Float32 };
        assert_eq!(of(Bf16::Auto, false).unwrap(), auto);
    }
}
