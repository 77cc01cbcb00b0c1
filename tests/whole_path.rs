//! From files to generated text through the binary, every part of the path real.

use dlm_golden::model;
use dlm_tests::Scratch;
use serde_json::{Value, json};
use std::{collections::BTreeSet, io::Write as _, process::Stdio};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

/// A corpus with something to learn: the second half of each sentence follows from the first.
fn corpus() -> String {
    let animals = ["cat", "dog", "horse", "mouse", "fox", "owl", "bear", "crow"];
    let places = ["barn", "field", "forest", "river", "garden"];
    let mut lines = String::new();
    for day in 0..6 {
        for (i, animal) in animals.iter().enumerate() {
            for (j, place) in places.iter().enumerate() {
                let text = format!(
                    "On day {day} the {animal} went to the {place}. It saw {} of its friends there, and in the evening the {animal} came home from the {place}.",
                    i * j + day
                );
                lines.push_str(&json!({ "text": text }).to_string());
                lines.push('\n');
            }
        }
    }
    lines
}

const PIPELINE: &str = r#"
[[source]]
path = "corpus.jsonl"
[[step]]
split = { validation = 0.1 }
[[step]]
tokenize = { tokenizer = "tokenizer", add_eos = true }
[[step]]
pack = { sequence_len = 64 }
[output]
path = "data"
"#;

/// A config.json of a model with some ten thousand parameters.
fn tiny_config(vocab_size: u64) -> String {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "initializer_range": 0.05, "vocab_size": vocab_size
    })
    .to_string()
}

fn prepared_corpus() -> Scratch {
    let scratch = Scratch::new(DLM);
    scratch.write("corpus.jsonl", corpus());
    scratch.write("pipeline.toml", PIPELINE);
    scratch.succeed(&["tokenizer", "train", "pipeline.toml", "--vocab-size", "320", "--output", "tokenizer"]);
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    scratch
}

#[test]
fn data_and_tokenizer_come_from_a_hub_and_the_token_goes_nowhere_else() {
    let token = "hf_a-token-that-nobody-may-see";
    let hub = dlm_servers::Hub::start();
    hub.require_token(token);
    hub.put("datasets/owner/corpus/train.jsonl", corpus());
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        hub.put(&format!("owner/model/{name}"), std::fs::read(model("llama").join(name)).unwrap());
    }
    let scratch = Scratch::new(DLM);
    let pipeline = PIPELINE.replace("corpus.jsonl", "hf://datasets/owner/corpus/*.jsonl");
    scratch.write("pipeline.toml", pipeline.replace("\"tokenizer\"", "\"hf://owner/model\""));
    let prepare = |token: &str| {
        let mut command = scratch.command(&["data", "prepare", "pipeline.toml"]);
        command.env("HF_ENDPOINT", hub.address()).env("HF_HOME", scratch.path("hf")).env("HF_TOKEN", token);
        let output = command.env("DLM_LOG", "trace").output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!printed.contains(token), "{printed}");
        (output.status.code(), printed)
    };
    let (code, printed) = prepare("hf_another-token");
    assert_eq!(code, Some(1), "{printed}");
    let is_clear = printed.contains("hf://datasets/owner/corpus/*.jsonl")
        && printed.contains("401")
        && printed.contains("HF_TOKEN");
    assert!(is_clear, "{printed}");
    let (code, printed) = prepare(token);
    assert_eq!(code, Some(0), "{printed}");
    let manifest = scratch.read("data/manifest.json");
    assert!(manifest.contains("hf://datasets/owner/corpus/train.jsonl") && !manifest.contains(token), "{manifest}");
}

