//! Every setting with its type, its meaning and its default.

use super::{
    choices::{Adapter, Bf16, Compat, ObjectiveName, Optimizer, Strategy, WandbMode},
    dtype::{Dtype, LoadDtype},
    lenient::{
        Bf16Switch, Blocks, Count, Device, Fraction, Positive, ProperFraction, Rate, Switch, Text, TokenId, Whole,
        choice, list, one, optional, optional_choice, optional_list,
    },
    prepared::{PreparedPaths, prepared_paths},
};
use dlm_diffusion::{
    Accumulation, BlockLengths, BlockStart, LastBlock, LossNormalization, LossWeight, Masking, PackingIsolation,
    ScheduleName, Timesteps,
};
use dlm_train::LrScheduler;
use serde::{Deserialize, Serialize};

/// The settings of a run, under the names Axolotl's users know where it has one.
///
/// Read from layers by [`resolve`](super::resolve); a value of the wrong kind or outside its range never gets this far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Settings {
    /// Folder of the Hugging Face checkpoint to start from.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub base_model: Option<String>,
    /// Size of a model made from scratch, in place of `base_model`.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub model_preset: Option<String>,
    /// `config.json` of a model made from scratch, in place of `base_model`.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub model_config: Option<String>,
    /// Folder or `tokenizer.json` of the tokenizer; unset, the one of `base_model`, or else the one the data was prepared with.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub tokenizer_config: Option<String>,

    /// What is trained in place of all weights: `lora`, or unset.
    #[serde(deserialize_with = "optional_choice")]
    pub adapter: Option<Adapter>,
    /// Rank of the adapter's matrices.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub lora_r: u64,
    /// What the adapter's output is scaled by, divided by `lora_r`.
    #[serde(deserialize_with = "one::<Positive, _>")]
    pub lora_alpha: f64,
    /// Probability that a number is dropped on its way into the adapter.
    #[serde(deserialize_with = "one::<ProperFraction, _>")]
    pub lora_dropout: f64,
    /// Ends of the names of the linear maps that are adapted, such as `q_proj`; none and no `lora_target_linear` is all of them.
    #[serde(deserialize_with = "optional_list")]
    pub lora_target_modules: Vec<String>,
    /// Whether all linear maps are adapted, in place of `lora_target_modules`.
    #[serde(deserialize_with = "optional::<Switch, _>")]
    pub lora_target_linear: Option<bool>,
    /// Ends of the names of modules that are trained as a whole beside the adapter, such as `embed_tokens`.
    #[serde(deserialize_with = "optional_list")]
    pub lora_modules_to_save: Vec<String>,
    /// Whether `lora_alpha` is divided by the root of `lora_r` instead.
    #[serde(deserialize_with = "optional::<Switch, _>")]
    pub peft_use_rslora: Option<bool>,

    /// Folder of prepared data: what `dlm data prepare` wrote. Several are a list, of folders or of `{ path, weight }`.
    #[serde(deserialize_with = "prepared_paths")]
    pub dataset_prepared_path: Option<PreparedPaths>,
    /// Tokens in a row; unset, as the data was prepared.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub sequence_len: Option<u64>,
    /// Part of the training rows held out for validation (below 1), or their number; only where no data has a `validation` folder.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub val_set_size: f64,
    /// Whether documents of a packed row are apart in everything, or share positions, timestep and normalisation as in Axolotl.
    #[serde(deserialize_with = "choice")]
    pub packing_isolation: PackingIsolation,

    /// Optimiser steps whose rows are read in advance, by a thread of its own; 0 reads them when they are needed.
    #[serde(deserialize_with = "one::<Whole, _>")]
    pub dataloader_prefetch_factor: u64,
    /// Rows in one forward and backward pass.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub micro_batch_size: u64,
    /// Micro-batches in one step of the optimiser.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub gradient_accumulation_steps: u64,
    /// Steps of the optimiser; unset, `num_epochs` decides.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub max_steps: Option<u64>,
    /// Passes over the training data, when `max_steps` is unset.
    #[serde(deserialize_with = "one::<Positive, _>")]
    pub num_epochs: f64,
    /// Mixed precision: matrices are multiplied in bfloat16, weights, gradients and moments stay in float32. `auto` where the
    /// processor has instructions for it.
    #[serde(deserialize_with = "one::<Bf16Switch, _>")]
    pub bf16: Bf16,
    /// Weights, gradients and moments in bfloat16: half the memory, and steps too small for eight bits of a weight are lost.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub bfloat16: bool,
    /// Compute the activations inside of blocks again instead of keeping them: less memory, about a quarter more time.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub gradient_checkpointing: bool,
    /// What updates the weights.
    #[serde(deserialize_with = "choice")]
    pub optimizer: Optimizer,
    /// Learning rate at the end of the warmup.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub learning_rate: f64,
    /// How the learning rate falls after the warmup.
    #[serde(deserialize_with = "choice")]
    pub lr_scheduler: LrScheduler,
    /// Steps over which the learning rate rises from 0; in place of `warmup_ratio`.
    #[serde(deserialize_with = "optional::<Whole, _>")]
    pub warmup_steps: Option<u64>,
    /// Part of all steps over which the learning rate rises from 0.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub warmup_ratio: f64,
    /// Decoupled weight decay of the matrices; norms and biases do not decay.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub weight_decay: f64,
    /// Decay of AdamW's mean of gradients.
    #[serde(deserialize_with = "one::<ProperFraction, _>")]
    pub adam_beta1: f64,
    /// Decay of AdamW's mean of squared gradients.
    #[serde(deserialize_with = "one::<ProperFraction, _>")]
    pub adam_beta2: f64,
    /// What AdamW adds to its denominator.
    #[serde(deserialize_with = "one::<Positive, _>")]
    pub adam_epsilon: f64,
    /// Largest norm of the gradient; 0 does not clip.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub max_grad_norm: f64,

    /// When to evaluate; unless `no`, also at the end.
    #[serde(deserialize_with = "choice")]
    pub eval_strategy: Strategy,
    /// Validation rows that an evaluation looks at, scattered over all of them and the same every time; unset, all.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub max_eval_samples: Option<u64>,
    /// Steps between evaluations.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub eval_steps: Option<u64>,
    /// Evaluations in an epoch, in place of `eval_steps`.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub evals_per_epoch: Option<u64>,
    /// Forward passes of a validation document in each of two replicates: more of them lower the error of `eval/nelbo` from masks.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub eval_passes: u64,
    /// When to save a checkpoint.
    #[serde(deserialize_with = "choice")]
    pub save_strategy: Strategy,
    /// Steps between checkpoints.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub save_steps: Option<u64>,
    /// Checkpoints in an epoch, in place of `save_steps`.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub saves_per_epoch: Option<u64>,
    /// Newest checkpoints that are kept; unset keeps all.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub save_total_limit: Option<u64>,
    /// What the weights of the finished model are stored as: `float32`, `bfloat16` or `float16`; unset, as they were trained.
    #[serde(deserialize_with = "optional_choice")]
    pub save_dtype: Option<Dtype>,
    /// Largest file of the finished model's weights in megabytes; more are spread over several.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub max_shard_size: u64,
    /// Steps between lines of `metrics.jsonl`.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub logging_steps: u64,
    /// The run's folder: the model, checkpoints, metrics and samples.
    #[serde(deserialize_with = "one::<Text, _>")]
    pub output_dir: String,

    /// Whether to send the run to Weights & Biases; unset, when `wandb_project` is set.
    #[serde(deserialize_with = "optional::<Switch, _>")]
    pub use_wandb: Option<bool>,
    /// Project of the Weights & Biases run.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub wandb_project: Option<String>,
    /// User or team of the Weights & Biases run.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub wandb_entity: Option<String>,
    /// Name of the Weights & Biases run.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub wandb_name: Option<String>,
    /// Id of the Weights & Biases run, to go on with it later.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub wandb_run_id: Option<String>,
    /// Whether the run is sent, kept in files, or neither.
    #[serde(deserialize_with = "choice")]
    pub wandb_mode: WandbMode,

    /// What every random choice follows from.
    #[serde(deserialize_with = "one::<Whole, _>")]
    pub seed: u64,
    /// What weights become in memory for sampling and evaluation: `float32`, `bfloat16`, `float16`, or `auto`, as they are stored.
    #[serde(deserialize_with = "choice")]
    pub inference_dtype: LoadDtype,
    /// Where tensors live: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(deserialize_with = "one::<Device, _>")]
    pub device: String,
    /// Threads for tensors and for data; unset, as many as there are cores.
    #[serde(deserialize_with = "optional::<Count, _>")]
    pub threads: Option<u64>,

    /// Masked diffusion itself.
    pub diffusion: Diffusion,
}

