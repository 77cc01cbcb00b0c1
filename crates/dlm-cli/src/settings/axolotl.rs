//! The keys of an Axolotl file that are no settings here: which have no effect, and which would change the result.

/// Keys that change nothing that is computed here, by the reason.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    (
        "data is prepared by `dlm data prepare` and named in `dataset_prepared_path`",
        &[
            "accelerator_config",
            "chat_template",
            "chat_template_jinja",
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataset_exact_deduplication",
            "dataset_keep_in_memory",
            "dataset_num_proc",
            "dataset_processes",
            "dataset_shard_idx",
            "dataset_shard_num",
            "datasets",
            "default_system_message",
            "eot_tokens",
            "eval_sample_packing",
            "excess_length_strategy",
            "group_by_length",
            "max_prompt_len",
            "min_sample_len",
            "multipack_real_batches",
            "pad_to_sequence_len",
            "preprocess_iterable",
            "pretrain_multipack_attn",
            "pretrain_multipack_buffer_size",
            "pretraining_dataset",
            "pretraining_sample_concatenation",
            "remove_unused_columns",
            "roles_to_train",
            "sample_packing",
            "sample_packing_bin_size",
            "sample_packing_eff_est",
            "sample_packing_group_size",
            "sample_packing_sequentially",
            "shuffle_before_merging_datasets",
            "shuffle_merged_datasets",
            "skip_prepare_dataset",
            "streaming",
            "streaming_multipack_buffer_size",
            "test_datasets",
            "train_on_inputs",
        ],
    ),
    ("masked diffusion is built in", &["plugins"]),
    (
        "the model folder says what model and tokenizer it holds",
        &[
            "added_tokens_overrides",
            "cls_model_config",
            "is_falcon_derived_model",
            "is_llama_derived_model",
            "is_mistral_derived_model",
            "is_qwen_derived_model",
            "low_cpu_mem_usage",
            "mean_resizing_embeddings",
            "model_type",
            "processor_type",
            "resize_token_embeddings_to_32x",
            "save_safetensors",
            "shrink_embeddings",
            "tokenizer_legacy",
            "tokenizer_save_jinja_files",
            "tokenizer_type",
            "tokenizer_use_fast",
            "tokenizer_use_mistral_common",
            "trust_remote_code",
        ],
    ),
    ("padding is told by its segment, and special tokens are the tokenizer's own", &["special_tokens", "tokens"]),
    (
        "attention within segments has one implementation, whose results are those of `sdp_attention`",
        &[
            "attn_implementation",
            "batch_flattening",
            "eager_attention",
            "flash_attention",
            "flash_attn_cross_entropy",
            "flash_attn_fuse_mlp",
            "flash_attn_fuse_qkv",
            "flash_attn_rms_norm",
            "flash_optimum",
            "flex_attention",
            "flex_attn_compile_kwargs",
            "s2_attention",
            "sdp_attention",
            "xformers_attention",
        ],
    ),
    (
        "it changes speed or memory, not the result",
        &[
            "auto_find_batch_size",
            "float32",
            "gc_steps",
            "gpu_memory_limit",
            "gradient_checkpointing_kwargs",
            "activation_offloading",
            "max_memory",
            "experimental_skip_move_to_device",
            "liger_cross_entropy",
            "liger_fused_linear_cross_entropy",
            "liger_glu_activation",
            "liger_layer_norm",
            "liger_rms_norm",
            "liger_rope",
            "cut_cross_entropy",
            "lora_mlp_kernel",
            "lora_on_cpu",
            "peft_autocast_adapter_dtype",
            "lora_o_kernel",
            "lora_qkv_kernel",
            "tf32",
            "tiled_mlp",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "torchdistx_path",
            "unsloth_cross_entropy_loss",
            "unsloth_rms_norm",
            "unsloth_rope",
            "use_kernels",
        ],
    ),
    (
        "a run is one process",
        &[
            "context_parallel_size",
            "ddp",
            "ddp_broadcast_buffers",
            "ddp_bucket_cap_mb",
            "ddp_find_unused_parameters",
            "ddp_timeout",
            "deepspeed",
            "device_map",
            "dp_replicate_size",
            "dp_shard_size",
            "fsdp",
            "fsdp_config",
            "fsdp_final_state_dict_type",
            "fsdp_version",
            "heads_k_stride",
            "local_rank",
            "ray_num_workers",
            "ray_run_name",
            "resources_per_worker",
            "ring_attn_func",
            "sequence_parallel_degree",
            "tensor_parallel_size",
            "use_ray",
            "world_size",
        ],
    ),
    (
        "runs are tracked in `metrics.jsonl` and, with `wandb_project`, in Weights & Biases",
        &[
            "comet_api_key",
            "comet_experiment_config",
            "comet_experiment_key",
            "comet_mode",
            "comet_online",
            "comet_project_name",
            "comet_workspace",
            "hf_mlflow_log_artifacts",
            "include_tokens_per_second",
            "include_tkps",
            "mlflow_experiment_name",
            "mlflow_run_name",
            "mlflow_tracking_uri",
            "profiler_steps",
            "profiler_steps_start",
            "use_comet",
            "use_mlflow",
            "use_tensorboard",
            "wandb_log_model",
            "wandb_watch",
            "use_otel_metrics",
        ],
    ),
    (
        "models and data stay on this machine",
        &["hf_use_auth_token", "hub_model_id", "hub_revision", "hub_strategy", "push_dataset_to_hub"],
    ),
    (
        "`dlm chat` and `dlm serve` have options of their own",
        &[
            "gradio_max_new_tokens",
            "gradio_server_name",
            "gradio_server_port",
            "gradio_share",
            "gradio_temperature",
            "gradio_title",
        ],
    ),
    (
        "evaluation is of the diffusion loss",
        &[
            "bench_dataset",
            "bench_split",
            "do_bench_eval",
            "do_causal_lm_eval",
            "eval_causal_lm_metrics",
            "eval_max_new_tokens",
            "eval_table_size",
            "greater_is_better",
            "metric_for_best_model",
            "eval_batch_size",
        ],
    ),
    ("checkpoints always hold what resuming needs", &["save_first_step", "save_only_model"]),
    (
        "it is written by Axolotl about itself",
        &["axolotl_config_path", "is_preprocess", "strict", "total_num_tokens", "total_supervised_tokens"],
    ),
];

