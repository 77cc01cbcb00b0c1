//! What a training step holds in memory: each step in a process of its own, for memory is counted for the whole of one.

#![cfg(target_os = "linux")]

use dlm_diffusion::{AttentionLayout, Denoiser, DenoiserInput, TokenLoss};
use dlm_model::{LoadOptions, Model, ModelConfig};
use std::{path::Path, process::Command};
use tch::{Device, Kind, Tensor};

/// In a process that has it, the step to make: checkpointing, layers, inner width, vocabulary, tokens.
const STEP: &str = "DLM_TEST_MEMORY_STEP";

/// What the process has held at most so far (`VmHWM:`), or holds now (`VmRSS:`), in MB.
fn held_mb(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1000.0
}

/// Not a test by itself: does nothing unless [`peak_mb`] calls it.
#[test]
fn one_step_alone_in_its_process() {
    let Ok(step) = std::env::var(STEP) else { return };
    let numbers: Vec<i64> = step.split(' ').map(|number| number.parse().unwrap()).collect();
    let [checkpoints, layers, inner, vocab, tokens] = numbers[..] else { panic!("{step}") };
    let json = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 1, "hidden_size": 8,
        "num_key_value_heads": 1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "num_hidden_layers": {layers}, "intermediate_size": {inner}, "vocab_size": {vocab}}}"#
    );
    let config = ModelConfig::from_json(serde_json::from_str(&json).unwrap(), Path::new("config.json")).unwrap();
    let mut model = Model::from_config(config, 3, &LoadOptions::default()).unwrap();
    model.train(true);
    model.set_gradient_checkpointing(checkpoints == 1);
    let before = held_mb("VmRSS:");
    // Short rows, so that scores of attention are nothing beside the rest.
    let ids = Tensor::ones([tokens / 64, 64], (Kind::Int64, Device::Cpu));
    let hidden = model.hidden_states(&DenoiserInput::new(&ids, &AttentionLayout::full())).unwrap();
    let weights = Tensor::ones([tokens], (Kind::Float, Device::Cpu));
    let scores = model.head().weighted_loss(&hidden, &ids.flatten(0, 1), &weights, &TokenLoss::default()).unwrap();
    scores.weighted_sum.backward();
    println!("peak {}", held_mb("VmHWM:") - before);
}

/// In a process that has it: make steps in half precision with ever other numbers of masked tokens.
const LENGTHS: &str = "DLM_TEST_MEMORY_LENGTHS";

/// Not a test by itself: does nothing unless a test below calls it.
#[test]
fn steps_of_many_lengths_alone_in_their_process() {
    if std::env::var(LENGTHS).is_err() {
        return;
    }
    let json = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 2, "hidden_size": 128,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "num_hidden_layers": 1, "intermediate_size": 512, "vocab_size": 1000}"#;
    let config = ModelConfig::from_json(serde_json::from_str(json).unwrap(), Path::new("config.json")).unwrap();
    let mut model = Model::from_config(config, 3, &LoadOptions::default()).unwrap();
    model.train(true);
    model.compute_in(Kind::BFloat16).unwrap();
    let step = |len: i64| {
        let ids = Tensor::ones([8, 64], (Kind::Int64, Device::Cpu));
        let wanted = Tensor::arange(len, (Kind::Int64, Device::Cpu));
        let hidden = model.hidden_states(&DenoiserInput::new(&ids, &AttentionLayout::full()).at(&wanted)).unwrap();
        let (targets, weights) = (wanted.ones_like(), Tensor::ones([len], (Kind::Float, Device::Cpu)));
        let scores = model.head().weighted_loss(&hidden, &targets, &weights, &TokenLoss::default()).unwrap();
        scores.weighted_sum.backward();
    };
    (0..512).step_by(8).for_each(|i| step(1 + i));
    let before = held_mb("VmRSS:");
    (0..512).filter(|i| i % 8 != 0).for_each(|i| step(1 + i));
    println!("grew by {}", held_mb("VmRSS:") - before);
}

#[test]
fn steps_in_half_precision_hold_no_more_for_each_number_of_masked_tokens() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child =
        child.args(["--exact", "steps_of_many_lengths_alone_in_their_process", "--nocapture"]).env(LENGTHS, "1");
    let text = String::from_utf8_lossy(&child.output().unwrap().stdout).into_owned();
    let grew = text.split("grew by ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse::<f64>().ok());
    let grew = grew.unwrap_or_else(|| panic!("{text}"));
    // Kernels for each of 448 numbers took 640 MB on a processor with AVX-512 BF16.
    assert!(grew < 30.0, "448 steps more hold {grew:.0} MB more");
}

/// What such a step takes at most beside the model, in MB.
fn peak_mb(checkpoints: bool, layers: i64, inner: i64, vocab: i64, tokens: i64) -> f64 {
    let step = format!("{} {layers} {inner} {vocab} {tokens}", i64::from(checkpoints));
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child =
        child.args(["--exact", "one_step_alone_in_its_process", "--nocapture"]).env(STEP, &step).output().unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    let peak = text.split("peak ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse().ok());
    peak.unwrap_or_else(|| panic!("{step}: {text}{}", String::from_utf8_lossy(&child.stderr)))
}

#[test]
fn checkpointing_keeps_a_fraction_of_the_activations() {
    // 24 blocks keep the gate, what goes up, and their product of 2048 tokens: 24 * 3 * 2048 * 512 * 4 bytes are 300 MB.
    let [with, without] = [true, false].map(|checkpoints| peak_mb(checkpoints, 24, 512, 64, 2048));
    println!("{with:.0} MB with checkpointing, {without:.0} MB without");
    // What libraries take, and memory that lies between what is held, is in both.
    assert!(without > 280.0 && with < 0.7 * without, "{with:.0} MB with checkpointing, {without:.0} MB without");
}

#[test]
fn no_activation_is_as_large_as_the_vocabulary_times_the_tokens() {
    // 4096 tokens times 50,000 scores of four bytes are 820 MB; a chunk of them is 34 MB, the gradient of the head 1.6.
    let [few, many] = [512, 4096].map(|tokens| peak_mb(false, 1, 8, 50_000, tokens));
    println!("{few:.0} MB for 512 tokens, {many:.0} MB for 4096");
    assert!(many < 300.0 && many < few + 150.0, "{few:.0} MB for 512 tokens, {many:.0} MB for 4096");
}