/// The `diffusion` block: how tokens are masked, what the loss is, and how samples are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub struct Diffusion {
    /// How the masking probability rises with the timestep.
    #[serde(deserialize_with = "choice")]
    pub noise_schedule: ScheduleName,
    /// Smallest masking probability that is trained; unset, the schedule's.
    #[serde(deserialize_with = "optional::<Fraction, _>")]
    pub min_mask_ratio: Option<f64>,
    /// Largest masking probability that is trained; unset, the schedule's.
    #[serde(deserialize_with = "optional::<Fraction, _>")]
    pub max_mask_ratio: Option<f64>,
    /// Denoising steps at inference, where nothing else says.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub num_diffusion_steps: u64,
    /// Masking probability at timestep 0.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub eps: f64,
    /// Noise at timestep 0 of the `linear_sigma` (unset, 0) and `geometric` (0.001) schedules: minus the logarithm of the share of
    /// clean tokens.
    #[serde(deserialize_with = "optional::<Rate, _>")]
    pub sigma_min: Option<f64>,
    /// Noise at timestep 1 of the `linear_sigma` (unset, 10) and `geometric` (20) schedules.
    #[serde(deserialize_with = "optional::<Rate, _>")]
    pub sigma_max: Option<f64>,
    /// The exponent of the `polynomial` schedule; unset, 2.
    #[serde(deserialize_with = "optional::<Rate, _>")]
    pub schedule_power: Option<f64>,
    /// What is learnt: to fill in masks, or to continue a text.
    #[serde(deserialize_with = "choice")]
    pub objective: ObjectiveName,
    /// What an autoregressive loss, each token given those before it, counts beside the masked one; 0 for none.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub autoregressive_weight: f64,
    /// How many tokens a masking probability masks: each by itself, or an exact count of each document or block.
    #[serde(deserialize_with = "choice")]
    pub masking: Masking,
    /// Whether every batch is masked twice, each token in exactly one of the two.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub complementary_masks: bool,
    /// Tokens of a block in block diffusion, or step:length pairs such as `0:1, 500:4, 1000:32`; unset denoises whole documents.
    #[serde(deserialize_with = "optional::<Blocks, _>")]
    pub block_length: Option<BlockLengths>,
    /// What becomes of documents that whole blocks do not fill: their last block is `shorter`, or they are refused with `whole`.
    #[serde(deserialize_with = "choice")]
    pub last_block: LastBlock,
    /// With a logits shift, which state predicts the first token of a block: that of the clean token before it, as a cache holds it, or
    /// that of the noised one; unset, as the model was trained.
    #[serde(deserialize_with = "optional_choice")]
    pub block_start: Option<BlockStart>,
    /// Training steps over which attention opens from causal to bidirectional, for a model adapted from an autoregressive one.
    #[serde(deserialize_with = "one::<Whole, _>")]
    pub attention_annealing_steps: u64,
    /// How likely a document is cut to a random length.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub random_length_probability: f64,
    /// How likely a document is learnt without its prompt, as classifier-free guidance needs.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub prompt_drop_probability: f64,
    /// Largest weight of a masked token; unset, no limit.
    #[serde(deserialize_with = "optional::<Rate, _>")]
    pub loss_weight_cap: Option<f64>,
    /// Added to the probability that a weight is divided by; dllm has 1e-6.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub loss_weight_offset: f64,
    /// How fast `loss_weight = "cart"` fades with the distance to clean tokens.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub cart_p: f64,
    /// Share of the target's place that is given to all tokens alike.
    #[serde(deserialize_with = "one::<Fraction, _>")]
    pub label_smoothing: f64,
    /// Factor of the squared logarithm of the softmax's denominator, which keeps logits from drifting; 1e-4 is usual.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub z_loss: f64,
    /// Whether the mask token's own probability is taken as 0, as MDLM does.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub forbid_mask: bool,
    /// Whether masked tokens are weighted as `loss_weight` says, or all alike.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub importance_weighting: bool,
    /// What weights a masked token.
    #[serde(deserialize_with = "choice")]
    pub loss_weight: LossWeight,
    /// What the sum of losses is divided by.
    #[serde(deserialize_with = "choice")]
    pub loss_normalization: LossNormalization,
    /// Over what counts are taken when gradients accumulate.
    #[serde(deserialize_with = "choice")]
    pub accumulation: Accumulation,
    /// How timesteps are drawn.
    #[serde(deserialize_with = "choice")]
    pub timesteps: Timesteps,
    /// Whether a token is predicted from the state before it, as in models adapted from autoregressive ones; unset, as the model was
    /// trained, and not in one from scratch.
    #[serde(deserialize_with = "optional::<Switch, _>")]
    pub logits_shift: Option<bool>,
    /// Tokens that are never masked: `bos`, `eos`, `pad`, `unk`, or the text of a token.
    #[serde(deserialize_with = "list")]
    pub never_mask: Vec<String>,
    /// Text of the mask token; added to the tokenizer when it has none of that text.
    #[serde(deserialize_with = "optional::<Text, _>")]
    pub mask_token_str: Option<String>,
    /// Id of a token to use as the mask, in place of `mask_token_str`.
    #[serde(deserialize_with = "optional::<TokenId, _>")]
    pub mask_token_id: Option<u32>,
    /// Whether samples are made while training.
    #[serde(deserialize_with = "one::<Switch, _>")]
    pub generate_samples: bool,
    /// Training steps between samples.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub generation_interval: u64,
    /// Samples made at a time.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub num_generation_samples: u64,
    /// Denoising steps of a sample made while training.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub generation_steps: u64,
    /// Temperature of samples; 0 takes the most likely token.
    #[serde(deserialize_with = "one::<Rate, _>")]
    pub generation_temperature: f64,
    /// Longest sample made while training, in tokens.
    #[serde(deserialize_with = "one::<Count, _>")]
    pub generation_max_length: u64,
    /// Whose reading of these settings to reproduce.
    #[serde(deserialize_with = "choice")]
    pub compat: Compat,
}