#[test]
fn a_model_from_scratch_learns_from_text_and_fills_masks() {
    let scratch = prepared_corpus();
    scratch.write("config.json", tiny_config(320));
    scratch.write(
        "run.toml",
        r#"
model_config = "config.json"
dataset_prepared_path = "data"
output_dir = "run"
max_steps = 30
micro_batch_size = 8
learning_rate = 1e-2
eval_steps = 15
save_steps = 20
[diffusion]
generation_interval = 10
num_generation_samples = 2
generation_steps = 4
"#,
    );
    scratch.succeed(&["train", "--profile", "pretrain", "--config", "run.toml"]);

    let metrics = scratch.json_lines("run/metrics.jsonl");
    let series = |name: &str| -> Vec<f64> { metrics.iter().filter_map(|line| line[name].as_f64()).collect() };
    let losses = series("train/loss");
    assert_eq!(losses.len(), 30);
    assert!(losses.iter().all(|loss| loss.is_finite()));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    // 320 tokens: a model that knows nothing is at ln 320 = 5.77 nats per token.
    let nelbo = series("train/nelbo");
    assert!(mean(&nelbo[20..]) < mean(&nelbo[..5]) - 0.5, "{nelbo:?}");
    for name in [
        "accuracy",
        "mask_ratio",
        "num_masked_tokens",
        "avg_p_mask",
        "ce_loss",
        "importance_weight_avg",
        "learning_rate",
        "grad_norm",
        "tokens_per_s",
        "epoch",
    ] {
        assert_eq!(series(&format!("train/{name}")).len(), 30, "train/{name}");
    }
    assert_eq!(series("eval/nelbo").len(), 2);
    assert_eq!(series("eval/loss").len(), 2);

    let samples = scratch.json_lines("run/samples.jsonl");
    let steps: BTreeSet<u64> = samples.iter().filter_map(|sample| sample["step"].as_u64()).collect();
    assert_eq!(steps, BTreeSet::from([10, 20, 30]));
    assert_eq!(samples.len(), 6);
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "settings.toml",
        "checkpoint-20/optimizer.safetensors",
        "checkpoint-20/trainer_state.json",
        "checkpoint-20/config.json",
    ] {
        assert!(scratch.path("run").join(name).is_file(), "{name}");
    }
    assert!(scratch.read("run/loss_curve.svg").starts_with("<svg"));
    let config: Value = serde_json::from_str(&scratch.read("run/config.json")).unwrap();
    let mask_token_id = config["diffusion"]["mask_token_id"].as_u64().expect("a mask token");

    assert_eq!(config["diffusion"]["logits_shift"], false, "a model from scratch has no autoregressive past");

    let completion: Value = serde_json::from_str(&scratch.succeed(&[
        "sample",
        "--model",
        "run",
        "--prompt",
        "On day 3 the fox went to the",
        "--complete",
        "12",
        "--steps",
        "5",
        "--json",
        "--trace",
    ]))
    .unwrap();
    let ids = |value: &Value| -> Vec<u64> { value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect() };
    assert!(!ids(&completion["ids"]).contains(&mask_token_id));
    assert_eq!(completion["masked_positions"].as_array().unwrap().len(), 12);
    assert_eq!(completion["nfe"], 5);
    let masks: Vec<usize> = completion["trace"]
        .as_array()
        .unwrap()
        .iter()
        .map(|state| ids(state).iter().filter(|id| **id == mask_token_id).count())
        .collect();
    assert_eq!(masks.len(), 5);
    assert!(masks.windows(2).all(|pair| pair[1] < pair[0]) && masks[4] == 0, "{masks:?}");
    assert!(completion["text"].as_str().unwrap().starts_with("On day 3 the fox went to the"), "{completion}");

    // The same seed masks the same tokens; another one, others.
    let infill = |seed: &str| -> Value {
        let text = "On day 3 the fox went to the barn. It saw 5 of its friends there.";
        let output =
            scratch.succeed(&["sample", "--model", "run", "--prompt", text, "--mask", "0.4", "--seed", seed, "--json"]);
        serde_json::from_str::<Value>(&output).unwrap()["masked_positions"].clone()
    };
    assert_eq!(infill("1"), infill("1"));
    assert_ne!(infill("1"), infill("2"));
}

