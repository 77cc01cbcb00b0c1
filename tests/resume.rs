//! A run that is killed goes on as if nothing had happened.

use dlm_tests::{Finished, Scratch};
use serde_json::{Value, json};
use std::process::{Child, Stdio};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");
const STEPS: usize = 60;

fn prepared() -> Scratch {
    let scratch = Scratch::new(DLM);
    let rows: String = (0..120)
        .map(|i| {
            format!("{}\n", json!({ "text": format!("Row {i} counts from {} to {} and back.", i * 3, i * 5 + 2) }))
        })
        .collect();
    scratch.write("rows.jsonl", rows);
    let tokenizer = dlm_golden::model("llama").canonicalize().unwrap();
    scratch.write(
        "pipeline.toml",
        format!(
            "[[source]]\npath = \"rows.jsonl\"\n[[step]]\ntokenize = {{ tokenizer = {tokenizer:?}, add_eos = true }}\n\
             [[step]]\npack = {{ sequence_len = 48 }}\n[output]\npath = \"data\"\n"
        ),
    );
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    scratch.write(
        "run.toml",
        format!(
            "base_model = {tokenizer:?}\ndataset_prepared_path = \"data\"\nmax_steps = {STEPS}\nmicro_batch_size = 2\n\
             gradient_accumulation_steps = 2\nlearning_rate = 1e-3\nsave_steps = 4\nsave_total_limit = 2\nval_set_size = 0.1\n\
             eval_steps = 10\n[diffusion]\ngeneration_interval = 7\nnum_generation_samples = 1\ngeneration_steps = 3\n"
        ),
    );
    scratch
}

fn arguments(output: &str) -> Vec<String> {
    ["train", "--profile", "pretrain", "--config", "run.toml", "--set", &format!("output_dir={output}")]
        .map(str::to_owned)
        .to_vec()
}

fn train(scratch: &Scratch, output: &str, more: &[&str]) -> Child {
    let arguments = arguments(output);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    scratch.command(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Finished {
    Finished::from(child.wait_with_output().unwrap())
}

/// Everything logged but what the clock and the machine decide.
fn comparable(scratch: &Scratch, name: &str) -> Vec<Value> {
    let mut lines = scratch.json_lines(name);
    for line in &mut lines {
        if let Some(object) = line.as_object_mut() {
            object.retain(|key, _| !(key.ends_with("tokens_per_s") || key.contains("memory") || key.ends_with("_s")));
        }
    }
    lines
}

fn assert_same_run(scratch: &Scratch, expected: &str, found: &str) {
    for file in ["metrics.jsonl", "samples.jsonl"] {
        assert_eq!(
            comparable(scratch, &format!("{found}/{file}")),
            comparable(scratch, &format!("{expected}/{file}")),
            "{file}"
        );
    }
    let weights = |output: &str| std::fs::read(scratch.path(output).join("model.safetensors")).unwrap();
    assert!(weights(expected) == weights(found), "the weights differ");
}

#[test]
fn a_killed_run_resumes_with_the_losses_of_an_unbroken_one_to_the_bit() {
    let scratch = prepared();
    let whole = finish(train(&scratch, "whole", &[]));
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    assert_eq!(
        scratch.json_lines("whole/metrics.jsonl").iter().filter(|line| line["train/loss"].is_number()).count(),
        STEPS
    );

    let mut child = train(&scratch, "killed", &[]);
    let was_running = scratch.wait_for_a_checkpoint("killed", &mut child);
    child.kill().unwrap(); // SIGKILL: nothing can be tidied up
    child.wait().unwrap();
    assert!(was_running, "the run ended before it could be killed");
    assert!(!scratch.path("killed/model.safetensors").exists(), "the run was done already");
    let resumed = finish(train(&scratch, "killed", &["--resume"]));
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert_same_run(&scratch, "whole", "killed");
}

#[test]
fn an_interrupted_run_saves_and_says_so_with_its_exit_code() {
    let scratch = prepared();
    let whole = finish(train(&scratch, "whole", &[]));
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);

    let mut child = train(&scratch, "stopped", &[]);
    assert!(scratch.wait_for_a_checkpoint("stopped", &mut child), "the run ended before it could be interrupted");
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let stopped = finish(child);
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    let resumed = finish(train(&scratch, "stopped", &["--resume"]));
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    assert_same_run(&scratch, "whole", "stopped");
}

#[test]
fn a_run_is_not_overwritten_nor_resumed_with_other_settings() {
    let scratch = prepared();
    let short = ["--set", "max_steps=4", "--set", "diffusion.generate_samples=false"];
    assert_eq!(finish(train(&scratch, "run", &short)).code, Some(0));
    let again = finish(train(&scratch, "run", &short));
    assert_ne!(again.code, Some(0));
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    let other = finish(train(&scratch, "run", &["--resume", "--set", "seed=7"]));
    assert_ne!(other.code, Some(0));
    assert!(other.stderr.contains("seed"), "{}", other.stderr);
    let nothing = finish(train(&scratch, "absent", &["--resume"]));
    assert_ne!(nothing.code, Some(0));
    assert!(nothing.stderr.contains("checkpoint"), "{}", nothing.stderr);
}
