//! Adapters through the binary: trained, resumed, sampled with, merged; and model folders described and converted.

use dlm_tests::Scratch;
use serde_json::{Value, json};
use std::fs;

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

/// Prepared rows and the settings of a run that trains an adapter of a golden model.
fn prepared() -> Scratch {
    let scratch = Scratch::new(DLM);
    let base = dlm_golden::model("llama").canonicalize().unwrap();
    scratch.prepare((0..60).map(|i| format!("Row {i} counts to {}.", i * 5)), &base, 32);
    scratch.write(
        "run.toml",
        format!(
            "base_model = {base:?}\ndataset_prepared_path = \"data\"\noutput_dir = \"run\"\nmax_steps = 8\nmicro_batch_size = 2\n\
             learning_rate = 1e-2\nsave_steps = 4\nadapter = \"lora\"\nlora_r = 4\nlora_alpha = 8\nlora_dropout = 0.1\n\
             lora_target_modules = [\"q_proj\", \"down_proj\"]\n[diffusion]\ngenerate_samples = false\nmask_token_str = \"<|new_mask|>\"\n"
        ),
    );
    scratch
}

fn sample(scratch: &Scratch, more: &[&str]) -> Value {
    let asked = ["sample", "--prompt", "Row 7 counts", "--complete", "6", "--steps", "3", "--json"];
    let output = scratch.succeed(&[&asked, more].concat());
    let sampled: Value = serde_json::from_str(&output).unwrap();
    sampled["ids"].clone()
}

#[test]
fn an_adapter_is_trained_resumed_sampled_with_and_merged() {
    let scratch = prepared();
    scratch.succeed(&["train", "--profile", "pretrain", "--config", "run.toml"]);
    for name in ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "config.json", "README.md"] {
        assert!(scratch.path("run").join(name).is_file(), "{name}");
    }
    assert!(!scratch.path("run/model.safetensors").exists(), "only the adapter is saved");
    let config: Value = serde_json::from_str(&scratch.read("run/adapter_config.json")).unwrap();
    let mask_token_id = 367; // the golden tokenizer has so many tokens, and the mask is one more
    assert_eq!(config["trainable_token_indices"], json!({ "embed_tokens": [mask_token_id] }));
    assert_eq!(config["target_modules"], json!(["q_proj", "down_proj"]));
    assert_eq!((&config["r"], &config["lora_alpha"], &config["lora_dropout"]), (&json!(4), &json!(8.0), &json!(0.1)));

    // From the checkpoint in the middle, dropout and all, to the same numbers.
    let losses = |name: &str| -> Vec<Value> {
        scratch.json_lines(name).into_iter().map(|line| line["train/loss"].clone()).collect()
    };
    let unbroken = losses("run/metrics.jsonl");
    fs::remove_dir_all(scratch.path("run/checkpoint-8")).ok();
    let weights = fs::read(scratch.path("run/adapter_model.safetensors")).unwrap();
    scratch.succeed(&["train", "--profile", "pretrain", "--config", "run.toml", "--resume"]);
    assert_eq!(losses("run/metrics.jsonl"), unbroken);
    assert_eq!(fs::read(scratch.path("run/adapter_model.safetensors")).unwrap(), weights);

    // By itself, beside its base, and merged it says the same.
    let base = dlm_golden::model("llama").canonicalize().unwrap();
    let base = base.to_str().unwrap();
    let alone = sample(&scratch, &["--model", "run"]);
    assert_eq!(sample(&scratch, &["--model", base, "--adapter", "run"]), alone);
    scratch.succeed(&["model", "merge", "run", "merged", "--dtype", "float32"]);
    assert_eq!(sample(&scratch, &["--model", "merged"]), alone);
    assert!(scratch.path("merged/tokenizer.json").is_file());
    scratch.refuse(&["model", "merge", "run", "merged"], 2, &["holds a model"]);
    scratch.refuse(&["model", "merge", base, "other"], 2, &["is a whole model"]);
    let dropless = ["train", "--config", "run.toml", "--set", "lora_dropout=0", "--resume", "--profile", "pretrain"];
    scratch.refuse(&dropless, 1, &["adapter"]);

    let info: Value = serde_json::from_str(&scratch.succeed(&["model", "info", "run", "--json"])).unwrap();
    assert_eq!((&info["mask_token_id"], &info["problem"]), (&json!(mask_token_id), &Value::Null));
    assert!(info["base_model"].as_str().unwrap().ends_with("llama"));
    let text = scratch.succeed(&["model", "info", "merged", "--check"]);
    assert!(text.contains("complete      yes") && text.contains("all finite"), "{text}");
    scratch.refuse(&["model", "convert", "run.toml", "folder"], 1, &["is no whole GGUF file"]);
}

#[test]
fn an_adapter_needs_a_base_and_names_that_exist() {
    let scratch = prepared();
    let train = ["train", "--profile", "pretrain", "--config", "run.toml", "--set"];
    scratch.refuse(
        &[&train[..], &["lora_target_modules=c_attn"]].concat(),
        1,
        &["`target_modules`", "`c_attn`", "`q_proj`"],
    );
    scratch.refuse(&[&train[..], &["base_model=", "--set", "model_preset=tiny"]].concat(), 2, &["`base_model`"]);
}
