//! Model folders, adapters and GGUF files that do not fit end in an error with names and numbers, at the library's word, through the binary.

use dlm_golden::model;
use dlm_tests::Scratch;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

const DLM: &str = env!("CARGO_BIN_EXE_dlm-under-test");
const FAILED: i32 = 1;

fn golden(name: &str) -> PathBuf {
    model(name).canonicalize().unwrap()
}

/// A scratch folder with a copy of a small model.
fn with_model(name: &str) -> Scratch {
    let scratch = Scratch::new(DLM);
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        scratch.write(&format!("model/{}", path.file_name().unwrap().to_string_lossy()), fs::read(&path).unwrap());
    }
    scratch
}

const SAMPLE: [&str; 5] = ["sample", "--model", "model", "--prompt", "x"];

/// The header of the copy's weights and the bytes behind it.
fn weights(scratch: &Scratch) -> (Value, Vec<u8>) {
    let bytes = fs::read(scratch.path("model/model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

fn write_weights(scratch: &Scratch, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    scratch.write("model/model.safetensors", bytes);
}

fn edit_config(scratch: &Scratch, key: &str, value: Value) {
    let mut config: Value = serde_json::from_str(&scratch.read("model/config.json")).unwrap();
    config[key] = value;
    scratch.write("model/config.json", config.to_string());
}

#[test]
fn a_misnamed_tensor_is_named_with_the_one_that_is_missing() {
    let scratch = with_model("llama");
    let (mut header, data) = weights(&scratch);
    let entry = header.as_object_mut().unwrap().remove("model.norm.weight").unwrap();
    header["model.final_norm.weight"] = entry;
    write_weights(&scratch, &header, &data);
    let said = ["1 missing: `model.norm.weight`", "1 unexpected:", "`model.final_norm.weight`"];
    scratch.refuse(&SAMPLE, FAILED, &said);
    // `info` tells the same of a folder that it cannot load.
    let told = scratch.succeed(&["model", "info", "model"]);
    assert!(said.iter().all(|words| told.contains(words)), "{told}");
}

#[test]
fn an_oversized_tensor_is_named_with_both_shapes() {
    let scratch = with_model("llama");
    let (mut header, mut data) = weights(&scratch);
    let last = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let (name, entry) = last.max_by_key(|(_, entry)| entry["data_offsets"][1].as_u64()).unwrap();
    let (name, shape) = (name.clone(), entry["shape"].as_array().unwrap().clone());
    let rows = shape[0].as_u64().unwrap();
    let row = (entry["data_offsets"][1].as_u64().unwrap() - entry["data_offsets"][0].as_u64().unwrap()) / rows;
    header[&name]["shape"][0] = json!(rows + 1);
    header[&name]["data_offsets"][1] = json!(data.len() as u64 + row);
    data.resize(data.len() + row as usize, 0);
    write_weights(&scratch, &header, &data);
    let (found, expected) = (header[&name]["shape"].to_string(), Value::from(shape).to_string());
    let spaced = |shape: String| shape.replace(',', ", ");
    scratch.refuse(&SAMPLE, FAILED, &[&name, &spaced(found), &spaced(expected)]);
}

#[test]
fn a_config_that_contradicts_the_weights_is_told_with_names_and_shapes() {
    let scratch = with_model("llama");
    edit_config(&scratch, "intermediate_size", json!(7));
    scratch.refuse(&SAMPLE, FAILED, &["misshapen", "mlp.gate_proj.weight", "instead of [7, "]);
    edit_config(&scratch, "num_hidden_layers", json!(9));
    scratch.refuse(&SAMPLE, FAILED, &["missing: `model.layers."]);
}

#[test]
fn weights_that_are_not_numbers_are_named_by_a_check() {
    let scratch = with_model("llama");
    let told = scratch.succeed(&["model", "info", "model", "--check"]);
    assert!(told.contains("all finite"), "{told}");
    let (header, mut data) = weights(&scratch);
    let start = header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    data[start + 8..start + 12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    write_weights(&scratch, &header, &data);
    let said = ["`model.norm.weight` holds 2", "earlier checkpoint"];
    scratch.refuse(&["model", "info", "model", "--check"], FAILED, &said);
    scratch.succeed(&["model", "info", "model"]);
}

#[test]
fn an_adapter_for_another_base_is_refused_with_names_and_shapes() {
    let scratch = with_model("qwen3");
    let adapter = golden("llama_lora_adapter");
    let arguments = [&SAMPLE[..], &["--adapter", adapter.to_str().unwrap()]].concat();
    scratch.refuse(&arguments, FAILED, &["misshapen", "q_proj.lora_A.weight", "instead of ["]);
    let merge = ["model", "merge", adapter.to_str().unwrap(), "merged", "--base", "model"];
    scratch.refuse(&merge, FAILED, &["misshapen"]);
    assert!(!scratch.path("merged").exists());
}

#[test]
fn a_gguf_file_of_an_unsupported_type_is_refused_with_those_that_are_read() {
    let scratch = Scratch::new(DLM);
    // One tensor of 256 numbers in IQ2_XXS, number 16, and nothing else.
    let name = "blk.0.attn_q.weight";
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend([1u64.to_le_bytes(), 0u64.to_le_bytes()].concat());
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend([1u32.to_le_bytes(), [0, 1, 0, 0], [0; 4], 16u32.to_le_bytes(), [0; 4], [0; 4]].concat());
    bytes.resize(bytes.len() + 400, 0);
    scratch.write("model.gguf", bytes);
    let said =
        [name, "IQ2_XXS", "F32, F16, Q4_0, Q4_1, Q5_0,", "Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, BF16", "such as `Q4_K_M`"];
    scratch.refuse(&["model", "convert", "model.gguf", "folder"], FAILED, &said);
    assert!(!scratch.path("folder").exists());
}

#[test]
fn an_unknown_family_or_key_is_named_before_weights_are_read() {
    let scratch = with_model("llama");
    fs::remove_file(scratch.path("model/model.safetensors")).unwrap();
    edit_config(&scratch, "rope_parameters", json!({ "rope_type": "mrope", "rope_theta": 1e4 }));
    scratch.refuse(&SAMPLE, FAILED, &["rope_type", "mrope", "`longrope`"]);
    edit_config(&scratch, "rope_parameters", Value::Null);
    edit_config(&scratch, "logit_softcap", json!(30));
    scratch.refuse(&SAMPLE, FAILED, &["logit_softcap"]);
    edit_config(&scratch, "architectures", json!(["GPT2LMHeadModel"]));
    scratch.refuse(&SAMPLE, FAILED, &["GPT2LMHeadModel", "LlamaForCausalLM"]);
}
