//! Bad input ends in an error that says what, where and what to do, with the right exit code and nothing half-written.

use dlm_golden::model;
use dlm_tests::Scratch;
use serde_json::json;
use std::{fs, path::PathBuf, process::Command};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");
const FAILED: i32 = 1;
const USAGE: i32 = 2;

fn tokenizer() -> PathBuf {
    model("llama").canonicalize().unwrap()
}

fn pipeline(source: &str, steps: &str) -> String {
    format!(
        "[[source]]\npath = \"{source}\"\n{steps}\n[[step]]\ntokenize = {{ tokenizer = {:?} }}\n[[step]]\n\
         pack = {{ sequence_len = 32 }}\n[output]\npath = \"data\"\n",
        tokenizer()
    )
}

fn rows(count: usize) -> String {
    (0..count).map(|i| format!("{}\n", json!({ "text": format!("Row number {i} of the file.") }))).collect()
}

/// A folder with rows and a pipeline that has one more step.
fn with_rows(steps: &str) -> Scratch {
    let scratch = Scratch::new(DLM);
    scratch.write("rows.jsonl", rows(40));
    scratch.write("pipeline.toml", pipeline("rows.jsonl", steps));
    scratch
}

/// A folder with prepared data and a copy of a small model.
fn with_data_and_model() -> Scratch {
    let scratch = with_rows("");
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    copy_model(&scratch, "model");
    scratch
}

fn copy_model(scratch: &Scratch, name: &str) {
    for entry in fs::read_dir(tokenizer()).unwrap() {
        let path = entry.unwrap().path();
        scratch.write(&format!("{name}/{}", path.file_name().unwrap().to_string_lossy()), fs::read(&path).unwrap());
    }
}

const TRAIN: [&str; 8] =
    ["train", "--profile", "pretrain", "--set", "dataset_prepared_path=data", "--set", "max_steps=1", "--set"];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TRAIN.into_iter().chain(["output_dir=run"]).chain(more.iter().flat_map(|set| ["--set", *set])).collect()
}

/// Nothing of an output folder is there: no data, no temporary names.
fn assert_nothing_written(scratch: &Scratch, name: &str) {
    let left: Vec<_> = match fs::read_dir(scratch.path(name)) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name()).collect(),
        Err(_) => Vec::new(),
    };
    assert!(!left.iter().any(|name| name == "manifest.json" || name == "config.json"), "{left:?}");
    let beside = fs::read_dir(scratch.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    for name in beside.chain(left) {
        assert!(!name.to_string_lossy().starts_with(dlm_files::TEMPORARY_PREFIX), "{name:?} was left behind");
    }
}

#[test]
fn a_missing_file_is_named() {
    let scratch = Scratch::new(DLM);
    scratch.refuse(&["data", "prepare", "absent.toml"], FAILED, &["absent.toml"]);
    scratch.write("pipeline.toml", pipeline("absent.jsonl", ""));
    scratch.refuse(&["data", "prepare", "pipeline.toml"], FAILED, &["absent.jsonl"]);
    scratch.refuse(&["train", "--config", "absent.yaml"], USAGE, &["absent.yaml"]);
    scratch.refuse(&["sample", "--model", "absent", "--prompt", "x"], FAILED, &["absent"]);
    assert_nothing_written(&scratch, "data");
}

#[test]
fn an_unknown_column_is_refused_with_the_columns_there_are() {
    let scratch = with_rows("[[step]]\nfilter = \"length(txet) > 3\"");
    scratch.refuse(&["data", "prepare", "pipeline.toml"], FAILED, &["txet", "text"]);
    assert_nothing_written(&scratch, "data");
}

#[test]
fn an_unknown_step_or_key_of_a_pipeline_is_refused_with_the_nearest_one() {
    let scratch = with_rows("[[step]]\nfiltre = \"true\"");
    scratch.refuse(&["data", "prepare", "pipeline.toml"], USAGE, &["pipeline.toml", "filtre", "filter"]);
    let scratch = with_rows("[[step]]\ndedup = { onn = [\"text\"] }");
    scratch.refuse(&["data", "prepare", "pipeline.toml"], USAGE, &["pipeline.toml", "onn", "on"]);
    let scratch = with_rows("");
    scratch.refuse(&["data", "prepare", "pipeline.toml", "--set", "pack.sequence_length=3"], USAGE, &["sequence_len"]);
}