#[test]
fn a_checkpoint_is_tuned_on_answers_and_chats() {
    let scratch = Scratch::new(DLM);
    let mut rows = String::new();
    for i in 0..40 {
        let row = json!({ "instruction": format!("Say the number {i}."), "input": "", "output": format!("The number is {i}, as you asked.") });
        rows.push_str(&format!("{row}\n"));
    }
    scratch.write("answers.jsonl", rows);
    let base = model("llama").canonicalize().unwrap();
    scratch.write(
        "sft.toml",
        format!(
            r#"
[[source]]
path = "answers.jsonl"
[[step]]
chat = {{ format = "alpaca" }}
[[step]]
tokenize = {{ tokenizer = {base:?} }}
[[step]]
pack = {{ sequence_len = 256 }}
[output]
path = "data"
"#
        ),
    );
    scratch.succeed(&["data", "prepare", "sft.toml"]);
    // The keys of an Axolotl file, as its users write them.
    scratch.write(
        "axolotl.yaml",
        format!(
            r"
base_model: {}
plugins:
  - axolotl.integrations.diffusion.DiffusionPlugin
datasets:
  - path: answers.jsonl
    type: alpaca
dataset_prepared_path: data
sequence_len: 256
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 2
max_steps: 6
learning_rate: 1e-3
lr_scheduler: cosine
warmup_steps: 2
optimizer: adamw_torch
output_dir: ./run
val_set_size: 0.2
eval_steps: 3
save_steps: 3
special_tokens:
  pad_token: <|finetune_right_pad_id|>
diffusion:
  noise_schedule: linear
  eps: 0.001
  importance_weighting: true
  num_diffusion_steps: 8
  generate_samples: true
  generation_interval: 3
  num_generation_samples: 1
  generation_steps: 4
  generation_max_length: 200
",
            base.display()
        ),
    );
    scratch.succeed(&["train", "--profile", "sft", "--config", "axolotl.yaml"]);
    let metrics = scratch.json_lines("run/metrics.jsonl");
    let answers: Vec<f64> = metrics.iter().filter_map(|line| line["train/answer_ratio"].as_f64()).collect();
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|ratio| *ratio > 0.0 && *ratio < 1.0), "{answers:?}");
    assert_eq!(metrics.iter().filter(|line| line["eval/nelbo"].is_number()).count(), 2);
    assert_eq!(scratch.json_lines("run/samples.jsonl").len(), 2);

    // The file one trained with serves to chat.
    let mut chat = scratch
        .command(&["chat", "--config", "axolotl.yaml", "--profile", "sft"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = ":complete 6 Say the number 3.\n:mask 0.5 The number is 3, as you asked.\n:mask 7 nonsense\n";
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = chat.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Where nobody can type another prompt, one that makes no sense ends the work.
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stdout.contains("Say the number 3."), "{stdout}");
    assert!(stderr.contains("`:mask 7`"), "the ratio that makes no sense is named: {stderr}");
}

#[test]
fn a_model_from_scratch_shifts_its_logits_when_asked_to() {
    let scratch = prepared_corpus();
    scratch.write("config.json", tiny_config(320));
    let loss = |name: &str, shift: &str| {
        let (output, shift) = (format!("output_dir={name}"), format!("diffusion.logits_shift={shift}"));
        scratch.succeed(&[
            "train",
            "--profile",
            "pretrain",
            "--set",
            "model_config=config.json",
            "--set",
            "dataset_prepared_path=data",
            "--set",
            "max_steps=2",
            "--set",
            &output,
            "--set",
            &shift,
        ]);
        let config: Value = serde_json::from_str(&scratch.read(&format!("{name}/config.json"))).unwrap();
        let loss = scratch.json_lines(&format!("{name}/metrics.jsonl"))[0]["train/loss"].as_f64();
        (config["diffusion"]["logits_shift"].as_bool(), loss)
    };
    let (shifted, plain) = (loss("shifted", "true"), loss("plain", "false"));
    assert_eq!((shifted.0, plain.0), (Some(true), Some(false)));
    assert_ne!(shifted.1, plain.1);
}

#[test]
fn prepared_data_explain_and_inspect_say_what_is_there() {
    let scratch = prepared_corpus();
    let plan = scratch.succeed(&["data", "explain", "pipeline.toml"]);
    for word in ["corpus.jsonl", "okenize", "ack"] {
        assert!(plan.contains(word), "{word} is not in the plan:\n{plan}");
    }
    let shown = scratch.succeed(&["data", "inspect", "data", "--rows", "1"]);
    assert!(shown.contains("On day"), "{shown}");
    let manifest: Value = serde_json::from_str(&scratch.read("data/manifest.json")).unwrap();
    assert!(manifest.to_string().contains("sequence_len"), "{manifest}");
}

#[test]
fn help_and_version_need_no_model() {
    let scratch = Scratch::new(DLM);
    assert!(scratch.succeed(&["--help"]).contains("train"));
    assert!(scratch.succeed(&["--version"]).starts_with("dlm "));
    assert!(scratch.succeed(&["doctor"]).contains("2.13.0"));
    assert!(scratch.succeed(&["completions", "bash"]).contains("_dlm"));
}