/// Keys that ask for another training than the one done here, by what is done instead. Switched off, they are fine.
const OF_ANOTHER_TRAINING: &[(&str, &[&str])] = &[
    ("training computes in float32 or, with `bf16`, in bfloat16: accepted is `false`", &["float16", "fp16", "fp8"]),
    (
        "all weights are trained, or with `adapter = \"lora\"` small matrices beside them: accepted is nothing",
        &[
            "gptq",
            "load_in_4bit",
            "load_in_8bit",
            "lora_fan_in_fan_out",
            "lora_model_dir",
            "lora_target_parameters",
            "merge_lora",
            "model_quantization_config",
            "peft",
            "peft_ensure_weight_tying",
            "peft_init_lora_weights",
            "peft_layer_replication",
            "peft_layers_pattern",
            "peft_layers_to_transform",
            "peft_trainable_token_indices",
            "peft_use_dora",
            "qat",
            "quantization",
            "relora",
            "relora_steps",
            "unfrozen_parameters",
            "lisa_n_layers",
        ],
    ),
    (
        "the training is masked diffusion: accepted is nothing",
        &[
            "noisy_embedding_alpha",
            "neftune_noise_alpha",
            "process_reward_model",
            "reward_model",
            "rl",
            "trl",
            "use_pose",
            "curriculum_sampling",
        ],
    ),
    (
        "all parameters follow `learning_rate` and `lr_scheduler`: accepted is nothing",
        &[
            "adam_beta3",
            "adam_epsilon2",
            "cosine_constant_lr_ratio",
            "cosine_min_lr_ratio",
            "embedding_lr",
            "embedding_lr_scale",
            "loraplus_lr_ratio",
            "lr_div_factor",
            "lr_groups",
            "lr_quadratic_warmup",
            "lr_scheduler_kwargs",
            "optim_args",
            "optim_target_modules",
        ],
    ),
    (
        "a run ends after `max_steps` or `num_epochs`, with its last weights: accepted is nothing",
        &["early_stopping_patience", "load_best_model_at_end", "loss_watchdog_patience", "loss_watchdog_threshold"],
    ),
    ("a step holds `micro_batch_size` times `gradient_accumulation_steps` rows: set those two", &["batch_size"]),
    (
        "`dlm train --resume` goes on from the newest checkpoint in `output_dir`: accepted is nothing",
        &["auto_resume_from_checkpoints", "resume_from_checkpoint"],
    ),
    (
        "`base_model` is a folder on this machine: accepted is nothing",
        &["base_model_config", "overrides_of_model_config", "overrides_of_model_kwargs", "revision_of_model"],
    ),
];