#[test]
fn malformed_json_is_named_by_file_and_line() {
    let scratch = with_rows("");
    let good = rows(20);
    scratch.write("rows.jsonl", format!("{good}{{\"text\": \"cut\n{good}"));
    scratch.refuse(&["data", "prepare", "pipeline.toml"], FAILED, &["rows.jsonl", "21"]);
    assert_nothing_written(&scratch, "data");
}

#[test]
fn a_corrupt_parquet_file_is_named() {
    let scratch = Scratch::new(DLM);
    scratch.write("rows.parquet", b"PAR1 this is no Parquet file PAR1");
    scratch.write("pipeline.toml", pipeline("rows.parquet", ""));
    scratch.refuse(&["data", "prepare", "pipeline.toml"], FAILED, &["rows.parquet"]);
    assert_nothing_written(&scratch, "data");
}

#[test]
fn an_empty_result_is_an_error() {
    let scratch = with_rows("[[step]]\nfilter = \"length(text) > 100000\"");
    scratch.refuse(&["data", "prepare", "pipeline.toml"], FAILED, &["nothing to write", "40 rows"]);
    assert_nothing_written(&scratch, "data");
}

#[test]
fn damaged_prepared_data_is_named() {
    let scratch = with_data_and_model();
    let shard = fs::read_dir(scratch.path("data/train")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let name = shard.file_name().unwrap().to_string_lossy().into_owned();
    scratch.refuse(&train(&["base_model=model"]), FAILED, &[&name]);
    fs::remove_file(scratch.path("data/manifest.json")).unwrap();
    scratch.refuse(&train(&["base_model=model"]), FAILED, &["manifest.json", "dlm data prepare"]);
    assert_nothing_written(&scratch, "run");
}

#[test]
fn a_page_for_a_folder_that_is_not_there_is_refused_and_makes_none() {
    let scratch = with_rows("");
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    scratch.refuse(
        &["data", "inspect", "data", "--html", "absent/page.html"],
        FAILED,
        &["absent/page.html", "no such"],
    );
    assert!(!scratch.path("absent").exists());
    scratch.succeed(&["data", "inspect", "data", "--html", "page.html"]);
    assert!(scratch.path("page.html").exists());
}

#[test]
fn what_a_damaged_shard_keeps_from_being_checked_is_said() {
    let scratch = with_rows("[[step]]\nsplit = { validation = 0.3 }");
    scratch.succeed(&["data", "prepare", "pipeline.toml"]);
    scratch.write("data/train/00000.parquet", b"none");
    let finished = scratch.run(&["data", "validate", "data"]);
    assert!(
        finished.stdout.contains("not checked: whether a document stands on both sides of the split"),
        "{finished:?}"
    );
}

#[test]
fn a_truncated_checkpoint_is_named() {
    let scratch = Scratch::new(DLM);
    copy_model(&scratch, "model");
    let path = scratch.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    scratch.refuse(&["sample", "--model", "model", "--prompt", "x"], FAILED, &["model.safetensors"]);
    fs::write(&path, b"not safetensors at all").unwrap();
    scratch.refuse(&["sample", "--model", "model", "--prompt", "x"], FAILED, &["model.safetensors"]);
}

#[test]
fn a_token_id_beyond_the_vocabulary_is_named() {
    let scratch = Scratch::new(DLM);
    copy_model(&scratch, "model");
    let ids = ["sample", "--model", "model", "--input-ids", "5,99999", "--complete", "2"];
    scratch.refuse(&ids, FAILED, &["99999"]);
}

#[test]
fn a_sequence_longer_than_the_models_is_refused() {
    let scratch = with_data_and_model();
    let config = scratch.read("model/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = json!(16);
    scratch.write("model/config.json", config.to_string());
    scratch.refuse(&train(&["base_model=model"]), FAILED, &["32", "16"]);
    let long = "word ".repeat(40);
    scratch.refuse(&["sample", "--model", "model", "--prompt", &long], FAILED, &["16"]);
    assert_nothing_written(&scratch, "run");
}

#[test]
fn an_unknown_settings_key_is_refused_with_the_nearest_one_and_its_place() {
    let scratch = Scratch::new(DLM);
    scratch.write("run.yaml", "learning_rat: 1e-4\n");
    scratch.refuse(&["config", "show", "--config", "run.yaml"], USAGE, &["run.yaml", "learning_rat", "learning_rate"]);
    scratch.refuse(&["config", "show", "--set", "diffusion.epps=1"], USAGE, &["--set", "epps", "eps"]);
    let variable = scratch.command(&["config", "show"]).env("DLM_LEARNING_RAT", "1").output().unwrap();
    let stderr = String::from_utf8_lossy(&variable.stderr).into_owned();
    assert_eq!(variable.status.code(), Some(USAGE), "{stderr}");
    assert!(stderr.contains("DLM_LEARNING_RAT"), "{stderr}");
}

#[test]
fn a_mistyped_or_impossible_value_is_refused_with_its_place() {
    let scratch = Scratch::new(DLM);
    scratch.write("run.toml", "max_steps = \"many\"\n");
    scratch.refuse(&["config", "show", "--config", "run.toml"], USAGE, &["run.toml", "max_steps", "many"]);
    scratch.refuse(&["config", "show", "--set", "diffusion.eps=2"], USAGE, &["diffusion.eps", "2", "--set"]);
    scratch.refuse(&["config", "show", "--set", "micro_batch_size=0"], USAGE, &["micro_batch_size"]);
    let upside_down =
        ["config", "show", "--set", "diffusion.min_mask_ratio=0.9", "--set", "diffusion.max_mask_ratio=0.2"];
    scratch.refuse(&upside_down, USAGE, &["min_mask_ratio", "max_mask_ratio"]);
    scratch.refuse(&["sample", "--mask", "1.5", "--prompt", "x"], USAGE, &["1.5"]);
    scratch.refuse(&["conjure"], USAGE, &["conjure"]);
}

#[test]
fn a_tokenizer_and_a_model_that_do_not_fit_are_refused() {
    let scratch = with_data_and_model();
    // Data prepared with another tokenizer than the model's.
    let other = model("qwen2").canonicalize().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(other.join(file), scratch.path("model").join(file)).unwrap();
    }
    scratch.refuse(&train(&["base_model=model"]), USAGE, &["tokenizer", "prepare"]);
    // A tokenizer with more tokens than the model has rows.
    copy_model(&scratch, "model");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&scratch.read("model/tokenizer.json")).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for id in 500..900 {
        let mut token = added[0].clone();
        token["id"] = json!(id);
        token["content"] = json!(format!("<|extra_{id}|>"));
        added.push(token);
    }
    scratch.write("model/tokenizer.json", tokenizer.to_string());
    scratch.refuse(&["sample", "--model", "model", "--prompt", "x"], USAGE, &["tokenizer", "rows"]);
    assert_nothing_written(&scratch, "run");
}