/// Text of the mask token where the settings name none.
pub const DEFAULT_MASK_TOKEN: &str = "<|diffusion_mask|>";

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_model: None,
            model_preset: None,
            model_config: None,
            tokenizer_config: None,
            adapter: None,
            lora_r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            lora_target_modules: Vec::new(),
            lora_target_linear: None,
            lora_modules_to_save: Vec::new(),
            peft_use_rslora: None,
            dataset_prepared_path: None,
            sequence_len: None,
            val_set_size: 0.0,
            packing_isolation: PackingIsolation::Document,
            dataloader_prefetch_factor: 2,
            micro_batch_size: 4,
            gradient_accumulation_steps: 1,
            max_steps: None,
            num_epochs: 1.0,
            bf16: Bf16::Off,
            bfloat16: false,
            gradient_checkpointing: false,
            optimizer: Optimizer::AdamW,
            learning_rate: 1e-4,
            lr_scheduler: LrScheduler::Cosine,
            warmup_steps: None,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            eval_strategy: Strategy::Steps,
            max_eval_samples: None,
            eval_steps: None,
            evals_per_epoch: None,
            eval_passes: 1,
            save_strategy: Strategy::Steps,
            save_steps: None,
            saves_per_epoch: None,
            save_total_limit: Some(4),
            save_dtype: None,
            max_shard_size: 5000,
            logging_steps: 1,
            output_dir: "model-out".to_owned(),
            use_wandb: None,
            wandb_project: None,
            wandb_entity: None,
            wandb_name: None,
            wandb_run_id: None,
            wandb_mode: WandbMode::Online,
            seed: 42,
            inference_dtype: LoadDtype::Float32,
            device: "auto".to_owned(),
            threads: None,
            diffusion: Diffusion::default(),
        }
    }
}