/// Beginnings of keys that only configure something switched on by another key.
const DETAILS: &[(&str, &str)] = &[
    ("qlora_", "weights are not quantised"),
    ("relora_", "an adapter is trained once, and merged by `dlm model merge`"),
    ("lisa_", "all weights are trained, or an adapter"),
    ("bnb_", "weights are not quantised"),
    ("unsloth_lora_", "it changes speed or memory, not the result"),
    ("loraplus_", "all parameters follow `learning_rate`"),
    ("dpo_", "the training is masked diffusion"),
    ("kto_", "the training is masked diffusion"),
    ("orpo_", "the training is masked diffusion"),
    ("cpo_", "the training is masked diffusion"),
    ("rpo_", "the training is masked diffusion"),
    ("simpo_", "the training is masked diffusion"),
    ("pose_", "the training is masked diffusion"),
    ("vllm", "the training is masked diffusion"),
];

/// What a key of Axolotl's that is no setting here means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has no effect, for this reason.
    WithoutEffect(&'static str),
    /// It asks for something else than is done, and is refused unless it is switched off.
    OfAnotherTraining(&'static str),
}

/// The standing of `key`, or `None` when Axolotl does not know it either.
pub(crate) fn standing(key: &str) -> Option<Standing> {
    let listed = |table: &[(&'static str, &[&str])]| {
        table.iter().find(|(_, keys)| keys.contains(&key)).map(|&(reason, _)| reason)
    };
    listed(OF_ANOTHER_TRAINING)
        .map(Standing::OfAnotherTraining)
        .or_else(|| listed(WITHOUT_EFFECT).map(Standing::WithoutEffect))
        .or_else(|| {
            let detail = DETAILS.iter().find(|(beginning, _)| key.starts_with(beginning));
            detail.map(|&(_, reason)| Standing::WithoutEffect(reason))
        })
}

/// What another name of a setting of ours is called here.
pub(crate) fn renamed(key: &str) -> Option<&'static str> {
    match key {
        "evaluation_strategy" => Some("eval_strategy"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_stands_in_one_table_and_is_no_setting() {
        let settings = serde_json::to_value(crate::settings::Settings::default()).unwrap();
        let mut seen = BTreeSet::new();
        for (_, keys) in WITHOUT_EFFECT.iter().chain(OF_ANOTHER_TRAINING) {
            for key in *keys {
                assert!(seen.insert(key), "{key} stands twice");
                assert!(settings.get(key).is_none(), "{key} is a setting");
            }
        }
        for key in settings.as_object().unwrap().keys() {
            assert!(DETAILS.iter().all(|(beginning, _)| !key.starts_with(beginning)), "{key} is hidden");
        }
    }
}
