//! adapter_config.json: peft's settings, of which every one is honoured or refused.

use super::{LoraConfig, LoraTargets};
use crate::error::{ModelError, Result};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The file that makes a folder an adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The file of an adapter's tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Keys that change nothing in what an adapter computes.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "ensure_weight_tying",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// The base model that an adapter's folder names.
pub(super) fn base_model(folder: &Path) -> Result<Option<String>> {
    let (_, object) = read_object(folder)?;
    Ok(object.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned))
}

fn read_object(folder: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let path = folder.join(ADAPTER_CONFIG);
    let bytes = fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    let object = serde_json::from_slice(&bytes).map_err(|source| ModelError::Json { path: path.clone(), source })?;
    Ok((path, object))
}

/// Reads the settings of an adapter's folder; `embedding` is what the model calls its embedding.
pub(crate) fn read(folder: &Path, embedding: &str) -> Result<LoraConfig> {
    let (path, object) = read_object(folder)?;
    let refused = |key: &str, accepted: &str| ModelError::Value {
        path: path.clone(),
        key: key.to_owned(),
        found: object.get(key).unwrap_or(&Value::Null).to_string(),
        accepted: accepted.to_owned(),
    };
    let get = |key: &str| object.get(key).filter(|value| !value.is_null());
    let flag = |key: &str| get(key).map_or(Ok(false), |v| v.as_bool().ok_or_else(|| refused(key, "true or false")));
    let texts = |key: &str| -> Result<Vec<String>> {
        let list = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        };
        get(key).map_or(Ok(Vec::new()), |value| list(value).ok_or_else(|| refused(key, "a list of names")))
    };
    if get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(refused("peft_type", "\"LORA\""));
    }
    let targets = match get("target_modules") {
        Some(Value::String(word)) if word == "all-linear" => LoraTargets::AllLinear,
        Some(Value::String(_)) => return Err(refused("target_modules", "a list of names or \"all-linear\"")),
        _ => LoraTargets::Names(texts("target_modules")?),
    };
    let r = get("r").and_then(Value::as_i64).ok_or_else(|| refused("r", "an integer"))?;
    let alpha = get("lora_alpha").map_or(Some(8.0), Value::as_f64);
    let dropout = get("lora_dropout").map_or(Some(0.0), Value::as_f64);
    let config = LoraConfig {
        r,
        alpha: alpha.ok_or_else(|| refused("lora_alpha", "a number"))?,
        dropout: dropout.ok_or_else(|| refused("lora_dropout", "a number"))?,
        use_rslora: flag("use_rslora")?,
        targets,
        modules_to_save: texts("modules_to_save")?,
        trainable_tokens: tokens(get("trainable_token_indices"), embedding)
            .ok_or_else(|| refused("trainable_token_indices", "a list of ids, or one under the embedding's name"))?,
        base_model: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
    };
    let read = [
        "base_model_name_or_path",
        "lora_alpha",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "target_modules",
        "trainable_token_indices",
        "use_rslora",
    ];
    if !get("bias").is_none_or(|bias| bias == "none") {
        return Err(refused("bias", "\"none\""));
    }
    // Everything else is off in an adapter that is nothing but LoRA, and so is what later versions of peft will add.
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let known = |key: &str| read.contains(&key) || HARMLESS.contains(&key) || key == "bias";
    if let Some((key, _)) = object.iter().find(|(key, value)| !known(key) && !is_off(value)) {
        return Err(refused(key, "off: it is not part of LoRA as it is computed here"));
    }
    config.validate()?;
    Ok(config)
}

fn tokens(value: Option<&Value>, embedding: &str) -> Option<Vec<i64>> {
    let list = |value: &Value| value.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>();
    match value {
        None => Some(Vec::new()),
        Some(Value::Object(object)) => match object.iter().collect::<Vec<_>>()[..] {
            [(name, ids)] if embedding.ends_with(name.as_str()) => list(ids),
            _ => None,
        },
        Some(value) => list(value),
    }
}

/// The settings as peft writes them.
pub(super) fn to_json(config: &LoraConfig, targets: &[String], embedding: &str) -> Value {
    let or_null = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
    let name = embedding.rsplit('.').next().unwrap_or(embedding);
    let tokens = (!config.trainable_tokens.is_empty()).then(|| json!({ name: config.trainable_tokens }));
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": config.base_model,
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": config.alpha,
        "lora_bias": false,
        "lora_dropout": config.dropout,
        "modules_to_save": or_null(&config.modules_to_save),
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": tokens,
        "use_dora": false,
        "use_rslora": config.use_rslora,
    })
}