impl Default for Diffusion {
    fn default() -> Self {
        Self {
            noise_schedule: ScheduleName::Linear,
            min_mask_ratio: None,
            max_mask_ratio: None,
            num_diffusion_steps: 128,
            eps: 1e-3,
            sigma_min: None,
            sigma_max: None,
            schedule_power: None,
            objective: ObjectiveName::Masked,
            autoregressive_weight: 0.0,
            masking: Masking::Bernoulli,
            complementary_masks: false,
            block_length: None,
            last_block: LastBlock::Shorter,
            block_start: None,
            attention_annealing_steps: 0,
            random_length_probability: 0.0,
            prompt_drop_probability: 0.0,
            loss_weight_cap: None,
            loss_weight_offset: 0.0,
            cart_p: 0.3,
            label_smoothing: 0.0,
            z_loss: 0.0,
            forbid_mask: false,
            importance_weighting: true,
            loss_weight: LossWeight::Auto,
            loss_normalization: LossNormalization::Token,
            accumulation: Accumulation::Global,
            timesteps: Timesteps::Stratified,
            logits_shift: None,
            never_mask: vec!["bos".to_owned()],
            mask_token_str: Some(DEFAULT_MASK_TOKEN.to_owned()),
            mask_token_id: None,
            generate_samples: true,
            generation_interval: 100,
            num_generation_samples: 3,
            generation_steps: 128,
            generation_temperature: 0.0,
            generation_max_length: 100,
            compat: Compat::None,
        }
    }
}

impl Diffusion {
    /// Text of the mask token.
    #[must_use]
    pub fn mask_token_str(&self) -> &str {
        self.mask_token_str.as_deref().unwrap_or(DEFAULT_MASK_TOKEN)
    }
}
