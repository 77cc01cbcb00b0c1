//! From an Axolotl file to a model folder: the printed pipeline, the rows, and what the model remembers of the data.

use dlm_golden::model;
use dlm_tests::Scratch;
use serde_json::{Value, json};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");

fn with_rows(more: &str) -> Scratch {
    let scratch = Scratch::new(DLM);
    let row = |i: usize| {
        format!("{}\n", json!({ "instruction": format!("Question {i}?"), "output": format!("Answer {i}.") }))
    };
    scratch.write("alpaca.jsonl", (0..12).map(row).collect::<String>());
    let turns = json!([{ "from": "human", "value": "Hello!" }, { "from": "gpt", "value": "Good morning." }]);
    scratch.write("chats.jsonl", format!("{}\n", json!({ "conversations": turns })));
    let folder = model("llama").canonicalize().unwrap();
    let yaml = format!(
        "base_model: {}
datasets:
  - path: alpaca.jsonl
    type: alpaca
  - path: chats.jsonl
    type: sharegpt
eot_tokens: ['<|eot_id|>']
sequence_len: 160
sample_packing: true
dataset_prepared_path: prepared
pad_to_sequence_len: true
learning_rate: 1e-4
flash_attention: true
{more}",
        folder.display()
    );
    scratch.write("axolotl.yaml", yaml);
    scratch
}

const PREPARE: [&str; 4] = ["data", "prepare", "--config", "axolotl.yaml"];

#[test]
fn the_printed_pipeline_is_the_one_that_ran() {
    let scratch = with_rows("");
    let run = scratch.run(&PREPARE);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    scratch.write("printed.toml", &run.stdout);
    assert!(run.stdout.contains("# prepared is ready"), "{}", run.stdout);
    for (key, reason) in [
        ("`pad_to_sequence_len`", "rows always have `sequence_len` tokens"),
        ("`learning_rate`", "about the training"),
        ("`flash_attention`", "one implementation"),
    ] {
        let told = run.stderr.lines().filter(|line| line.contains(key)).collect::<Vec<_>>();
        assert!(matches!(told.as_slice(), [line] if line.contains(reason)), "{}", run.stderr);
    }
    // The same pipeline over the same rows: there is nothing left to do.
    let again = scratch.succeed(&["data", "prepare", "printed.toml"]);
    assert!(again.contains("was there already"), "{again}");
    let manifest: Value = serde_json::from_str(&scratch.read("prepared/manifest.json")).unwrap();
    assert_eq!(manifest["account"]["documents"], 13);
}

#[test]
fn overrides_and_another_folder_change_what_is_printed_and_done() {
    let scratch = with_rows("");
    let more = ["--set", "pack.sequence_len=96", "--output", "elsewhere", "--json"];
    let run = scratch.run(&PREPARE.iter().chain(&more).copied().collect::<Vec<_>>());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let manifest: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(manifest["sequence_len"], 96);
    assert!(run.stderr.contains("sequence_len = 96") && run.stderr.contains("path = \"elsewhere\""), "{}", run.stderr);
    assert!(scratch.path("elsewhere/manifest.json").exists() && !scratch.path("prepared").exists());
}

#[test]
fn a_key_that_nobody_knows_names_the_nearest() {
    let scratch = with_rows("learning_rat: 3\n");
    scratch.refuse(&PREPARE, 2, &["`learning_rat` in axolotl.yaml", "did you mean `learning_rate`"]);
    let scratch = with_rows("train_on_input: true\n");
    scratch.refuse(&PREPARE, 2, &["`train_on_input`", "did you mean `train_on_inputs`"]);
    assert!(!scratch.path("prepared").exists());
}

#[test]
fn the_model_folder_remembers_what_followed_the_answers() {
    let scratch = with_rows("");
    let run = scratch.run(&PREPARE);
    let tail = "[[step]]\nanswer_tail = { kind = \"block\", block_length = 8 }\n\n[[step]]\n\n[step.pack]";
    let with_tail = run.stdout.replacen("[[step]]\n\n[step.pack]", tail, 1).replacen("[[step]]\n[step.pack]", tail, 1);
    assert!(with_tail.contains("answer_tail"), "{}", run.stdout);
    scratch.write("tail.toml", with_tail);
    scratch.succeed(&["data", "prepare", "tail.toml", "--output", "tail"]);
    let base = format!("base_model={}", model("llama").canonicalize().unwrap().display());
    let set = ["dataset_prepared_path=tail", "output_dir=run", "max_steps=1", "micro_batch_size=1", &base];
    let arguments = ["train", "--profile", "sft"].into_iter().chain(set.into_iter().flat_map(|set| ["--set", set]));
    scratch.succeed(&arguments.collect::<Vec<_>>());
    let config: Value = serde_json::from_str(&scratch.read("run/config.json")).unwrap();
    assert_eq!(config["diffusion"]["answer_tail"], json!({ "kind": "block", "block_length": 8 }));
}