#[test]
fn a_folder_that_may_not_be_written_is_named() {
    let scratch = with_data_and_model();
    // Not even root makes folders there.
    let forbidden = "/sys/dlm-test";
    scratch.refuse(&["data", "prepare", "pipeline.toml", "--output", forbidden], FAILED, &[forbidden]);
    let arguments: Vec<&str> =
        TRAIN.into_iter().chain(["output_dir=/sys/dlm-test", "--set", "base_model=model"]).collect();
    scratch.refuse(&arguments, FAILED, &[forbidden]);
}

/// Runs dlm with a file system of `size` mounted on the folder `small`, seen by nobody else.
fn on_a_small_disk(scratch: &Scratch, size: &str, arguments: &str) -> (Option<i32>, String) {
    fs::create_dir_all(scratch.path("small")).unwrap();
    let script =
        format!("mount -t tmpfs -o size={size} none small && {DLM} {arguments}; code=$?; ls -a small >&2; exit $code");
    let mut command = Command::new("unshare");
    if !nix_is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--mount", "sh", "-c", &script])
        .current_dir(scratch.path(""))
        .env("NO_COLOR", "1")
        .output()
        .expect("`unshare` of util-linux starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn nix_is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("`id` starts");
    id.stdout.starts_with(b"0")
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing_half_written() {
    let scratch = with_data_and_model();
    let (code, stderr) = on_a_small_disk(&scratch, "8k", "data prepare pipeline.toml --output small/data");
    assert_eq!(code, Some(FAILED), "{stderr}");
    assert!(stderr.contains("no space"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");

    // Room for the logs, none for the weights.
    let run = "train --profile pretrain --set dataset_prepared_path=data --set base_model=model --set max_steps=2 \
               --set output_dir=small/run --set diffusion.generate_samples=false";
    let (code, stderr) = on_a_small_disk(&scratch, "100k", run);
    assert_eq!(code, Some(FAILED), "{stderr}");
    assert!(stderr.contains("no space"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(!stderr.contains(dlm_files::TEMPORARY_PREFIX), "something is left behind: {stderr}");
}
