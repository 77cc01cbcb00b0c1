//! What numbers weights are: in memory for sampling and evaluation, and in the folders that training leaves.

use dlm_golden::model;
use dlm_tests::Scratch;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

fn folder() -> String {
    model("llama").canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// What the tensors of a folder's files are stored as, and how many files there are.
fn stored(folder: &Path) -> (BTreeSet<String>, usize) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).collect();
    let mut kinds = BTreeSet::new();
    for file in &files {
        let bytes = fs::read(file).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        kinds
            .extend(header.as_object().unwrap().values().filter_map(|entry| Some(entry["dtype"].as_str()?.to_owned())));
    }
    (kinds, files.len())
}

#[test]
fn a_model_is_evaluated_in_the_numbers_that_are_asked_for() {
    let scratch = Scratch::new(DLM);
    scratch.write(
        "texts.jsonl",
        "{\"text\": \"The harbour wakes before the town does, and gulls argue over the fish boxes.\"}\n",
    );
    let folder = folder();
    let config: Value = serde_json::from_str(&fs::read_to_string(model("llama").join("config.json")).unwrap()).unwrap();
    let mask = config["mask_token_id"]
        .as_i64()
        .map_or("diffusion.mask_token_id=5".to_owned(), |id| format!("diffusion.mask_token_id={id}"));
    let nelbo = |more: &[&str]| {
        let arguments = ["eval", "--model", &folder, "--jsonl", "texts.jsonl", "--json", "--set", &mask];
        let output = scratch.succeed(&[&arguments[..], more].concat());
        let last: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        last["nats_per_token"].as_f64().unwrap_or_else(|| panic!("{last}"))
    };
    let exact = nelbo(&[]);
    let [bfloat16, float16] = ["bfloat16", "float16"].map(|kind| nelbo(&["--dtype", kind]));
    // Each has its own rounding, and no more than that.
    assert!(bfloat16 != exact && float16 != exact && bfloat16 != float16, "{exact} {bfloat16} {float16}");
    assert!((bfloat16 - exact).abs() < 0.05 * exact && (float16 - exact).abs() < 0.01 * exact);
    // As stored, which here is float32; the flag is stronger than the setting.
    assert_eq!(nelbo(&["--dtype", "auto"]), exact);
    assert_eq!(nelbo(&["--set", "inference_dtype=bfloat16"]), bfloat16);
    assert_eq!(nelbo(&["--set", "inference_dtype=bfloat16", "--dtype", "float32"]), exact);
    scratch.refuse(&["sample", "--model", &folder, "--prompt", "x", "--dtype", "int8"], 2, &["int8", "bfloat16"]);
    scratch.refuse(&["config", "show", "--set", "inference_dtype=int8"], 2, &["inference_dtype", "int8", "bfloat16"]);
}

#[test]
fn the_finished_model_is_stored_as_asked_and_a_checkpoint_as_trained() {
    let scratch = Scratch::new(DLM);
    let rows: String =
        (0..40).map(|i| format!("{}\n", json!({ "text": format!("Row number {i} of the file.") }))).collect();
    scratch.write("rows.jsonl", rows);
    let folder = folder();
    scratch.write(
        "pipeline.toml",
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {folder:?} }}\n[[step]]\n\
             pack = {{ sequence_len = 32 }}\n[output]\npath = \"data\"\n"
        ),
    );
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    let train = |output: &str, more: &[&str]| {
        let output = format!("output_dir={output}");
        let mut arguments = vec!["train", "--profile", "pretrain"];
        for set in ["dataset_prepared_path=data", "max_steps=2", "save_steps=1", &output].iter().chain(more) {
            arguments.extend(["--set", set]);
        }
        scratch.succeed(&arguments);
    };
    let base = format!("base_model={folder}");
    let kinds = |kind: &str| BTreeSet::from([kind.to_owned()]);
    train("plain", &[&base]);
    assert_eq!(stored(&scratch.path("plain")), (kinds("F32"), 1));
    train("half", &[&base, "save_dtype=bfloat16"]);
    assert_eq!(stored(&scratch.path("half")), (kinds("BF16"), 1));
    assert_eq!(stored(&scratch.path("half/checkpoint-1")).0, kinds("F32"));
    // The card says how it came about.
    let card = scratch.read("half/README.md");
    for fact in [
        "| optimiser steps | 2 |",
        "| seed | 42 |",
        "| rows in a step | 4 |",
        "| architecture | LlamaForCausalLM (llama) |",
    ] {
        assert!(card.contains(fact), "{fact} is not in {card}");
    }
    let info: Value = serde_json::from_str(&scratch.succeed(&["model", "info", "half", "--json"])).unwrap();
    assert_eq!((&info["stored_as"], &info["problem"]), (&json!("bfloat16"), &Value::Null));
    // Eleven megabytes of weights in files of at most four; the model is whole all the same.
    let tokenizer = format!("tokenizer_config={folder}");
    train("sharded", &["model_preset=tiny", &tokenizer, "max_shard_size=4"]);
    let (kind, files) = stored(&scratch.path("sharded"));
    assert!(kind == kinds("F32") && files >= 3, "{kind:?} {files}");
    assert!(scratch.path("sharded/model.safetensors.index.json").is_file());
    assert!(scratch.succeed(&["model", "info", "sharded", "--check"]).contains("all finite"));
    scratch.refuse(&["config", "show", "--set", "save_dtype=int4"], 2, &["save_dtype", "int4"]);
    scratch.refuse(&["config", "show", "--set", "max_shard_size=0"], 2, &["max_shard_size", "0"]);
}
